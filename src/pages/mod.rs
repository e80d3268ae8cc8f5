//! Publishes clock data into guest memory.
