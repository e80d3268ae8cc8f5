//! Runtime of the bare-metal guests: from the PVH entry to a `main` in Rust with
//! a serial port, interrupts, all CPUs and Xen's hypercalls.
//!
//! A guest is one binary, names its main function with [`entry!`], prints lines
//! that start with `KVMXEN` for programs to read, and ends by returning an
//! [`rt::Exit`]. Its parameters are `name=value` words of the command line.

#![no_std]

pub mod boot;
pub mod checks;
pub mod cpu;
pub mod events;
pub mod fifo;
pub mod handover;
pub mod hypercall;
pub mod interrupts;
pub mod ioapic;
pub mod lapic;
pub mod pvclock;
pub mod report;
pub mod rt;
pub mod serial;
pub mod shared;
pub mod smp;
pub mod start_info;
