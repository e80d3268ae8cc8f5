//! Reading a `vcpu_time_info` as `public/xen.h` prescribes: version, fields and
//! TSC, version again; an odd or changed version means to start over.

#![expect(unsafe_code, reason = "memory that the hypervisor writes, and RDTSC")]

use core::arch::x86_64::_rdtsc;
use core::mem::offset_of;

use xen_abi::arch_x86::VcpuTimeInfo;

use crate::cpu::load_fence;

/// One consistent reading.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// The TSC, read between the two reads of the version.
    pub guest_tsc: u64,
    /// The line that the hypervisor published.
    pub line: Line,
    /// The version, even.
    pub version: u32,
    /// Reads thrown away before this one.
    pub retries: u32,
}

impl Reading {
    /// System time at the reading's TSC.
    #[must_use]
    pub fn system_time_ns(&self) -> u64 {
        self.line.at(self.guest_tsc)
    }
}

/// The published line from guest TSC to system time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Guest TSC at `system_time_ns`.
    pub tsc_timestamp: u64,
    /// System time at `tsc_timestamp`.
    pub system_time_ns: u64,
    /// Nanoseconds per shifted tick, times 2^32.
    pub mul: u32,
    /// Left shift of ticks before the multiplication; right where negative.
    pub shift: i8,
    /// `XEN_PVCLOCK_*`.
    pub flags: u8,
}

impl Line {
    /// System time at a TSC not before `tsc_timestamp`; wraps as the protocol's
    /// 64-bit arithmetic does.
    #[must_use]
    #[inline]
    pub fn at(&self, guest_tsc: u64) -> u64 {
        let ticks = guest_tsc.wrapping_sub(self.tsc_timestamp);
        let shift = u32::from(self.shift.unsigned_abs());
        let shifted =
            if self.shift < 0 { ticks.checked_shr(shift) } else { ticks.checked_shl(shift) };
        let product = u128::from(shifted.unwrap_or(0)) * u128::from(self.mul);
        // The protocol keeps the low 64 bits of the product's upper part.
        let ns = u64::try_from(product >> 32 & u128::from(u64::MAX)).unwrap_or(0);
        self.system_time_ns.wrapping_add(ns)
    }
}

/// Reads a clock page until it is consistent.
///
/// # Safety
/// `page` points to a `VcpuTimeInfo` that stays mapped.
#[must_use]
#[inline]
pub unsafe fn read(page: *const VcpuTimeInfo) -> Reading {
    let mut retries = 0;
    loop {
        // SAFETY: the caller's page; volatile, since Xen writes it.
        let version = unsafe { field(page, offset_of!(VcpuTimeInfo, version)) };
        // Version before data (the writer's first fence), TSC after version.
        load_fence();
        // SAFETY: RDTSC is always there.
        let guest_tsc = unsafe { _rdtsc() };
        // SAFETY: as for the version.
        let tsc_timestamp = unsafe { field(page, offset_of!(VcpuTimeInfo, tsc_timestamp)) };
        // SAFETY: as for the version.
        let system_time_ns = unsafe { field(page, offset_of!(VcpuTimeInfo, system_time)) };
        // SAFETY: as for the version.
        let mul = unsafe { field(page, offset_of!(VcpuTimeInfo, tsc_to_system_mul)) };
        // SAFETY: as for the version.
        let shift = unsafe { field(page, offset_of!(VcpuTimeInfo, tsc_shift)) };
        // SAFETY: as for the version.
        let flags = unsafe { field(page, offset_of!(VcpuTimeInfo, flags)) };
        // Data before version again (the writer's last fence).
        load_fence();
        // SAFETY: as for the version.
        let after = unsafe { field(page, offset_of!(VcpuTimeInfo, version)) };
        if version & 1 == 0 && version == after {
            let line = Line { tsc_timestamp, system_time_ns, mul, shift, flags };
            return Reading { guest_tsc, line, version, retries };
        }
        retries += 1;
        core::hint::spin_loop();
    }
}

/// Reads one field of a clock page.
///
/// # Safety
/// `page` points to a mapped `VcpuTimeInfo` with a field of type `T` at `offset`.
unsafe fn field<T: Copy>(page: *const VcpuTimeInfo, offset: usize) -> T {
    let address = page.cast::<u8>().wrapping_add(offset).cast::<T>();
    // SAFETY: passed on to the caller.
    unsafe { address.read_volatile() }
}
