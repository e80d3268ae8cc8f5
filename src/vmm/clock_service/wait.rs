//! Waiting for descriptors, with a deadline in nanoseconds; being woken soon.

#![expect(unsafe_code, reason = "ppoll and sched_setscheduler take raw pointers")]

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Waits until one of two descriptors is readable, or the time is up. Which are
/// readable.
pub(super) fn wait(descriptors: [&dyn AsRawFd; 2], time: Duration) -> io::Result<[bool; 2]> {
    let mut polled =
        descriptors.map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    let time = libc::timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    };
    // SAFETY: two pollfds that live across the call, which writes their results; a
    // timespec that it reads; no signal mask.
    let ready = unsafe { libc::ppoll(polled.as_mut_ptr(), 2, &raw const time, core::ptr::null()) };
    if ready >= 0 {
        return Ok(polled.map(|fd| fd.revents != 0));
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::Interrupted => Ok([false; 2]),
        error => Err(error),
    }
}

/// Lets the calling thread run before ordinary ones, so that busy vCPUs do not hold
/// up the page after a step. Without the right to it, it stays as it is.
pub(super) fn prefer_this_thread() {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: 0 is the calling thread; the structure lives across the call.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) } != 0 {
        tracing::info!(
            error = %io::Error::last_os_error(),
            "the clock's thread has no real-time priority: a page after a step may be late"
        );
    }
}
