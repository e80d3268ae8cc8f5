//! /dev/vmclock0: mapped, read and polled. Kernels without its driver have the same page
//! in /dev/mem.

#![expect(unsafe_code, reason = "mmap and poll take raw pointers")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use guest_clock::Refusal;
use guest_clock::vmclock::{self, Reading, WORDS};

use crate::clocks::tsc;

const PAGE: usize = 4096;

/// The device, its page mapped for as long as it lives.
pub struct Device {
    file: File,
    page: *const AtomicU32,
}

impl Device {
    pub fn open(path: &str) -> io::Result<Self> {
        Self::map(path, 0)
    }

    /// The page at `offset` of a file: of /dev/mem, its guest physical address.
    pub fn map(path: &str, offset: i64) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: a new mapping, anywhere, of a descriptor that is open.
        let page = unsafe {
            let shared = libc::MAP_SHARED;
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ,
                shared,
                file.as_raw_fd(),
                offset,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { file, page: page.cast_const().cast() })
    }

    /// One reading by `guest-clock`.
    pub fn read(&self, tries: u32) -> Result<Reading, Refusal> {
        let words: [&AtomicU32; WORDS] = std::array::from_fn(|n| {
            // SAFETY: inside the mapped page, which is aligned and lives as long as
            // `self`.
            let word = unsafe { self.page.add(n) };
            // SAFETY: as above; the host writes it by atomic stores alone.
            unsafe { &*word }
        });
        vmclock::read(&words, &tsc, tries)
    }

    /// Tells the driver that this page has been seen: poll waits for the next.
    pub fn catch_up(&self) {
        let mut all = [0; PAGE];
        let _ = self.file.read_at(&mut all, 0);
    }

    /// Waits for a notification; true if one came.
    pub fn poll(&self, time: Duration) -> bool {
        let mut fd = libc::pollfd { fd: self.file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let ms = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one pollfd that lives across the call.
        let ready = unsafe { libc::poll(&raw mut fd, 1, ms) };
        ready > 0 && fd.revents & libc::POLLIN != 0
    }
}
