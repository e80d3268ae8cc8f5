#![no_std]
#![forbid(unsafe_code)]
//! The Xen public ABI as an HVM or PVH guest meets it: layouts and numbers only.
//!
//! One module per public header (Xen 4.17 by name, see [`layout`] for how each is proven). Constants
//! bear the C name in upper case, structures the C name in CamelCase without `xen_`, fields the C
//! name (`type`, `ref` and `in` get a trailing underscore). Guest handles are plain addresses: `u64`,
//! or `u32` in the structures whose name ends in `32`, which hold the layout of a 32-bit guest. A
//! structure without such a twin has the same bytes for both.
//!
//! Everything here is plain integers: a value that this crate has no name for survives a round trip.
//! All multi-byte values are little-endian, which is the byte order of every x86 guest.

#[macro_use]
mod macros;
pub mod layout;

pub mod arch_x86;
pub mod callback;
pub mod console;
pub mod cpuid;
pub mod elfnote;
pub mod errno;
pub mod event_channel;
pub mod features;
pub mod grant_table;
pub mod handover;
pub mod hvm_op;
pub mod hvm_params;
pub mod hvm_start_info;
pub mod hvm_vcpu;
pub mod hypercall;
pub mod memory;
pub mod nmi;
pub mod physdev;
pub mod sched;
pub mod vcpu;
pub mod version;
pub mod vmclock;
pub mod xen;
pub mod xenbus;
pub mod xs_wire;

#[cfg(not(target_endian = "little"))]
compile_error!("the Xen x86 ABI is little-endian: build for a little-endian target");
