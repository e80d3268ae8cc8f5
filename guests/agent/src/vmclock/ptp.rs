//! /dev/ptp0, by the ioctls of `linux/ptp_clock.h`.

#![expect(unsafe_code, reason = "ioctls take raw pointers")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

pub const DEVICE: &str = "/dev/ptp0";

/// `PTP_SYS_OFFSET_PRECISE`: _IOWR('=', 8, 64 bytes).
const SYS_OFFSET_PRECISE: libc::c_ulong = 0xc040_3d08;
/// `PTP_SYS_OFFSET_EXTENDED`: _IOWR('=', 9, 1216 bytes).
const SYS_OFFSET_EXTENDED: libc::c_ulong = 0xc4c0_3d09;

/// `struct ptp_clock_time`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Time {
    sec: i64,
    nsec: u32,
    reserved: u32,
}

/// `struct ptp_sys_offset_extended`.
#[repr(C)]
struct Extended {
    samples: u32,
    reserved: [u32; 3],
    times: [[Time; 3]; 25],
}

/// `struct ptp_sys_offset_precise`.
#[repr(C)]
#[derive(Default)]
struct Precise {
    device: Time,
    realtime: Time,
    monoraw: Time,
    reserved: [u32; 4],
}

pub struct Clock(File);

impl Clock {
    pub fn open() -> io::Result<Self> {
        File::open(DEVICE).map(Self)
    }

    /// The clock's time in ns: TAI by Linux 7.2, UTC by the driver's first versions.
    pub fn read(&self) -> io::Result<i64> {
        let mut data = Extended { samples: 1, reserved: [0; 3], times: [[Time::default(); 3]; 25] };
        // SAFETY: the structure that this ioctl reads and writes.
        let ret = unsafe { libc::ioctl(self.0.as_raw_fd(), SYS_OFFSET_EXTENDED, &raw mut data) };
        if ret < 0 {
            return Err(io::Error::last_os_error());
        }
        let [_, device, _] = data.times[0];
        Ok(device.sec * 1_000_000_000 + i64::from(device.nsec))
    }

    /// Whether it pairs itself with the system's clock, which then has to run by
    /// the TSC.
    pub fn is_precise(&self) -> bool {
        let mut data = Precise::default();
        // SAFETY: the structure that this ioctl writes.
        let ret = unsafe { libc::ioctl(self.0.as_raw_fd(), SYS_OFFSET_PRECISE, &raw mut data) };
        ret >= 0
    }
}
