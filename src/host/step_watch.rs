//! Notices at once that the host's clock was set.
//!
//! A timer far in the future on CLOCK_REALTIME with TFD_TIMER_CANCEL_ON_SET:
//! the kernel cancels it on every discontinuous change, a leap second, a changed
//! TAI offset and a resume included. Its descriptor becomes readable then.

#![expect(unsafe_code, reason = "timerfd calls take raw pointers and descriptors")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

/// A descriptor that becomes readable when the host's clock is set.
#[derive(Debug)]
pub struct StepWatch(OwnedFd);

impl StepWatch {
    /// Starts watching.
    ///
    /// # Errors
    /// What timerfd_create or timerfd_settime says.
    pub fn new() -> io::Result<Self> {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_REALTIME, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is open, and nobody else has it.
        let watch = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        watch.arm()?;
        Ok(watch)
    }

    /// True when the clock was set since the last call. Watches on.
    ///
    /// # Errors
    /// What `read` or timerfd_settime says.
    pub fn was_set(&self) -> io::Result<bool> {
        let mut expirations = 0u64;
        // SAFETY: a timerfd's read writes 8 bytes, which `expirations` has.
        let ret = unsafe {
            libc::read(self.0.as_raw_fd(), (&raw mut expirations).cast(), size_of::<u64>())
        };
        if ret >= 0 {
            // The far future came: whoever lives then watches on.
            self.arm()?;
            return Ok(true);
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ECANCELED) => {
                self.arm()?;
                Ok(true)
            }
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            error => Err(error),
        }
    }

    fn arm(&self) -> io::Result<()> {
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // Beyond any clock, within the kernel's ktime.
        let far = libc::timespec { tv_sec: i64::MAX / 1_000_000_000, tv_nsec: 0 };
        let when = libc::itimerspec { it_interval: zero, it_value: far };
        let flags = libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET;
        // SAFETY: `when` lives across the call, which reads it; no old value is
        // asked for.
        let ret = unsafe {
            libc::timerfd_settime(self.0.as_raw_fd(), flags, &raw const when, core::ptr::null_mut())
        };
        if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsRawFd for StepWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for StepWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_clock_is_not_set() {
        let watch = StepWatch::new().unwrap();
        assert!(!watch.was_set().unwrap());
        assert!(!watch.was_set().unwrap());
    }
}
