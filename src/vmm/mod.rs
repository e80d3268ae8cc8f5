//! A small machine around the library: memory, loader, ACPI, boot state.

pub mod acpi;
pub mod boot;
pub mod loader;
pub mod memory;
