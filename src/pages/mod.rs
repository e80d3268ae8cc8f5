//! Publishes clock data into guest memory. The only writer of clock pages.
//!
//! Five structures, two protocols, one writer for each page at a time:
//!
//! | structure | written by | protocol |
//! | --- | --- | --- |
//! | `vcpu_time_info` | [`publish_time`] | version, odd during an update |
//! | wallclock in `shared_info` | [`publish_wallclock`] | version, odd during an update |
//! | VMClock | [`publish_vmclock`] | sequence count, odd during an update |
//! | handover | [`HandoverWords`] | sequence count, odd during an update; then a word to go |
//! | `vcpu_runstate_info` | [`publish_runstate`] | top bit of the entry time |
//!
//! The protocols live in [`protocol`], generic over the atomic word, so that
//! the model check runs the very code that writes guest memory.
//!
//! # Invariant: one writer
//! Neither protocol orders two writers. The caller sees to it that a page has
//! one writer at a time: in owned mode the vCPU's own thread writes its time
//! and runstate, and one lock covers the wallclock; in guarded mode KVM writes
//! the time and this room only reads it.
//!
//! # Words
//! All accesses are relaxed atomic accesses of 32 bits, whatever the guest's
//! width. A 32-bit guest may place these structures on a 4-byte boundary,
//! where an atomic access of 64 bits would be refused or split; and 64-bit
//! accesses would gain nothing, because both protocols already make a reader
//! discard a mix of old and new words.

mod handover;
mod memory;
pub mod protocol;
mod runstate;
mod time;
mod vmclock;
mod wallclock;

pub use handover::{HandoverRecord, HandoverWords};
pub use memory::{GuestRam, GuestRamHandle, PageError, Width};
pub use runstate::{Runstate, RunstateArea, publish_runstate, read_runstate};
pub use time::{
    PVCLOCK_GUEST_STOPPED, PVCLOCK_TSC_STABLE, Published, TIME_INFO_SIZE, TimeInfo, publish_time,
    read_time, read_time_version,
};
pub use vmclock::{
    VMCLOCK_PAGE_SIZE, VMCLOCK_WORDS, publish_generation_id, publish_vmclock, read_vmclock,
    with_vmclock_words,
};
pub use wallclock::{publish_wallclock, read_wallclock};
