//! The 2-level ABI: a pending and a mask bit for each port in `shared_info`, a
//! selector bit for each word of them in the `vcpu_info`.
//!
//! Order of delivery, as in Xen: the port's pending bit; if that was clear and
//! the port is not masked, its word's selector bit; if that was clear, the
//! vCPU's `evtchn_upcall_pending`. The guest undoes it in the opposite order
//! with atomic exchanges, so whoever of the two comes second sees the other.

use super::super::atomic::{and_u64, load_u64, or_u32, or_u64};
use super::super::shared_info::{At, Layout, PrivatePage};
use crate::pages::{GuestRam, Width};

/// `offsetof(struct vcpu_info, evtchn_pending_sel)`.
const SELECTOR_OFFSET: u64 = 8;
/// The same in the 32-bit layout.
const SELECTOR_OFFSET32: u64 = 4;

/// Sets `port` pending; whether it was not.
pub(super) fn set_pending(page: At<'_>, port: u32) -> bool {
    let bit = bit(port);
    or_u64(page.memory, page.gpa + Layout::pending_offset(port), bit) & bit == 0
}

pub(super) fn is_masked(layout: &Layout, page: At<'_>, port: u32) -> bool {
    load_u64(page.memory, page.gpa + layout.mask_offset(port)) & bit(port) != 0
}

/// Clears the mask of `port`; whether it was set and the port is pending.
pub(super) fn unmask(layout: &Layout, page: At<'_>, port: u32) -> bool {
    let was = and_u64(page.memory, page.gpa + layout.mask_offset(port), !bit(port));
    // In this order: a sender sets pending, then reads the mask.
    let pending = load_u64(page.memory, page.gpa + Layout::pending_offset(port));
    was & pending & bit(port) != 0
}

pub(super) fn clear_pending(page: At<'_>, port: u32) {
    and_u64(page.memory, page.gpa + Layout::pending_offset(port), !bit(port));
}

pub(super) fn is_pending(
    layout: &Layout,
    memory: &GuestRam,
    private: &PrivatePage,
    port: u32,
) -> bool {
    let page = layout.shared_info(memory, private);
    load_u64(page.memory, page.gpa + Layout::pending_offset(port)) & bit(port) != 0
}

/// Whether any port is pending.
pub(super) fn any_pending(layout: &Layout, memory: &GuestRam, private: &PrivatePage) -> bool {
    let page = layout.shared_info(memory, private);
    let mut words = (0..layout.ports()).step_by(64);
    words.any(|port| load_u64(page.memory, page.gpa + Layout::pending_offset(port)) != 0)
}

/// Clears every pending bit.
pub(super) fn clear_all(layout: &Layout, memory: &GuestRam, private: &PrivatePage) {
    let page = layout.shared_info(memory, private);
    for port in (0..layout.ports()).step_by(64) {
        and_u64(page.memory, page.gpa + Layout::pending_offset(port), 0);
    }
}

/// Sets the selector bit of `port`; whether it was clear.
pub(super) fn select(width: Width, info: At<'_>, port: u32) -> bool {
    match width {
        Width::Bits64 => {
            let bit = 1u64 << (port / 64 % 64);
            or_u64(info.memory, info.gpa + SELECTOR_OFFSET, bit) & bit == 0
        }
        Width::Bits32 => {
            let bit = 1u32 << (port / 32 % 32);
            or_u32(info.memory, info.gpa + SELECTOR_OFFSET32, bit) & bit == 0
        }
    }
}

/// Sets every selector bit.
pub(super) fn select_all(width: Width, info: At<'_>) {
    match width {
        Width::Bits64 => {
            or_u64(info.memory, info.gpa + SELECTOR_OFFSET, u64::MAX);
        }
        Width::Bits32 => {
            or_u32(info.memory, info.gpa + SELECTOR_OFFSET32, u32::MAX);
        }
    }
}

fn bit(port: u32) -> u64 {
    1 << (port % 64)
}
