//! A small machine around the library: memory, loader, ACPI, devices, vCPU
//! threads.

pub mod acpi;
pub mod api;
pub mod boot;
pub mod clock_metrics;
pub mod clock_service;
pub mod config;
pub mod control;
pub mod demo_guest;
pub mod devices;
pub mod exit;
pub mod handover;
pub mod hypercall_sites;
pub mod initrd;
pub mod input;
pub mod load;
pub mod loader;
pub mod machine;
pub mod memory;
pub mod migrate;
pub mod output;
mod parts;
pub mod pause;
mod power;
pub mod quiesce;
pub mod restore;
pub mod save;
pub mod saved_guest;
pub mod suspend;
pub mod vcpu;
pub mod vmclock_device;
