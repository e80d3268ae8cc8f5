//! Sets KVM's clock onto the line, to the nanosecond.
//!
//! Each KVM_SET_CLOCK takes a new snapshot of the host's clock, at a moment that user
//! space does not know, so the remainder of one call can not be set by another. With
//! KVM_CLOCK_REALTIME KVM adds the time since a moment that it stated itself; what is
//! left is the time between two of its own readings, nearly the same at each call. It
//! is measured, taken into account, and tried again until it comes out the same.

use kvm_bindings::{KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, kvm_clock_data};
use kvm_ioctls::VmFd;

use super::KvmClock;
use crate::host::read_realtime;
use crate::xen::Clock as _;

/// The clock may stand so far ahead of the line: less is a rounding. Not behind it,
/// where a guest that has read the line would see time go back.
pub(super) const EXACT_NS: i64 = 1;
/// Tries, and how far from the line will do after so many of them, ns.
const TRIES: [(u32, i64); 3] = [(32, EXACT_NS), (16, 100), (16, 1_000)];

/// KVM's clock less the line, both at one host TSC; `None` where KVM states no such
/// pair, as while its masterclock is off.
pub(super) fn off_line_ns(vm: &VmFd, clock: &KvmClock) -> Option<i64> {
    let read = vm.get_clock().ok()?;
    if read.flags & KVM_CLOCK_HOST_TSC == 0 {
        return None;
    }
    let guest_tsc = clock.tsc().from_host(read.host_tsc);
    Some(read.clock.wrapping_sub(clock.line().system_time_ns(guest_tsc)).cast_signed())
}

/// Whether the host's clocksource is the TSC, with which KVM can have a masterclock.
/// KVM itself looks only when its clock is set, or a vCPU made.
pub(super) fn host_keeps_time_by_tsc() -> bool {
    std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        .is_ok_and(|name| name.trim() == "tsc")
}

/// Sets KVM's clock to what the line says now, `ahead_ns` further on, as well as one
/// call can. Without a pair of KVM's, one of CLOCK_REALTIME between two readings of the
/// TSC does: however late the call comes, KVM adds the time since.
pub(super) fn set_once(vm: &VmFd, clock: &KvmClock, ahead_ns: i64) {
    let both = KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
    let stated = vm.get_clock().ok().filter(|read| read.flags & both == both);
    let (host_tsc, realtime) = stated.map_or_else(
        || {
            let read = read_realtime();
            (read.host_tsc, u64::try_from(read.utc_ns).unwrap_or(0))
        },
        |pair| (pair.host_tsc, pair.realtime),
    );
    let set = |flags, realtime, system_time_ns: u64| {
        let clock = system_time_ns.saturating_add_signed(ahead_ns);
        vm.set_clock(&kvm_clock_data { clock, flags, realtime, ..Default::default() })
    };
    let then_ns = clock.line().system_time_ns(clock.tsc().from_host(host_tsc));
    // Before Linux 5.16 KVM takes a plain number only.
    let result =
        set(KVM_CLOCK_REALTIME, realtime, then_ns).or_else(|_| set(0, 0, clock.system_time_ns()));
    if let Err(error) = result {
        tracing::warn!(%error, "KVM's clock could not be set onto the line");
    }
}

/// Sets KVM's clock until it stands on the line, beginning `ahead_ns` ahead of it, and
/// leaves there what had to be aimed at. How far it then stands ahead, ns; `None` where
/// KVM does not say.
pub(super) fn approach(vm: &VmFd, clock: &KvmClock, ahead_ns: &mut i64) -> Option<i64> {
    until_there(ahead_ns, |ahead_ns| {
        set_once(vm, clock, ahead_ns);
        off_line_ns(vm, clock)
    })
}

/// The same where KVM says how far its clock stands from the line, else nothing.
pub(super) fn approach_if_stated(vm: &VmFd, clock: &KvmClock, ahead_ns: &mut i64) {
    if off_line_ns(vm, clock).is_some() {
        approach(vm, clock, ahead_ns);
    }
}

fn until_there(ahead_ns: &mut i64, mut set: impl FnMut(i64) -> Option<i64>) -> Option<i64> {
    let mut off_ns = 0;
    for (tries, enough_ns) in TRIES {
        for _ in 0..tries {
            off_ns = set(*ahead_ns)?;
            if (0..=enough_ns).contains(&off_ns) {
                return Some(off_ns);
            }
            *ahead_ns = ahead_ns.saturating_sub(off_ns);
        }
    }
    Some(off_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A KVM whose calls add these, one after the other and over again.
    fn tries(adds: &[i64]) -> (Option<i64>, i64, usize) {
        let (mut ahead, mut calls) = (0, 0);
        let off = until_there(&mut ahead, |ahead| {
            calls += 1;
            Some(adds[(calls - 1) % adds.len()].saturating_add(ahead))
        });
        (off, ahead, calls)
    }

    #[test]
    fn what_a_call_adds_is_taken_into_account() {
        assert_eq!(tries(&[0]), (Some(0), 0, 1));
        assert_eq!(tries(&[89]), (Some(0), -89, 2));
        assert_eq!(tries(&[-1_300]), (Some(0), 1_300, 2));
        // As measured: two values, and an interrupt between them.
        assert_eq!(tries(&[89, 99, 89, 5_748, 89, 99, 99, 89]).0, Some(0));
    }

    #[test]
    fn a_clock_that_is_never_the_same_gets_as_near_as_it_can() {
        let (off, _, calls) = tries(&[30, 80, 140, 50]);
        assert!((0..=100).contains(&off.unwrap()) && calls > 32, "{off:?} {calls}");
        // For ever is not: the guest waits.
        assert_eq!(tries(&[10, 50_000]).2, 64);
        assert_eq!(tries(&[i64::MIN, i64::MAX]).2, 64);
    }

    #[test]
    fn a_kvm_that_does_not_say_is_set_once() {
        let mut calls = 0;
        let off = until_there(&mut 0, |_| {
            calls += 1;
            None
        });
        assert_eq!((off, calls), (None, 1));
    }
}
