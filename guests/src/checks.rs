//! Counting checks: a failed one prints what it got and what it wanted, all
//! together decide how the guest ends.

use core::fmt::Debug;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::rt::Exit;
use crate::{println, report};

static PASSED: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);

/// Counts a check that two values are equal.
pub fn equal<T: PartialEq + Debug>(name: &str, got: T, want: T) {
    if got == want {
        PASSED.fetch_add(1, Ordering::Relaxed);
    } else {
        FAILED.fetch_add(1, Ordering::Relaxed);
        println!("KVMXEN failed check={name} got={got:?} want={want:?}");
    }
}

/// Counts a check of anything else; `seen` is printed where it does not hold.
pub fn holds<T: Debug>(name: &str, condition: bool, seen: T) {
    if condition {
        PASSED.fetch_add(1, Ordering::Relaxed);
    } else {
        FAILED.fetch_add(1, Ordering::Relaxed);
        println!("KVMXEN failed check={name} got={seen:?}");
    }
}

/// Prints the sums as `KVMXEN <topic> passed=… failed=…` and says how to end.
pub fn finish(topic: &str) -> Exit {
    let failed = FAILED.load(Ordering::Acquire);
    report!(topic; passed = PASSED.load(Ordering::Acquire), failed = failed);
    Exit::passed(failed == 0)
}
