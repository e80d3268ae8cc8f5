//! The grant table outside of the guest. Entries in placed frames are in the
//! guest's memory; frames that are nowhere bring their contents.

use serde::{Deserialize, Serialize};
use vm_memory::GuestAddress;

use super::super::Bytes;
use super::super::snapshot::RestoreError;
use super::frames::{Frame, PAGE_SIZE};
use super::table::{Table, Version, status_frames};
use super::{GrantTable, MAX_FRAMES, Pins};

/// A grant table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantsState {
    /// 1 or 2.
    pub version: u32,
    /// Frames of entries.
    pub shared: Vec<FrameState>,
    /// Frames of status words, none with version 1.
    pub status: Vec<FrameState>,
}

/// A frame of a grant table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameState {
    /// Its guest-physical address.
    pub gpa: Option<u64>,
    /// What is in it, if it is nowhere.
    pub contents: Bytes,
}

impl GrantTable {
    /// # Errors
    /// [`RestoreError::GrantsInUse`]: back ends have to let go first.
    pub(in crate::xen) fn snapshot(&self) -> Result<GrantsState, RestoreError> {
        let table = self.lock();
        if table.pins.any_from(0) {
            return Err(RestoreError::GrantsInUse);
        }
        let state = |frame: &Frame| match frame {
            Frame::Placed(gpa) => FrameState { gpa: Some(gpa.0), contents: Bytes::default() },
            Frame::Detached(None) => FrameState::default(),
            Frame::Detached(Some(page)) => {
                FrameState { gpa: None, contents: Bytes::of(page.as_slice()) }
            }
        };
        Ok(GrantsState {
            version: table.version.number(),
            shared: table.shared.iter().map(state).collect(),
            status: table.status.iter().map(state).collect(),
        })
    }

    pub(in crate::xen) fn restore(&self, from: &GrantsState) -> Result<(), RestoreError> {
        let version = match from.version {
            1 => Version::V1,
            2 => Version::V2,
            other => {
                return Err(RestoreError::Value { what: "grant version", value: other.into() });
            }
        };
        let frames = u32::try_from(from.shared.len()).unwrap_or(u32::MAX);
        let statuses = match version {
            _ if !(1..=MAX_FRAMES).contains(&frames) => None,
            Version::V1 => Some(0),
            Version::V2 => Some(status_frames(frames)),
        };
        if statuses.map(u64::from) != Some(from.status.len() as u64) {
            return Err(RestoreError::Value { what: "grant frames", value: frames.into() });
        }
        let frame = |state: &FrameState| match state.gpa {
            Some(gpa) => Ok(Frame::Placed(GuestAddress(gpa))),
            None if state.contents.as_slice().is_empty() => Ok(Frame::EMPTY),
            None => {
                let mut page = Box::new([0; PAGE_SIZE]);
                match state.contents.fill(page.as_mut_slice()) {
                    true => Ok(Frame::Detached(Some(page))),
                    false => Err(RestoreError::Value { what: "grant frame", value: 0 }),
                }
            }
        };
        let shared = from.shared.iter().map(frame).collect::<Result<_, _>>()?;
        let status = from.status.iter().map(frame).collect::<Result<_, _>>()?;
        *self.lock() = Table { version, shared, status, pins: Pins::default() };
        Ok(())
    }
}
