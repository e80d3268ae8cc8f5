//! A guest that moves to another process while it runs.
//!
//! - [`address`], [`tls`]: where to, and who may;
//! - [`door`], [`link`]: the connection between two hosts;
//! - [`dirty`]: which pages were written, by the guest or by us;
//! - [`handover`]: the messages by which exactly one of two processes ends up
//!   with the guest;
//! - [`migration`]: how far it is, for others, and how they end it;
//! - [`send`]: memory in rounds, then the guest stops, then the rest;
//! - [`receive`]: the other end.
//!
//! What is sent is the stream of a saved guest; `docs/state.md` states the rules.

pub mod address;
pub mod dirty;
pub mod door;
pub mod handover;
pub mod link;
pub mod migration;
pub mod receive;
pub mod send;
pub mod tls;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use serde::{Deserialize, Serialize};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use self::address::{AddressError, MoveAddress, TcpAddress};
use self::tls::{Tls, TlsError};
use super::api::socket::SocketError;
use super::config::MachineError;
use super::handover::{Handover, NoHandover};
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

/// Where a guest is received, and who may send it there.
#[derive(Clone, Debug)]
pub enum MovePlace {
    /// A Unix socket, which is its owner's alone.
    Unix(PathBuf),
    /// A port, and certificates.
    Tcp(TcpAddress, Tls),
}

/// Why a place is none.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl MovePlace {
    /// `address` as people write it, and where the certificates lie.
    ///
    /// # Errors
    /// [`PlaceError`]: no address, files that do not do, or one without the other.
    pub fn new(address: &str, tls_dir: Option<&Path>) -> Result<Self, PlaceError> {
        match (address.parse()?, tls_dir) {
            (MoveAddress::Unix(path), None) => Ok(Self::Unix(path)),
            (MoveAddress::Tcp(tcp), Some(directory)) => Ok(Self::Tcp(tcp, Tls::load(directory)?)),
            (MoveAddress::Unix(_), Some(_)) => Err(AddressError::NeedsNone(address.to_owned()))?,
            (MoveAddress::Tcp(_), None) => Err(AddressError::Plain(address.to_owned()))?,
        }
    }
}

impl fmt::Display for MovePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address, _) => address.fmt(f),
        }
    }
}

/// Why a guest did not move. Where it ran, it runs on.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// Nobody is there.
    #[error("cannot migrate to {at}: {error}; start kvm-xen receive there")]
    Connect {
        /// Where.
        at: String,
        /// What the host said.
        error: io::Error,
    },
    /// Somebody is there who is not the one, or does not take this one.
    #[error("cannot migrate to {at}: {why}")]
    Peer {
        /// Where.
        at: String,
        /// What is wrong.
        why: String,
    },
    /// No place to receive at.
    #[error("cannot receive at {at}: {error}")]
    Listen {
        /// Where.
        at: String,
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
    /// A handover was demanded.
    #[error("the guest has not moved: {0}")]
    NoHandover(#[from] NoHandover),
    /// Its memory became another while it was sent.
    #[error("the guest has not moved: it mapped new pages meanwhile; try again")]
    Regions,
    /// There is nothing to take back.
    #[error("the guest is not between two hosts: there is nothing to take back")]
    Known,
    /// Somebody said so.
    #[error("the guest has not moved: cancelled")]
    Cancelled,
    /// It powered off, crashed, or was saved and ended.
    #[error("the guest has not moved: it ended first")]
    Ended,
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
    /// The stream ended too early.
    #[error(
        "the guest did not come: its source gave up, ended or was cut off after {at} bytes; where it ran it may run on"
    )]
    CutOff {
        /// Bytes that came.
        at: u64,
    },
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
    /// It stands still: the connection broke in the one moment in which it may or may
    /// not have begun to run at the destination, which is being asked.
    Unknown,
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
    /// Whether the guest gathered its vCPUs for it; `off` before it was asked.
    #[serde(default)]
    pub handover: Handover,
    /// Why it failed.
    pub error: Option<String>,
}

/// Nanoseconds, at most some 584 years.
fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
