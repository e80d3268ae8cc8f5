//! Giving guest memory back to the host.
#![expect(unsafe_code, reason = "advice on mappings of guest memory")]

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::pages::GuestRam;

const PAGE_SIZE: u64 = 4096;

/// Gives whole pages back to the host: they read as zero from now on, and cost
/// nothing until somebody writes there. What a monitor with anonymous, private
/// guest memory passes to `KvmPlatform` as its `PageReleaser`.
///
/// It stops where there is no RAM, or where the host refuses.
pub fn release_pages(ram: &GuestRam, start: GuestAddress, pages: u64) {
    let Ok(len) = usize::try_from(pages.saturating_mul(PAGE_SIZE)) else { return };
    for slice in ram.get_slices(start, len).map_while(Result::ok) {
        // SAFETY: the slice lies in one live mapping, which `ram` keeps for
        // longer than this call. Its bytes may change at any time, as guest
        // memory does; all access to it is volatile.
        let failed = unsafe {
            libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), slice.len(), libc::MADV_DONTNEED)
        } != 0;
        if failed {
            let error = std::io::Error::last_os_error();
            tracing::debug!(%error, "memory could not be given back to the host");
            return;
        }
        // Its contents changed: a migration sends the zeroes.
        slice.bitmap().mark_dirty(0, slice.len());
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn ram(size: u64) -> GuestRam {
        let size = usize::try_from(size).unwrap();
        GuestRam::from_ranges(&[(GuestAddress(0), size)]).unwrap()
    }

    #[test]
    fn released_pages_read_as_zero_and_their_neighbours_stay() {
        let ram = ram(4 * MIB);
        let page = usize::try_from(PAGE_SIZE).unwrap();
        let text = vec![0x5a; 4 * page];
        // (first page, pages, which of the four at 2 MiB are zero afterwards)
        let base = 2 * MIB;
        let table = [
            (base + PAGE_SIZE, 2, [false, true, true, false]),
            (base, 4, [true; 4]),
            (base, 0, [false; 4]),
            // Beyond RAM it ends.
            (base + 3 * PAGE_SIZE, u64::MAX / PAGE_SIZE, [false, false, false, true]),
            (8 * MIB, 1, [false; 4]),
        ];
        for (start, pages, zero) in table {
            ram.write_slice(&text, GuestAddress(base)).unwrap();
            release_pages(&ram, GuestAddress(start), pages);
            for (index, zero) in (0u64..).zip(zero) {
                let mut found = vec![0; page];
                ram.read_slice(&mut found, GuestAddress(base + index * PAGE_SIZE)).unwrap();
                let wanted = if zero { 0 } else { 0x5a };
                assert!(
                    found.iter().all(|byte| *byte == wanted),
                    "{start:#x} {pages}, page {index}"
                );
            }
        }
        // The end of a region ends it.
        ram.write_slice(&text[..page], GuestAddress(4 * MIB - PAGE_SIZE)).unwrap();
        release_pages(&ram, GuestAddress(4 * MIB - PAGE_SIZE), 2);
        let mut found = vec![1; page];
        ram.read_slice(&mut found, GuestAddress(4 * MIB - PAGE_SIZE)).unwrap();
        assert!(found.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn released_memory_is_resident_no_more() {
        /// Pages of this process that the host has in memory.
        fn resident() -> i64 {
            let text = std::fs::read_to_string("/proc/self/statm").unwrap();
            text.split(' ').nth(1).unwrap().parse().unwrap()
        }
        const PAGES: u64 = 8192;
        let ram = ram(64 * MIB);
        let start = GuestAddress(16 * MIB);
        ram.write_slice(&vec![1; usize::try_from(PAGES * PAGE_SIZE).unwrap()], start).unwrap();
        let before = resident();
        release_pages(&ram, start, PAGES);
        let freed = before - resident();
        assert!(freed > i64::try_from(PAGES / 2).unwrap(), "{freed} pages of {PAGES}");
    }
}
