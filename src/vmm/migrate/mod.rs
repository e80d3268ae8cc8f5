//! A guest that moves to another process while it runs.
//!
//! - [`dirty`]: which pages were written, by the guest or by us;
//! - [`handover`]: the messages by which exactly one of two processes ends up
//!   with the guest;
//! - [`send`]: memory in rounds, then the guest stops, then the rest;
//! - [`receive`]: the other end.
//!
//! What is sent is the stream of a saved guest; `docs/state.md` states the rules.

pub mod dirty;
pub mod handover;
pub mod receive;
pub mod send;

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::api::socket::SocketError;
use super::config::MachineError;
use super::quiesce::NotStopped;
use super::save::SaveError;
use crate::pages::GuestRam;
use crate::state::StateError;

/// Memory of a machine that KVM knows by a slot since it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamSlot {
    /// KVM's number.
    pub slot: u32,
    /// Guest-physical address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// The slots of a VM that was just made with this memory.
pub(super) fn ram_slots(memory: &GuestRam) -> Arc<[RamSlot]> {
    let slot = |(slot, region): (u32, _)| {
        let region: &vm_memory::GuestRegionMmap<_> = region;
        RamSlot { slot, start: region.start_addr().raw_value(), len: region.len() }
    };
    (0u32..).zip(memory.iter()).map(slot).collect()
}

/// Where a guest is received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveAddress(PathBuf);

/// Why an address is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Over a network.
    #[error("{0}: guests do not move over TCP yet; give unix:PATH, on one host")]
    Tcp(String),
    /// Anything else.
    #[error("{0}: no address; give unix:PATH, such as unix:/run/guest.socket")]
    Unknown(String),
}

impl MoveAddress {
    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for MoveAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self(PathBuf::from(path))),
            Some(("tcp" | "tls", _)) => Err(AddressError::Tcp(text.to_owned())),
            _ => Err(AddressError::Unknown(text.to_owned())),
        }
    }
}

/// Why a guest did not move. Where it ran, it runs on.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// Nobody is there.
    #[error("cannot migrate to unix:{path}: {error}; start kvm-xen receive there", path = .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the host said.
        error: io::Error,
    },
    /// The socket to receive on.
    #[error("cannot receive: {0}")]
    Bind(#[from] SocketError),
    /// No socket.
    #[error("cannot receive: {what} failed: {error}")]
    Accept {
        /// What was done.
        what: &'static str,
        /// What the host said.
        error: io::Error,
    },
    /// The messages.
    #[error("the guest has not moved: {0}")]
    Handover(#[from] handover::HandoverError),
    /// The stream.
    #[error("the guest has not moved: {0}")]
    State(#[from] StateError),
    /// Reading the machine.
    #[error("the guest has not moved: {0}")]
    Save(#[from] SaveError),
    /// Its vCPUs.
    #[error("the guest has not moved: {0}")]
    Stop(#[from] NotStopped),
    /// KVM's log.
    #[error("the guest has not moved: {call} failed: {error}")]
    Log {
        /// The call.
        call: &'static str,
        /// What KVM said.
        error: vmm_sys_util::errno::Error,
    },
    /// Its memory became another while it was sent.
    #[error("the guest has not moved: it mapped new pages meanwhile; try again")]
    Regions,
    /// Somebody said so.
    #[error("the guest has not moved: cancelled")]
    Cancelled,
    /// It stands still by order.
    #[error("the guest has not moved: it is paused; resume it first")]
    Paused,
    /// Another one is under way.
    #[error("the guest is being moved already")]
    Busy,
    /// There is no machine yet.
    #[error("the guest has not moved: it has not begun to run; try again")]
    Early,
    /// No thread.
    #[error("the guest has not moved: no thread for it: {0}")]
    Thread(io::Error),
    /// The machine at the destination.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// How far a migration is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// None was asked for.
    #[default]
    None,
    /// Memory goes over while the guest runs.
    Copying,
    /// The guest stands still for the rest.
    Stopped,
    /// It runs elsewhere.
    Done,
    /// It runs here.
    Failed,
}

/// A migration at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// How far it is.
    pub phase: Phase,
    /// Rounds of memory that were begun.
    pub rounds: u32,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes of guest memory that are still to be sent, as far as is known.
    pub remaining_bytes: u64,
    /// Of the last round, bytes in a second.
    pub rate_bytes_per_s: u64,
    /// How long the guest would stand still if it stopped now, for its memory, ns.
    pub estimated_downtime_ns: u64,
    /// How long it did stand still, ns; 0 before.
    pub downtime_ns: u64,
    /// Since it began, ns.
    pub total_ns: u64,
    /// Why it failed.
    pub error: Option<String>,
}

/// Nanoseconds, at most some 584 years.
fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
