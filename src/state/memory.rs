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
const RUN: usize = 16;

/// Pages on their way into a section.
struct Batch<'a, W> {
    to: &'a mut StateWriter<W>,
    runs: Vec<(u64, u32)>,
    contents: Vec<u8>,
    sections: u32,
    pages: u64,
}

impl<W: Write> Batch<'_, W> {
    fn add(&mut self, frame: u64, page: &[u8]) -> Result<(), StateError> {
        match self.runs.last_mut() {
            Some((first, pages)) if *first + u64::from(*pages) == frame => *pages += 1,
            _ => self.runs.push((frame, 1)),
        }
        self.contents.extend_from_slice(page);
        self.pages += 1;
        if self.contents.len() >= MOST_PAGES * PAGE { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), StateError> {
        if self.runs.is_empty() {
            return Ok(());
        }
        let count = u32::try_from(self.runs.len()).unwrap_or(u32::MAX);
        let mut payload = Vec::with_capacity(8 + self.runs.len() * RUN + self.contents.len());
        payload.extend_from_slice(&count.to_le_bytes());
        payload.extend_from_slice(&[0; 4]);
        for (first, pages) in self.runs.drain(..) {
            payload.extend_from_slice(&first.to_le_bytes());
            payload.extend_from_slice(&pages.to_le_bytes());
            payload.extend_from_slice(&[0; 4]);
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
    let mut batch = Batch { to, runs: Vec::new(), contents: Vec::new(), sections: 0, pages: 0 };
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
            0 => {
                let len = (pages as usize).checked_mul(PAGE).filter(|len| *len <= contents.len());
                let (bytes, left) = contents.split_at(len.ok_or_else(short)?);
                memory.write_slice(bytes, GuestAddress(gpa)).map_err(failed)?;
                contents = left;
            }
            1 if pages <= MOST_ZEROES => {
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
    fn a_page_that_became_zero() {
        let ram = ram();
        ram.write_obj(5u64, GuestAddress(0x3000)).unwrap();
        read_pages(&section(&[(3, 1, 1)], 0), &ram).unwrap();
        assert_eq!(ram.read_obj::<u64>(GuestAddress(0x3000)).unwrap(), 0);
    }
}
