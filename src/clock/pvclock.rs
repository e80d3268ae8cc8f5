//! The arithmetic that a guest runs on the fields of its clock page.
//!
//! Source: the comment beside `vcpu_time_info` in Xen's public `xen.h`, and
//! Linux `arch/x86/include/asm/pvclock.h`.

use super::{NANOS_PER_SEC, TscFrequency};

/// Ticks to nanoseconds as a guest computes them: shift first, then the
/// product with `mul`, then 32 bits off.
///
/// A negative `shift` drops low bits of `delta`; a positive one drops high
/// bits once `delta >= 2^(64 - shift)`, as the guest's own 64-bit shift does.
/// The product has at most 96 bits and loses nothing. Shifts of 64 and more
/// in either direction give 0 (a guest's would be undefined).
#[must_use]
pub fn pvclock_scale_delta(delta: u64, mul: u32, shift: i8) -> u64 {
    let distance = u32::from(shift.unsigned_abs());
    let shifted = if shift < 0 { delta.checked_shr(distance) } else { delta.checked_shl(distance) };
    let product = u128::from(shifted.unwrap_or(0)) * u128::from(mul);
    // 64 + 32 bits, less 32.
    u64::try_from(product >> 32).unwrap_or(u64::MAX)
}

/// The TSC frequency in kHz that Linux derives from a published `mul` and
/// `shift` (`pvclock_tsc_khz`), and trusts as exact for its TSC clocksource.
///
/// `None` where Linux would divide by 0 or shift out of its word.
#[must_use]
pub fn linux_tsc_khz(mul: u32, shift: i8) -> Option<u64> {
    let khz = (1_000_000u64 << 32).checked_div(u64::from(mul))?;
    let distance = u32::from(shift.unsigned_abs());
    if shift < 0 { khz.checked_shl(distance) } else { khz.checked_shr(distance) }
}

/// The pair (mul, shift) nearest to the exact rate of `frequency`.
///
/// All 32 bits of `mul` are used, so that the rate is within 2^-32 (0.23 ppb)
/// of the exact one. Where the low bits of `mul` come out 0 under a negative
/// shift they are given back to the shift: the same rate, but the guest then
/// drops fewer low bits of its TSC. At 4 GHz: 2^30 and 0, not 2^31 and −1.
pub(super) fn nearest_mul_shift(frequency: TscFrequency) -> (u32, i8) {
    let rate_num = u128::from(NANOS_PER_SEC) * u128::from(frequency.den()); // < 2^82
    // 100 GHz needs −6, 1 MHz needs 10. The first shift whose product fits in
    // 32 bits is the one that fills them.
    let mut fit = (u32::MAX, -7i8);
    for shift in -7i8..=11 {
        let scaled = rate_num << (32 - i32::from(shift)); // < 2^121
        let rounded = (2 * scaled + frequency.num()) / (2 * frequency.num());
        if let Ok(mul) = u32::try_from(rounded) {
            fit = (mul, shift);
            break;
        }
    }
    let (mut mul, mut shift) = fit;
    while shift < 0 && mul.is_multiple_of(2) {
        mul /= 2;
        shift += 1;
    }
    (mul, shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_delta_boundaries() {
        let table: &[(u64, u32, i8, u64)] = &[
            (0, u32::MAX, 0, 0),
            (1, u32::MAX, 0, 0),
            (1, 1 << 31, 1, 1),
            (2, 1 << 31, 0, 1),
            (3, 1 << 31, -1, 0),
            (4, 1 << 31, -1, 1),
            (u64::MAX, u32::MAX, 0, 0xffff_fffe_ffff_ffff),
            (u64::MAX, 1 << 31, 1, (1 << 63) - 1), // the top bit is lost
            (1 << 63, 1 << 31, 1, 0),
            (u64::MAX, u32::MAX, 63, 0x7fff_ffff_8000_0000),
            (u64::MAX, u32::MAX, 64, 0),
            (u64::MAX, u32::MAX, i8::MAX, 0),
            (u64::MAX, u32::MAX, -63, 0),
            (u64::MAX, u32::MAX, i8::MIN, 0),
            (u64::MAX, 0, 0, 0),
        ];
        for &(delta, mul, shift, expected) in table {
            assert_eq!(
                pvclock_scale_delta(delta, mul, shift),
                expected,
                "delta {delta:#x} mul {mul:#x} shift {shift}"
            );
        }
    }

    #[test]
    fn known_frequencies() {
        let table: &[(u64, u32, i8)] = &[
            (1_000_000, 1 << 31, 1),
            (2_000_000, 1 << 31, 0),
            (4_000_000, 1 << 30, 0), // and not 1 << 31 with shift −1
            (8_000_000, 1 << 29, 0),
            (2_500_000, 3_435_973_837, -1),
            (3_000_000, 2_863_311_531, -1),
            (100_000, 2_684_354_560, 4),
            (1_000, 4_194_304_000, 10),
            (100_000_000, 2_748_779_069, -6),
        ];
        for &(khz, mul, shift) in table {
            let frequency = TscFrequency::from_khz(khz).unwrap();
            assert_eq!(nearest_mul_shift(frequency), (mul, shift), "{khz} kHz");
        }
    }

    #[test]
    fn linux_reads_the_frequency_back() {
        assert_eq!(linux_tsc_khz(0, 0), None);
        assert_eq!(linux_tsc_khz(1 << 31, 1), Some(1_000_000));
        // Rounded up, the last bit of mul costs Linux two kHz; rounded down it does not.
        assert_eq!(linux_tsc_khz(2_863_311_531, -1), Some(2_999_998));
        assert_eq!(linux_tsc_khz(2_863_311_530, -1), Some(3_000_000));
    }
}
