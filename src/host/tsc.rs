//! The host's time stamp counter.

#![expect(unsafe_code, reason = "RDTSC is an intrinsic")]

use core::arch::x86_64::{_mm_lfence, _rdtsc};

/// Reads the host TSC, after all earlier loads have completed.
pub fn host_tsc() -> u64 {
    // SAFETY: LFENCE is part of SSE2, which every x86-64 CPU has.
    unsafe { _mm_lfence() };
    // SAFETY: RDTSC is allowed in user mode unless CR4.TSD forbids it, which
    // Linux does only for a process that asked for it (PR_SET_TSC).
    unsafe { _rdtsc() }
}
