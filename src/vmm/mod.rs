//! A small machine around the library: memory, loader, ACPI, devices, vCPU
//! threads.

pub mod acpi;
pub mod boot;
pub mod demo_guest;
pub mod devices;
pub mod exit;
pub mod initrd;
pub mod input;
pub mod loader;
pub mod machine;
pub mod memory;
pub mod output;
pub mod vcpu;
