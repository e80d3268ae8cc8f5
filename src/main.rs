//! The `kvm-xen` command.
fn main() {}
