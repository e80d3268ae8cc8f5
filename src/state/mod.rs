//! A guest's state outside of it: what is written, how time goes on.
//!
//! - [`StateWriter`], [`StateReader`]: a stream of checked sections, the same in
//!   a file and on a connection; the format is described in `docs/state.md`.
//! - [`write_memory`], [`read_pages`]: guest memory, without its zero pages.
//! - [`AtomicFile`]: a file that is there whole or not at all.
//! - [`StoppedClock`], [`TimePolicy`]: from the moment at which time stopped to
//!   the guest TSC at which it goes on. Pure arithmetic over readings.
//!
//! What stands in the sections belongs to whom it describes: `xen` and `kvm`
//! have `snapshot` and `restore` of plain data, this room only carries it.

mod error;
mod file;
mod handover;
mod memory;
mod stream;
mod time;

pub use crate::clock::scaling::TscStart;
pub use crate::xen::Bytes;
pub use error::StateError;
pub use file::AtomicFile;
pub use memory::{MOST_PAGES, read_pages, write_memory, write_pages};
pub use stream::{
    FormatVersion, HEADER_SIZE, MOST_PAYLOAD, Section, StateReader, StateWriter, Tag, tag,
};
pub use time::{
    Bridge, FrequencyPlan, HostNow, MAX_JUMP_TICKS, RestoredTime, StoppedClock, TimeError,
    TimePolicy,
};
