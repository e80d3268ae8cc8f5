//! Unpacks a kernel where it belongs, with no buffer between.
//!
//! A vmlinux is laid out much as it lies in memory: its large segments have
//! one distance between offset and address, the others a smaller one. So the
//! payload is unpacked into guest RAM with the large ones in place, the others
//! move down, and what is left of the file becomes zero again:
//!
//! ```text
//! unpacked  | headers | text | data |   gap   | init | symbols |
//! settled   | zeros   | text | data | init | zeros             |
//! ```
//!
//! The host touches each page once instead of twice. An image that cannot be
//! settled so is taken out again and loaded segment by segment.
#![expect(unsafe_code, reason = "unpacks into guest memory that nothing else uses yet")]

use super::payload::Payload;
use super::source::{Image, to_usize};
use super::{KernelKind, LoadError, LoadedKernel, Segment, elf};
use crate::vmm::memory::{GuestRam, LEGACY_END, MemoryLayout, low_ram_mut, mark_dirty, populate};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Loads `payload` if its image fits into the RAM below 3 GiB at the place
/// that its program headers suggest; `None`, with nothing written, if not.
pub(super) fn load(
    ram: &GuestRam,
    layout: &MemoryLayout,
    payload: &Payload<'_>,
) -> Result<Option<LoadedKernel>, LoadError> {
    let Some(place) = place(layout, payload) else { return Ok(None) };
    // SAFETY: fresh memory (a condition of `load_kernel`): no vCPU runs in it,
    // and no other reference to its bytes exists. `populate` makes none.
    let Some(low) = (unsafe { low_ram_mut(ram) }) else { return Ok(None) };
    let Some(image) = low.get_mut(place.clone()) else { return Ok(None) };
    populated(ram, &place, || payload.unpack_into(image))?;
    mark_dirty(ram, place.start as u64, place.len());

    let kind = KernelKind::BzImage(payload.compression());
    payload.check_elf(image)?;
    let (kernel, offsets) = elf::check(layout, &Image::Bytes(Cow::Borrowed(image)), kind)?;
    if let Some(moves) = moves(&kernel.segments, &offsets, place.start) {
        settle(low, place, &moves);
        moves.iter().for_each(|m| mark_dirty(ram, m.to as u64, m.size));
    } else {
        let copy = image.to_vec();
        image.fill(0);
        elf::copy(ram, &Image::Bytes(Cow::Owned(copy)), &kernel.segments, &offsets)?;
    }
    Ok(Some(kernel))
}

/// Where the image should lie: its large segments at their addresses, and
/// nothing of it outside the RAM from 1 MiB to 3 GiB.
fn place(layout: &MemoryLayout, payload: &Payload<'_>) -> Option<Range<usize>> {
    let start = elf::distance(&payload.head())?;
    let end = start.checked_add(payload.size())?;
    (start >= LEGACY_END && end <= layout.low_ram_end()).then(|| to_usize(start)..to_usize(end))
}

/// Runs `work` while a second thread makes the pages of `place` resident ahead
/// of it: clearing them is a good part of the time that unpacking takes.
fn populated<T>(ram: &GuestRam, place: &Range<usize>, work: impl FnOnce() -> T) -> T {
    if std::thread::available_parallelism().map_or(1, usize::from) == 1 {
        return work();
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let helper = || populate(ram, place.start as u64, place.len(), &stop);
        // Without a thread the work only takes longer.
        let _helper = std::thread::Builder::new().spawn_scoped(scope, helper);
        let done = work();
        // Relaxed: only a hint that there is no need to go on.
        stop.store(true, Ordering::Relaxed);
        done
    })
}

/// Bytes of one segment's file part: indices into the RAM below 3 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Move {
    from: usize,
    to: usize,
    size: usize,
}

/// The moves that settle an image at `base`; `None` unless every segment goes
/// down or stays, in rising order, so that none overwrites what is still to be
/// moved or has been.
fn moves(segments: &[Segment], offsets: &[u64], base: usize) -> Option<Vec<Move>> {
    let mut moves: Vec<Move> = segments
        .iter()
        .zip(offsets)
        .filter(|(segment, _)| segment.file_size > 0)
        .map(|(segment, offset)| Move {
            // No overflow: the image and the segments lie below 3 GiB.
            from: base + to_usize(*offset),
            to: to_usize(segment.paddr),
            size: to_usize(segment.file_size),
        })
        .collect();
    moves.sort_by_key(|m| m.from);
    let down = moves.iter().all(|m| m.to <= m.from);
    let apart = moves
        .windows(2)
        .all(|m| m[0].from + m[0].size <= m[1].from && m[0].to + m[0].size <= m[1].to);
    (down && apart).then_some(moves)
}

/// Moves the segments of the image at `place`, and clears the rest of it.
fn settle(low: &mut [u8], place: Range<usize>, moves: &[Move]) {
    for m in moves.iter().filter(|m| m.from != m.to) {
        low.copy_within(m.from..m.from + m.size, m.to);
    }
    let mut settled = place.start;
    for m in moves {
        clear(low, settled..m.to);
        settled = settled.max(m.to + m.size);
    }
    clear(low, settled..place.end);
}

/// Writes zeros where there are none. Most of what is cleared is zero already:
/// reading it is cheaper.
fn clear(low: &mut [u8], range: Range<usize>) {
    const PIECE: usize = 4096;
    // An empty range where segments adjoin; the image lies within `low`.
    let Some(bytes) = low.get_mut(range) else { return };
    for piece in bytes.chunks_mut(PIECE) {
        if piece != &[0; PIECE][..piece.len()] {
            piece.fill(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(paddr: u64, file_size: u64) -> Segment {
        Segment { paddr, file_size, mem_size: file_size, executable: false }
    }

    /// Segments as (offset, address, size), settled from an image at 100.
    fn settled(segments: &[(u64, u64, u64)]) -> Option<(Vec<u8>, Vec<u8>)> {
        let (offsets, segments): (Vec<u64>, Vec<Segment>) =
            segments.iter().map(|(offset, to, size)| (*offset, segment(*to, *size))).unzip();
        let image: Vec<u8> = (1..=100).collect();
        let mut low = vec![0; 300];
        low[100..200].copy_from_slice(&image);
        let moves = moves(&segments, &offsets, 100)?;
        settle(&mut low, 100..200, &moves);
        let mut expected = vec![0; 300];
        for (segment, offset) in segments.iter().zip(&offsets) {
            let (from, to, size) =
                (to_usize(*offset), to_usize(segment.paddr), to_usize(segment.file_size));
            expected[to..to + size].copy_from_slice(&image[from..from + size]);
        }
        Some((low, expected))
    }

    #[test]
    fn segments_move_down_in_rising_order() {
        for segments in [
            &[(10, 110, 20), (40, 140, 10)][..],            // nothing moves
            &[(10, 110, 20), (40, 130, 60)],                // onto its own source
            &[(10, 105, 30), (40, 135, 30), (70, 165, 30)], // each over the one before
            &[(10, 40, 20), (40, 90, 30)],                  // below the image
            &[(40, 130, 20), (10, 110, 15)],                // not in the file's order
            &[(0, 100, 100)],                               // all of it
            &[(10, 110, 0), (50, 120, 5)],                  // one without bytes
            &[],
        ] {
            let (low, expected) = settled(segments).unwrap();
            assert_eq!(low, expected, "{segments:?}");
        }
    }

    #[test]
    fn what_would_overwrite_is_not_settled() {
        for segments in [
            &[(10, 111, 20)][..],            // up
            &[(10, 110, 20), (40, 120, 10)], // onto another
            &[(10, 110, 20), (20, 115, 10)], // the same bytes twice
            &[(10, 110, 10), (40, 100, 5)],  // past another
        ] {
            assert_eq!(settled(segments), None, "{segments:?}");
        }
    }
}
