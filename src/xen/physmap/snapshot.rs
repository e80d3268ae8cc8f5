//! The accounts of guest memory outside of the guest.

use serde::{Deserialize, Serialize};

use super::super::Bytes;
use super::super::snapshot::RestoreError;
use super::{BLOCK_FRAMES, BLOCK_WORDS, Physmap, Special, State};

/// Which frames hold what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhysmapState {
    /// Frames of RAM that the guest gave back: number of a block of 32768
    /// frames, and its bitmap.
    pub holes: Vec<(u64, Bytes)>,
    /// Populated frames outside of RAM.
    pub extra: Vec<u64>,
    /// Pages without a frame.
    pub unplaced: u64,
    /// The hypervisor's pages by their frames.
    pub special: Vec<(u64, SpecialState)>,
}

/// A page of the hypervisor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpecialState {
    /// `shared_info`.
    SharedInfo,
    /// A frame of the grant table.
    GrantFrame(u32),
    /// A frame of its status words.
    StatusFrame(u32),
}

impl From<Special> for SpecialState {
    fn from(special: Special) -> Self {
        match special {
            Special::SharedInfo => Self::SharedInfo,
            Special::GrantFrame(index) => Self::GrantFrame(index),
            Special::StatusFrame(index) => Self::StatusFrame(index),
        }
    }
}

impl From<SpecialState> for Special {
    fn from(special: SpecialState) -> Self {
        match special {
            SpecialState::SharedInfo => Self::SharedInfo,
            SpecialState::GrantFrame(index) => Self::GrantFrame(index),
            SpecialState::StatusFrame(index) => Self::StatusFrame(index),
        }
    }
}

impl Physmap {
    pub(in crate::xen) fn snapshot(&self) -> PhysmapState {
        let _changing = self.changing();
        let state = self.lock();
        let holes =
            state.holes.0.iter().map(|(block, words)| (*block, Bytes::of(words.as_slice())));
        PhysmapState {
            // A block whose holes were all filled again says nothing.
            holes: holes.filter(|(_, bits)| !bits.as_slice().is_empty()).collect(),
            extra: state.extra.iter().copied().collect(),
            unplaced: state.unplaced,
            special: state.special.iter().map(|(gfn, special)| (*gfn, (*special).into())).collect(),
        }
    }

    pub(in crate::xen) fn restore(&self, from: &PhysmapState) -> Result<(), RestoreError> {
        let mut state = State::default();
        for (block, bits) in &from.holes {
            let wrong = RestoreError::Value { what: "block of frames", value: *block };
            let words = bits.get::<[u64; BLOCK_WORDS]>().ok_or(wrong)?;
            let first = block.checked_mul(BLOCK_FRAMES).unwrap_or(u64::MAX);
            for (word, base) in words.iter().zip((0u64..).step_by(64)) {
                let mut left = *word;
                while left != 0 {
                    let gfn = first.saturating_add(base + u64::from(left.trailing_zeros()));
                    left &= left - 1;
                    if !self.in_ram(gfn) {
                        return Err(RestoreError::Value { what: "frame of RAM", value: gfn });
                    }
                    state.hole_count += 1;
                }
            }
            state.holes.0.insert(*block, Box::new(words));
        }
        state.extra = from.extra.iter().copied().collect();
        state.unplaced = from.unplaced;
        state.special =
            from.special.iter().map(|(gfn, special)| (*gfn, (*special).into())).collect();
        if let Some(gfn) = state.extra.iter().find(|gfn| self.in_ram(**gfn)) {
            return Err(RestoreError::Value { what: "frame outside of RAM", value: *gfn });
        }
        let more = (state.extra.len() as u64).checked_add(state.unplaced);
        if more.is_none_or(|more| more > state.hole_count) {
            return Err(RestoreError::Value { what: "number of pages", value: state.unplaced });
        }
        *self.lock() = state;
        Ok(())
    }
}
