//! KVM's three clocks as pure functions.
