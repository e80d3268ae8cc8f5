//! The page of a handover (`docs/handover.md`): what a guest that is moved shares
//! with its host.
//!
//! Nothing of it is ever read: the guest may write what it likes there, and only
//! misleads itself. The caller keeps the sequence count, and is the only writer.

use core::array;
use core::mem::offset_of;

use vm_memory::{Address, GuestAddress};
use xen_abi::handover::{HANDOVER_MAGIC, HANDOVER_VERSION, HandoverPage};

use super::memory::{WORD, guest_words};
use super::protocol::{Word, halves, write_and_go, write_versioned};
use super::{GuestRam, PageError};

const WHAT: &str = "handover page";
const PAGE_WORDS: usize = 4096 / WORD;
const SIZE: usize = size_of::<HandoverPage>();
const MAGIC: usize = offset_of!(HandoverPage, magic) / WORD;
const SIZE_WORD: usize = offset_of!(HandoverPage, size) / WORD;
const VERSION: usize = offset_of!(HandoverPage, version) / WORD;
const REQUEST: usize = offset_of!(HandoverPage, request) / WORD;
const GO: usize = offset_of!(HandoverPage, go) / WORD;
const SEQUENCE: usize = offset_of!(HandoverPage, seq_count) / WORD;
/// The record: from here to the end of the structure.
const RECORD: usize = offset_of!(HandoverPage, flags) / WORD;
const RECORD_WORDS: usize = SIZE / WORD - RECORD;
const _: () = assert!(RECORD == SEQUENCE + 1 && RECORD_WORDS == 2 * 10);
const _: () = assert!(SIZE.is_multiple_of(WORD) && HANDOVER_MAGIC != 0);

/// What the guest is told of its last move: the fields of [`HandoverPage`] by
/// the same names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the ABI's fields, described there")]
pub struct HandoverRecord {
    pub flags: u64,
    pub move_count: u64,
    pub tsc_after: u64,
    pub tsc_delta: i64,
    pub tsc_error: u64,
    pub system_time_after_ns: u64,
    pub system_time_delta_ns: i64,
    pub system_time_error_ns: u64,
    pub tai_delta_ns: i64,
    pub tai_error_ns: u64,
}

impl HandoverRecord {
    fn words(&self) -> [u32; RECORD_WORDS] {
        let fields = [
            self.flags,
            self.move_count,
            self.tsc_after,
            self.tsc_delta.cast_unsigned(),
            self.tsc_error,
            self.system_time_after_ns,
            self.system_time_delta_ns.cast_unsigned(),
            self.system_time_error_ns,
            self.tai_delta_ns.cast_unsigned(),
            self.tai_error_ns,
        ];
        array::from_fn(|n| halves(fields[n / 2])[n % 2])
    }
}

/// The page of one guest, by its address.
#[derive(Clone, Copy, Debug)]
pub struct HandoverWords<'a> {
    /// Guest memory.
    pub memory: &'a GuestRam,
    /// The page.
    pub gpa: GuestAddress,
}

impl HandoverWords<'_> {
    /// Fills a page that was just registered: its record is `first`.
    ///
    /// # Errors
    /// [`PageError::Misaligned`] below page alignment, [`PageError::Unmapped`]
    /// where the page is not guest RAM; and so for all others.
    pub fn begin(&self, first: &HandoverRecord) -> Result<(), PageError> {
        let gpa = self.gpa.raw_value();
        if !gpa.is_multiple_of(4096) {
            return Err(PageError::Misaligned { what: WHAT, gpa });
        }
        let words = guest_words(self.memory, WHAT, self.gpa, PAGE_WORDS)?;
        let record = first.words();
        for index in 0..PAGE_WORDS {
            let value = match index {
                MAGIC => HANDOVER_MAGIC,
                SIZE_WORD => u32::try_from(SIZE).unwrap_or(0),
                VERSION => HANDOVER_VERSION,
                RECORD.. => record.get(index - RECORD).copied().unwrap_or(0),
                _ => 0,
            };
            Word::store(words.word(index)?, value);
        }
        words.mark_dirty(0, PAGE_WORDS);
        Ok(())
    }

    /// Names the request that waits for an answer, 0 for none. The event that
    /// tells of it follows: its atomic operation orders this before itself.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub fn request(&self, ticket: u32) -> Result<(), PageError> {
        let words = guest_words(self.memory, WHAT, self.gpa, SIZE / WORD)?;
        Word::store(words.word(REQUEST)?, ticket);
        words.mark_dirty(REQUEST, 1);
        Ok(())
    }

    /// Publishes a record over the sequence count `sequence`, and then lets the
    /// ticket `go` go on, if one is to. Returns the new sequence count.
    ///
    /// # Errors
    /// As [`begin`](Self::begin); nothing was written.
    pub fn publish(
        &self,
        record: &HandoverRecord,
        sequence: u32,
        go: Option<u32>,
    ) -> Result<u32, PageError> {
        let words = guest_words(self.memory, WHAT, self.gpa, SIZE / WORD)?;
        let data = words.at(array::from_fn::<_, RECORD_WORDS, _>(|n| RECORD + n))?;
        let (version, values) = (words.word(SEQUENCE)?, record.words());
        match go {
            Some(ticket) => {
                write_and_go((version, sequence), data, values, (words.word(GO)?, ticket));
            }
            None => write_versioned(version, sequence, data, values),
        }
        words.mark_dirty(0, SIZE / WORD);
        // What the protocol makes of it.
        Ok((sequence.wrapping_add(1) | 1).wrapping_add(1))
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;
    use xen_abi::handover::HANDOVER_FLAG_MOVED;
    use zerocopy::FromBytes as _;

    use super::*;

    const PAGE: GuestAddress = GuestAddress(0x2000);

    fn ram() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap()
    }

    fn page(mem: &GuestRam) -> HandoverPage {
        let mut bytes = [0; SIZE];
        mem.read_slice(&mut bytes, PAGE).unwrap();
        HandoverPage::read_from_bytes(&bytes).unwrap()
    }

    fn record() -> HandoverRecord {
        HandoverRecord {
            flags: HANDOVER_FLAG_MOVED,
            move_count: 2,
            tsc_after: 3 << 40,
            tsc_delta: -4,
            tsc_error: 5,
            system_time_after_ns: 6,
            system_time_delta_ns: i64::MIN,
            system_time_error_ns: u64::MAX,
            tai_delta_ns: -9,
            tai_error_ns: 10,
        }
    }

    #[test]
    fn a_page_begins_whole_and_its_rest_is_zero() {
        let mem = ram();
        mem.write_slice(&[0xa5; 0x4000], GuestAddress(0)).unwrap();
        HandoverWords { memory: &mem, gpa: PAGE }.begin(&record()).unwrap();
        let begun = page(&mem);
        let head = (begun.magic, begun.size, begun.version, begun.request, begun.go);
        assert_eq!(head, (u32::from_le_bytes(*b"KXHO"), 0x68, 1, 0, 0));
        assert_eq!((begun.seq_count, begun.flags, begun.move_count), (0, 1, 2));
        let mut rest = vec![0; 4096 - SIZE];
        mem.read_slice(&mut rest, GuestAddress(0x2068)).unwrap();
        assert!(rest.iter().all(|byte| *byte == 0));
        for outside in [0x1fff, 0x3000] {
            assert_eq!(mem.read_obj::<u8>(GuestAddress(outside)).unwrap(), 0xa5);
        }
    }

    #[test]
    fn a_record_lands_field_by_field_and_go_comes_with_it() {
        let mem = ram();
        let words = HandoverWords { memory: &mem, gpa: PAGE };
        words.begin(&HandoverRecord::default()).unwrap();
        words.request(7).unwrap();
        assert_eq!((page(&mem).request, page(&mem).go), (7, 0));
        assert_eq!(words.publish(&record(), 0, Some(7)), Ok(2));
        let told = record();
        let expected = HandoverPage {
            magic: HANDOVER_MAGIC,
            size: 0x68,
            version: 1,
            request: 7,
            go: 7,
            seq_count: 2,
            flags: told.flags,
            move_count: told.move_count,
            tsc_after: told.tsc_after,
            tsc_delta: told.tsc_delta,
            tsc_error: told.tsc_error,
            system_time_after_ns: told.system_time_after_ns,
            system_time_delta_ns: told.system_time_delta_ns,
            system_time_error_ns: told.system_time_error_ns,
            tai_delta_ns: told.tai_delta_ns,
            tai_error_ns: told.tai_error_ns,
        };
        assert_eq!(page(&mem), expected);
        // What the guest scribbles over the count is not asked for.
        mem.write_obj(u32::MAX, GuestAddress(0x2014)).unwrap();
        assert_eq!(words.publish(&record(), u32::MAX - 1, None), Ok(0));
        assert_eq!((page(&mem).seq_count, page(&mem).go), (0, 7));
    }

    #[test]
    fn bad_addresses_are_named() {
        let mem = ram();
        let at = |gpa| HandoverWords { memory: &mem, gpa: GuestAddress(gpa) };
        let first = HandoverRecord::default();
        assert!(matches!(at(0x1004).begin(&first), Err(PageError::Misaligned { .. })));
        for gpa in [0x4000, 1 << 40, u64::MAX - 4095] {
            assert!(matches!(at(gpa).begin(&first), Err(PageError::Unmapped { .. })), "{gpa:#x}");
            assert!(matches!(at(gpa).request(1), Err(PageError::Unmapped { .. })), "{gpa:#x}");
            assert!(at(gpa).publish(&first, 0, Some(1)).is_err(), "{gpa:#x}");
        }
    }
}
