//! `console_io`: a guest's lines to the hypervisor's console.
//!
//! Xen lets an ordinary guest write here where it was built for debugging and
//! refuses it otherwise. Small guests have no other console, so ours may write.

use xen_abi::errno::Errno;
use xen_abi::xen::CONSOLEIO_WRITE;

use super::{Call, Reply};

/// Bytes that one call prints at most; the rest is dropped, as a rate limit
/// drops lines, and the guest is told nothing of it.
const MAX_WRITE: usize = 64 << 10;
/// Bytes that cost as much as one step of a long operation.
const WORK_BYTES: usize = 64;

/// Prints `count` bytes at `buffer`; everything else is for the control domain.
pub(super) fn op(call: &mut Call, cmd: u64, count: u64, buffer: u64) -> Reply {
    if cmd != u64::from(CONSOLEIO_WRITE) {
        return Err(Errno::EPERM);
    }
    let mut left = usize::try_from(count).unwrap_or(usize::MAX).min(MAX_WRITE);
    let mut at = buffer;
    let mut chunk = [0u8; 256];
    call.spend_many(u64::try_from(left / WORK_BYTES).unwrap_or(u64::MAX))?;
    while left > 0 {
        let chunk = &mut chunk[..left.min(256)];
        call.read_bytes(at, chunk)?;
        call.domain.platform.console_output(chunk);
        left -= chunk.len();
        at = at.wrapping_add(chunk.len() as u64);
    }
    Ok(0)
}
