//! The VMClock page, and the generation identifier beside it.
//!
//! Layout: [`VmclockAbi`], 0x70 bytes at the start of a page of its own. The
//! sequence count is a version like the others' ([`write_versioned`]): odd
//! during an update, and the reader masks the odd bit off before it compares
//! (Linux `ptp_vmclock`, `vmclock_get_crosststamp`). The constant fields are
//! written with every update, so that a guest which scribbled there reads them
//! again.
//!
//! [`write_versioned`]: super::protocol::write_versioned

use core::array;
use core::mem::offset_of;
use core::sync::atomic::AtomicU32;

use vm_memory::{Address, GuestAddress};
use xen_abi::vmclock::VmclockAbi;
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::memory::{READ_TRIES, WORD, guest_words};
use super::protocol::{Word, publish_versioned, read_versioned};
use super::{GuestRam, PageError, Published};

/// Bytes of the page: what Linux asks for before it offers `/dev/vmclock0`.
pub const VMCLOCK_PAGE_SIZE: usize = 4096;

const WHAT: &str = "VMClock page";
/// 32-bit words of the structure at the start of the page.
pub const VMCLOCK_WORDS: usize = size_of::<VmclockAbi>() / WORD;
const WORDS: usize = VMCLOCK_WORDS;
const SEQ: usize = offset_of!(VmclockAbi, seq_count) / WORD;
const DATA: usize = WORDS - 1;

/// Every word but the sequence count's.
fn data_words() -> [usize; DATA] {
    array::from_fn(|n| if n < SEQ { n } else { n + 1 })
}

fn to_words(page: &VmclockAbi) -> [u32; WORDS] {
    let bytes = page.as_bytes();
    array::from_fn(|n| {
        let word = bytes[n * WORD..].first_chunk::<WORD>();
        u32::from_le_bytes(word.copied().unwrap_or_default())
    })
}

/// Publishes a VMClock page at `gpa`; its own `seq_count` is not looked at.
///
/// A page that already says so is left alone. The caller is the only writer.
///
/// # Errors
/// [`PageError::Misaligned`] below 4-byte alignment, [`PageError::Unmapped`]
/// where the structure is not inside one region of guest RAM.
pub fn publish_vmclock(
    mem: &GuestRam,
    gpa: GuestAddress,
    page: &VmclockAbi,
) -> Result<Published, PageError> {
    let words = guest_words(mem, WHAT, gpa, WORDS)?;
    let all = to_words(page);
    let values = data_words().map(|index| all[index]);
    let written = publish_versioned(words.word(SEQ)?, words.at(data_words())?, values);
    if written {
        words.mark_dirty(0, WORDS);
    }
    Ok(Published::from_written(written))
}

/// Reads a VMClock page as a guest does, its sequence count included.
///
/// # Errors
/// As [`publish_vmclock`], and [`PageError::Unstable`] when an update was under
/// way at every one of a thousand reads.
pub fn read_vmclock(mem: &GuestRam, gpa: GuestAddress) -> Result<VmclockAbi, PageError> {
    let words = guest_words(mem, WHAT, gpa, WORDS)?;
    let read = read_versioned(words.word(SEQ)?, words.at(data_words())?, READ_TRIES);
    let (seq, values) =
        read.ok_or(PageError::Unstable { what: WHAT, gpa: gpa.raw_value(), tries: READ_TRIES })?;
    let mut bytes = [0u8; size_of::<VmclockAbi>()];
    let indexed = data_words().into_iter().zip(values).chain([(SEQ, seq)]);
    for (index, value) in indexed {
        bytes[index * WORD..][..WORD].copy_from_slice(&value.to_le_bytes());
    }
    // The lengths are equal: an array of its size always converts.
    Ok(VmclockAbi::read_from_bytes(&bytes).unwrap_or_default())
}

/// Hands the words of a VMClock page to a reader that follows the protocol
/// itself, such as one made for guests. They may change at any moment.
///
/// # Errors
/// As [`publish_vmclock`].
pub fn with_vmclock_words<R>(
    mem: &GuestRam,
    gpa: GuestAddress,
    read: impl FnOnce([&AtomicU32; VMCLOCK_WORDS]) -> R,
) -> Result<R, PageError> {
    let words = guest_words(mem, WHAT, gpa, WORDS)?;
    Ok(read(words.at(array::from_fn(|n| n))?))
}

/// Writes the 128-bit generation identifier of a VMGENID device. It has no
/// protocol: a guest reads it after the notification.
///
/// # Errors
/// As [`publish_vmclock`].
pub fn publish_generation_id(
    mem: &GuestRam,
    gpa: GuestAddress,
    id: [u8; 16],
) -> Result<(), PageError> {
    let words = guest_words(mem, "VM generation identifier", gpa, 4)?;
    for (index, chunk) in id.chunks_exact(WORD).enumerate() {
        let value = chunk.first_chunk::<WORD>().copied().unwrap_or_default();
        Word::store(words.word(index)?, u32::from_le_bytes(value));
    }
    words.mark_dirty(0, 4);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;
    use xen_abi::vmclock::VMCLOCK_MAGIC;

    const PAGE: GuestAddress = GuestAddress(0x2000);

    fn ram() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap()
    }

    fn page() -> VmclockAbi {
        VmclockAbi {
            magic: VMCLOCK_MAGIC,
            size: 0x1000,
            version: 1,
            time_sec: 0x1122_3344_5566_7788,
            tai_offset_sec: -37,
            vm_generation_counter: u64::MAX - 1,
            ..VmclockAbi::default()
        }
    }

    #[test]
    fn lands_byte_for_byte_and_comes_back() {
        let mem = ram();
        assert!(publish_vmclock(&mem, PAGE, &page()).unwrap().is_rewritten());
        let mut bytes = [0u8; 0x70];
        mem.read_slice(&mut bytes, PAGE).unwrap();
        let expected = VmclockAbi { seq_count: 2, ..page() };
        assert_eq!(bytes, expected.as_bytes());
        assert_eq!(read_vmclock(&mem, PAGE), Ok(expected));
        let mut others = [0u8; 0x1000 - 0x70];
        mem.read_slice(&mut others, GuestAddress(0x2070)).unwrap();
        assert!(others.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn the_same_page_is_not_rewritten() {
        let mem = ram();
        publish_vmclock(&mem, PAGE, &page()).unwrap();
        assert_eq!(publish_vmclock(&mem, PAGE, &page()), Ok(Published::Unchanged));
        let moved = VmclockAbi { counter_value: 1, ..page() };
        assert!(publish_vmclock(&mem, PAGE, &moved).unwrap().is_rewritten());
        assert_eq!(read_vmclock(&mem, PAGE).unwrap().seq_count, 4);
    }

    #[test]
    fn a_scribbled_sequence_count_becomes_even_again() {
        let mem = ram();
        for scribble in [1u32, u32::MAX, 0x8000_0001] {
            mem.write_obj(scribble, GuestAddress(0x200c)).unwrap();
            assert!(publish_vmclock(&mem, PAGE, &page()).unwrap().is_rewritten());
            assert_eq!(read_vmclock(&mem, PAGE).unwrap().seq_count & 1, 0);
        }
        mem.write_obj(7u32, GuestAddress(0x200c)).unwrap();
        assert!(matches!(read_vmclock(&mem, PAGE), Err(PageError::Unstable { .. })));
    }

    #[test]
    fn the_generation_identifier_is_sixteen_bytes() {
        let mem = ram();
        let id: [u8; 16] = array::from_fn(|n| u8::try_from(n).unwrap() + 1);
        publish_generation_id(&mem, PAGE, id).unwrap();
        assert_eq!(mem.read_obj::<[u8; 16]>(PAGE).unwrap(), id);
        assert_eq!(mem.read_obj::<u32>(GuestAddress(0x2010)).unwrap(), 0);
        assert!(publish_generation_id(&mem, GuestAddress(0x3ff8), id).is_err());
    }

    #[test]
    fn bad_addresses_are_named() {
        let mem = ram();
        let publish = |gpa| publish_vmclock(&mem, GuestAddress(gpa), &page());
        assert!(matches!(publish(0x2002), Err(PageError::Misaligned { .. })));
        assert!(matches!(publish(0x3fa0), Err(PageError::Unmapped { .. })));
        assert!(matches!(publish(u64::MAX - 3), Err(PageError::Unmapped { .. })));
    }
}
