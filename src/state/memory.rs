//! Guest memory in sections of pages. Pages of zeroes are left out.
//!
//! ```text
//! u32 number of runs, u32 0
//! each run: u64 first frame, u32 pages, u32 kind (0 contents follow, 1 zeroes)
//! then the contents of all runs of kind 0, 4096 bytes a page
//! ```
//!
//! Kind 1 is for a stream in which a page was sent before and is zero now.

use std::io::Write;

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{Section, StateError, StateWriter, tag};
use crate::pages::GuestRam;

const PAGE: usize = 4096;
/// The most pages with contents in one section: 1 MiB.
pub const MOST_PAGES: usize = 256;
/// The most pages that a run of zeroes may name.
const MOST_ZEROES: u32 = 1 << 20;
/// The most runs in one section that we write.
const MOST_RUNS: usize = 4096;
const RUN: usize = 16;
const CONTENTS: u32 = 0;
const ZEROES: u32 = 1;

/// Pages on their way into a section.
struct Batch<'a, W> {
    to: &'a mut StateWriter<W>,
    /// First frame, pages, kind.
    runs: Vec<(u64, u32, u32)>,
    contents: Vec<u8>,
    sections: u32,
    pages: u64,
}

impl<'a, W: Write> Batch<'a, W> {
    fn new(to: &'a mut StateWriter<W>) -> Self {
        Self { to, runs: Vec::new(), contents: Vec::new(), sections: 0, pages: 0 }
    }

    fn add(&mut self, frame: u64, page: &[u8]) -> Result<(), StateError> {
        self.extend(frame, CONTENTS);
        self.contents.extend_from_slice(page);
        self.pages += 1;
        if self.contents.len() >= MOST_PAGES * PAGE { self.flush() } else { Ok(()) }
    }

    /// A page that was sent before and is zero now.
    fn add_zero(&mut self, frame: u64) -> Result<(), StateError> {
        self.extend(frame, ZEROES);
        if self.runs.len() >= MOST_RUNS { self.flush() } else { Ok(()) }
    }

    fn extend(&mut self, frame: u64, kind: u32) {
        match self.runs.last_mut() {
            Some((first, pages, of))
                if *of == kind && *first + u64::from(*pages) == frame && *pages < MOST_ZEROES =>
            {
                *pages += 1;
            }
            _ => self.runs.push((frame, 1, kind)),
        }
    }

    fn flush(&mut self) -> Result<(), StateError> {
        if self.runs.is_empty() {
            return Ok(());
        }
        let count = u32::try_from(self.runs.len()).unwrap_or(u32::MAX);
        let mut payload = Vec::with_capacity(8 + self.runs.len() * RUN + self.contents.len());
        payload.extend_from_slice(&count.to_le_bytes());
        payload.extend_from_slice(&[0; 4]);
        for (first, pages, kind) in self.runs.drain(..) {
            payload.extend_from_slice(&first.to_le_bytes());
            payload.extend_from_slice(&pages.to_le_bytes());
            payload.extend_from_slice(&kind.to_le_bytes());
        }
        payload.append(&mut self.contents);
        self.to.section(tag::PAGES, self.sections, &payload)?;
        self.sections += 1;
        Ok(())
    }
}

/// Writes all memory of a guest that does not run; the number of pages that
/// were not zero.
///
/// # Errors
/// As [`StateWriter::section`].
pub fn write_memory<W: Write>(
    to: &mut StateWriter<W>,
    memory: &GuestRam,
) -> Result<u64, StateError> {
    /// Bytes that are looked at together.
    const PIECE: usize = MOST_PAGES * PAGE;
    let mut batch = Batch::new(to);
    let mut piece = vec![0; PIECE];
    for region in memory.iter() {
        let start = region.start_addr().raw_value();
        let mut done = 0;
        while done < region.len() {
            let left = usize::try_from(region.len() - done).unwrap_or(PIECE).min(PIECE);
            let gpa = start + done;
            let bytes = &mut piece[..left];
            memory
                .read_slice(bytes, GuestAddress(gpa))
                .map_err(|error| StateError::Memory { gpa, why: error.to_string() })?;
            for (frame, page) in (gpa >> 12..).zip(bytes.chunks(PAGE)) {
                if !is_zero(page) {
                    batch.add(frame, page)?;
                }
            }
            done += left as u64;
        }
    }
    batch.flush()?;
    Ok(batch.pages)
}

/// Writes these pages again, in rising order: what they hold now, also zeroes.
/// The number of pages with contents.
///
/// # Errors
/// As [`StateWriter::section`], and [`StateError::Memory`].
pub fn write_pages<W: Write>(
    to: &mut StateWriter<W>,
    memory: &GuestRam,
    frames: impl IntoIterator<Item = u64>,
) -> Result<u64, StateError> {
    let mut batch = Batch::new(to);
    let mut page = [0; PAGE];
    for frame in frames {
        let gpa = frame * PAGE as u64;
        memory
            .read_slice(&mut page, GuestAddress(gpa))
            .map_err(|error| StateError::Memory { gpa, why: error.to_string() })?;
        if is_zero(&page) { batch.add_zero(frame)? } else { batch.add(frame, &page)? }
    }
    batch.flush()?;
    Ok(batch.pages)
}

fn is_zero(page: &[u8]) -> bool {
    let (words, rest) = page.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// Puts the pages of a section into guest memory.
///
/// # Errors
/// [`StateError::Contents`] for a section that is no list of pages,
/// [`StateError::Memory`] where the guest has no memory.
pub fn read_pages(section: &Section, memory: &GuestRam) -> Result<(), StateError> {
    let refused = |why: &str| StateError::Contents { tag: section.tag, why: why.to_owned() };
    let short = || refused("its list of pages is cut off");
    let (count, rest) = section.payload.split_first_chunk::<8>().ok_or_else(short)?;
    let [c0, c1, c2, c3, ..] = *count;
    let count = u32::from_le_bytes([c0, c1, c2, c3]) as usize;
    let list = count.checked_mul(RUN).filter(|bytes| *bytes <= rest.len()).ok_or_else(short)?;
    let (list, mut contents) = rest.split_at(list);
    for run in list.as_chunks::<RUN>().0 {
        let [f0, f1, f2, f3, f4, f5, f6, f7, p0, p1, p2, p3, k0, k1, k2, k3] = *run;
        let first = u64::from_le_bytes([f0, f1, f2, f3, f4, f5, f6, f7]);
        let pages = u32::from_le_bytes([p0, p1, p2, p3]);
        let gpa = first.checked_mul(PAGE as u64).ok_or_else(|| refused("a frame out of range"))?;
        let failed =
            |error: vm_memory::GuestMemoryError| StateError::Memory { gpa, why: error.to_string() };
        match u32::from_le_bytes([k0, k1, k2, k3]) {
            CONTENTS => {
                let len = (pages as usize).checked_mul(PAGE).filter(|len| *len <= contents.len());
                let (bytes, left) = contents.split_at(len.ok_or_else(short)?);
                memory.write_slice(bytes, GuestAddress(gpa)).map_err(failed)?;
                contents = left;
            }
            ZEROES if pages <= MOST_ZEROES => {
                for page in 0..u64::from(pages) {
                    let at = GuestAddress(gpa).checked_add(page * PAGE as u64);
                    let at = at.ok_or_else(|| refused("a frame out of range"))?;
                    memory.write_slice(&[0; PAGE], at).map_err(failed)?;
                }
            }
            _ => return Err(refused("a run of pages of no known kind")),
        }
    }
    if contents.is_empty() { Ok(()) } else { Err(refused("pages without a place")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StateReader;

    fn ram() -> GuestRam {
        let ranges = [(GuestAddress(0), 4 << 20), (GuestAddress(0xfeff_8000), 2 * PAGE)];
        GuestRam::from_ranges(&ranges).unwrap()
    }

    #[test]
    fn memory_comes_back_and_zeroes_cost_nothing() {
        let from = ram();
        let mut expected = Vec::new();
        for (frame, byte) in [(0u64, 1u8), (1, 2), (7, 3), (1023, 4), (0xfeff8, 5)] {
            from.write_slice(&[byte; 3], GuestAddress(frame * 4096 + 4093)).unwrap();
            expected.push((frame, byte));
        }
        for frame in 300..700u64 {
            from.write_obj(frame, GuestAddress(frame * 4096)).unwrap();
        }
        let mut writer = StateWriter::new(Vec::new()).unwrap();
        assert_eq!(write_memory(&mut writer, &from).unwrap(), 405);
        let (bytes, all, pages) = writer.finish().unwrap();
        assert!(all < 406 * 4096 + 200 && pages < all, "{all} {pages}");
        let to = ram();
        let mut reader = StateReader::new(bytes.as_slice()).unwrap();
        while let Some(section) = reader.next_section().unwrap() {
            read_pages(&section, &to).unwrap();
        }
        let all_of = |ram: &GuestRam| {
            let mut low = vec![0; 4 << 20];
            ram.read_slice(&mut low, GuestAddress(0)).unwrap();
            let mut high = vec![0; 2 * PAGE];
            ram.read_slice(&mut high, GuestAddress(0xfeff_8000)).unwrap();
            (low, high)
        };
        assert!(all_of(&from) == all_of(&to));
    }

    fn section(runs: &[(u64, u32, u32)], contents: usize) -> Section {
        let mut payload = u64::from(u32::try_from(runs.len()).unwrap()).to_le_bytes().to_vec();
        for (first, pages, kind) in runs {
            payload.extend_from_slice(&first.to_le_bytes());
            payload.extend_from_slice(&pages.to_le_bytes());
            payload.extend_from_slice(&kind.to_le_bytes());
        }
        payload.resize(payload.len() + contents, 9);
        Section { tag: tag::PAGES, index: 0, payload }
    }

    #[test]
    fn lists_that_are_none_are_refused() {
        let ram = ram();
        for (runs, contents) in [
            (&[(0, 1, 0)][..], 4095),
            (&[(0, 1, 0)], 4097),
            (&[(0, 1, 2)], 0),
            (&[(u64::MAX, 1, 0)], 4096),
            (&[(1 << 52, 1, 0)], 4096),
            (&[(1 << 52, 1, 1)], 0),
            (&[(1024, 1, 0)], 4096),
            (&[(1023, 2, 0)], 8192),
            (&[(0, u32::MAX, 0)], 4096),
            (&[(0, u32::MAX, 1)], 0),
        ] {
            assert!(read_pages(&section(runs, contents), &ram).is_err(), "{runs:?}");
        }
        let mut cut = section(&[(0, 1, 0)], 4096);
        for len in [0, 7, 8, 23] {
            cut.payload.truncate(4096 + 24);
            let mut short = cut.clone();
            short.payload.truncate(len);
            assert!(read_pages(&short, &ram).is_err(), "{len}");
        }
    }

    #[test]
    fn pages_sent_again_have_their_new_contents() {
        let (from, to) = (ram(), ram());
        for frame in 0..20u64 {
            from.write_obj(frame + 1, GuestAddress(frame * 4096)).unwrap();
        }
        let mut writer = StateWriter::new(Vec::new()).unwrap();
        write_memory(&mut writer, &from).unwrap();
        for (frame, value) in [(3u64, 0u64), (4, 0), (5, 77), (6, 0), (0xfeff9, 9)] {
            from.write_obj(value, GuestAddress(frame * 4096)).unwrap();
        }
        let again = write_pages(&mut writer, &from, [3, 4, 5, 6, 1023, 0xfeff9]).unwrap();
        assert_eq!(again, 2);
        let (bytes, ..) = writer.finish().unwrap();
        let mut reader = StateReader::new(bytes.as_slice()).unwrap();
        while let Some(section) = reader.next_section().unwrap() {
            read_pages(&section, &to).unwrap();
        }
        for frame in (0..1024u64).chain([0xfeff8, 0xfeff9]) {
            let at = GuestAddress(frame * 4096);
            let (sent, got) = (from.read_obj::<u64>(at).unwrap(), to.read_obj::<u64>(at).unwrap());
            assert_eq!(sent, got, "frame {frame:#x}");
        }
    }

    #[test]
    fn a_page_that_became_zero() {
        let ram = ram();
        ram.write_obj(5u64, GuestAddress(0x3000)).unwrap();
        read_pages(&section(&[(3, 1, 1)], 0), &ram).unwrap();
        assert_eq!(ram.read_obj::<u64>(GuestAddress(0x3000)).unwrap(), 0);
    }
}
