//! `multicall`: a list of hypercalls in one (`xen.h`, `struct multicall_entry`).

use std::mem::offset_of;

use xen_abi::errno::Errno;
use xen_abi::hypercall::HYPERVISOR_MULTICALL;
use xen_abi::xen::{MulticallEntry, MulticallEntry32};

use super::{Call, Outcome, dispatch};

/// Carries out `nr_calls` entries at `list`, each of which gets its own result.
///
/// A call that makes the vCPU wait or yield does so once the list is done. A
/// list within a list is refused, and so is one that is longer than the work
/// that one hypercall may make ([`Call::spend`]).
///
/// # Errors
/// `EFAULT` where an entry cannot be read or its result written: earlier
/// entries are done.
pub(super) fn op(call: &mut Call, list: u64, nr_calls: u64) -> Result<Outcome, Errno> {
    let mut outcome = Outcome::Return(0);
    let mut at = list;
    for _ in 0..nr_calls {
        call.spend()?;
        let entry = Entry::read(call, at)?;
        let result = if entry.number == HYPERVISOR_MULTICALL {
            Outcome::Return(Errno::EINVAL.to_return())
        } else {
            dispatch::serve(call, entry.number, &entry.args)
        };
        let value = match result {
            Outcome::Return(value) => value,
            Outcome::Shutdown(_) => return Ok(result),
            Outcome::Yield | Outcome::Wait { .. } => {
                outcome = result;
                0
            }
        };
        at = Entry::finish(call, at, value)?;
    }
    Ok(outcome)
}

struct Entry {
    number: u64,
    args: [u64; 6],
}

impl Entry {
    fn read(call: &mut Call, at: u64) -> Result<Self, Errno> {
        if call.is_64bit() {
            let entry: MulticallEntry = call.read(at)?;
            return Ok(Self { number: entry.op, args: entry.args });
        }
        let entry: MulticallEntry32 = call.read(at)?;
        Ok(Self { number: entry.op.into(), args: entry.args.map(u64::from) })
    }

    /// Writes the result and answers with the next entry's address.
    fn finish(call: &mut Call, at: u64, value: i64) -> Result<u64, Errno> {
        let bytes = value.to_le_bytes();
        let (offset, width, size) = if call.is_64bit() {
            (offset_of!(MulticallEntry, result), 8, size_of::<MulticallEntry>())
        } else {
            (offset_of!(MulticallEntry32, result), 4, size_of::<MulticallEntry32>())
        };
        call.write_bytes(at.wrapping_add(offset as u64), &bytes[..width])?;
        Ok(at.wrapping_add(size as u64))
    }
}

#[cfg(test)]
mod tests;
