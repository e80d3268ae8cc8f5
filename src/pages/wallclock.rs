//! The wallclock in `shared_info`: UTC at system time 0.
//!
//! Layout: [`SharedInfo`] and [`SharedInfo32`]. `wc_version`, `wc_sec` and
//! `wc_nsec` follow the event-channel masks; `wc_sec_hi` follows them at once
//! on 64-bit, and closes the architecture's part on 32-bit.

use core::mem::offset_of;

use vm_memory::{Address, GuestAddress};
use xen_abi::arch_x86::{SharedInfo, SharedInfo32};

use super::memory::{READ_TRIES, WORD, guest_words};
use super::protocol::{publish_versioned, read_versioned};
use super::{GuestRam, PageError, Published, Width};
use crate::clock::WallclockEpoch;

const WHAT: &str = "shared_info wallclock";

/// Offset of `wc_version`; `wc_sec` and `wc_nsec` are the next two words.
const fn version_offset(layout: Width) -> usize {
    match layout {
        Width::Bits64 => offset_of!(SharedInfo, wc_version),
        Width::Bits32 => offset_of!(SharedInfo32, wc_version),
    }
}

/// Words from `wc_version` to `wc_sec_hi`.
const fn sec_hi_word(layout: Width) -> usize {
    let offset = match layout {
        Width::Bits64 => offset_of!(SharedInfo, wc_sec_hi),
        Width::Bits32 => offset_of!(SharedInfo32, arch.wc_sec_hi),
    };
    (offset - version_offset(layout)) / WORD
}

const _: () = assert!(offset_of!(SharedInfo, wc_sec) == version_offset(Width::Bits64) + WORD);
const _: () = assert!(offset_of!(SharedInfo32, wc_sec) == version_offset(Width::Bits32) + WORD);

fn version_gpa(shared_info: GuestAddress, layout: Width) -> Result<GuestAddress, PageError> {
    let gpa = shared_info.raw_value();
    let unmapped = PageError::Unmapped { what: WHAT, gpa, len: 4096 };
    shared_info.checked_add(version_offset(layout) as u64).ok_or(unmapped)
}

/// Publishes the wallclock epoch into the `shared_info` at `shared_info_gpa`.
///
/// An epoch that is already there is left alone. The caller is the only writer
/// of the wallclock.
///
/// # Errors
/// [`PageError::Misaligned`], [`PageError::Unmapped`].
pub fn publish_wallclock(
    mem: &GuestRam,
    shared_info_gpa: GuestAddress,
    layout: Width,
    epoch: WallclockEpoch,
) -> Result<Published, PageError> {
    let sec_hi = sec_hi_word(layout);
    let words = guest_words(mem, WHAT, version_gpa(shared_info_gpa, layout)?, sec_hi + 1)?;
    let values = [epoch.wc_sec(), epoch.nsec, epoch.wc_sec_hi()];
    let written = publish_versioned(words.word(0)?, words.at([1, 2, sec_hi])?, values);
    if written {
        words.mark_dirty(0, sec_hi + 1);
    }
    Ok(Published::from_written(written))
}

/// Reads the wallclock epoch as a guest does, whoever wrote it.
///
/// # Errors
/// [`PageError::Misaligned`], [`PageError::Unmapped`], [`PageError::Unstable`].
pub fn read_wallclock(
    mem: &GuestRam,
    shared_info_gpa: GuestAddress,
    layout: Width,
) -> Result<WallclockEpoch, PageError> {
    let sec_hi = sec_hi_word(layout);
    let gpa = version_gpa(shared_info_gpa, layout)?;
    let words = guest_words(mem, WHAT, gpa, sec_hi + 1)?;
    let read = read_versioned(words.word(0)?, words.at([1, 2, sec_hi])?, READ_TRIES);
    let unstable = PageError::Unstable { what: WHAT, gpa: gpa.raw_value(), tries: READ_TRIES };
    let (_, [sec, nsec, sec_hi]) = read.ok_or(unstable)?;
    Ok(WallclockEpoch { sec: u64::from(sec_hi) << 32 | u64::from(sec), nsec })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    const RAM: u64 = 0x4000;
    const SHARED_INFO: GuestAddress = GuestAddress(0x1000);

    fn ram() -> GuestRam {
        let size = usize::try_from(RAM).unwrap();
        GuestRam::from_ranges(&[(GuestAddress(0), size)]).unwrap()
    }

    fn word(mem: &GuestRam, gpa: u64) -> u32 {
        mem.read_obj(GuestAddress(gpa)).unwrap()
    }

    #[test]
    fn lands_where_xen_puts_it() {
        let epoch = WallclockEpoch { sec: 3 << 32 | 5, nsec: 7 };
        for (layout, base, hi) in [(Width::Bits64, 0x1c00, 0x1c0c), (Width::Bits32, 0x1900, 0x1924)]
        {
            let mem = ram();
            let published = publish_wallclock(&mem, SHARED_INFO, layout, epoch).unwrap();
            assert!(published.is_rewritten());
            let words = [base, base + 4, base + 8, hi].map(|gpa| word(&mem, gpa));
            assert_eq!(words, [2, 5, 7, 3], "{layout:?}");
            assert_eq!(read_wallclock(&mem, SHARED_INFO, layout), Ok(epoch));
            let others = (0..RAM).step_by(4).filter(|gpa| word(&mem, *gpa) != 0).count();
            assert_eq!(others, 4, "{layout:?} wrote outside of its words");
        }
    }

    #[test]
    fn the_same_epoch_is_not_rewritten() {
        let mem = ram();
        let epoch = WallclockEpoch { sec: 1, nsec: 2 };
        publish_wallclock(&mem, SHARED_INFO, Width::Bits64, epoch).unwrap();
        let again = publish_wallclock(&mem, SHARED_INFO, Width::Bits64, epoch).unwrap();
        assert_eq!(again, Published::Unchanged);
        assert_eq!(word(&mem, 0x1c00), 2);
    }

    #[test]
    fn bad_addresses_are_named() {
        let mem = ram();
        let publish = |gpa| {
            publish_wallclock(&mem, GuestAddress(gpa), Width::Bits64, WallclockEpoch::default())
        };
        assert!(matches!(publish(0x1002), Err(PageError::Misaligned { gpa: 0x1c02, .. })));
        assert!(matches!(publish(RAM), Err(PageError::Unmapped { .. })));
        assert!(matches!(publish(RAM - 0xc0c), Err(PageError::Unmapped { .. })));
        assert!(matches!(publish(u64::MAX - 3), Err(PageError::Unmapped { .. })));
    }
}
