//! Where the code of a kernel lies, for whoever has to read its instructions.

use super::Segment;
use object::elf::{SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, SHT_PROGBITS, STT_FUNC};
use object::read::elf::{FileHeader, SectionHeader, Sym};
use object::{Endianness, ReadRef};
use std::ops::Range;

/// The code of a kernel, in guest physical addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelCode {
    /// 64 or 32, as the ELF's class.
    pub bitness: u32,
    /// Ranges of instructions, rising and disjoint: the executable sections, or
    /// where the file has no section table its executable segments.
    pub ranges: Vec<Range<u64>>,
    /// Where functions begin, rising; empty for a kernel without symbols.
    pub functions: Vec<u64>,
}

/// Finds the code of an ELF whose segments, with their offsets in the file and
/// their virtual addresses, are `segments`.
pub(super) fn find<'data, H, R>(
    header: &H,
    endian: Endianness,
    data: R,
    segments: &[(Segment, u64, u64)],
) -> KernelCode
where
    H: FileHeader<Endian = Endianness>,
    R: ReadRef<'data>,
{
    let bitness = if header.is_type_64() { 64 } else { 32 };
    // A damaged section table is no reason to refuse a kernel that loads.
    let sections = header.sections(endian, data).unwrap_or_default();
    let executable = |writable: bool| {
        let ranges = sections.iter().filter_map(|section| {
            let flags: u64 = section.sh_flags(endian).into();
            let wanted = u64::from(SHF_ALLOC | SHF_EXECINSTR);
            let is_code = section.sh_type(endian) == SHT_PROGBITS
                && flags & wanted == wanted
                && (flags & u64::from(SHF_WRITE) != 0) == writable;
            let (offset, size): (u64, u64) =
                (section.sh_offset(endian).into(), section.sh_size(endian).into());
            is_code.then(|| in_memory(segments, offset, size)).flatten()
        });
        merged(ranges.collect())
    };
    // Linux 7.2 calls its .data executable; only where nothing else is code, as
    // in a guest linked into one writable section, is that believed.
    let mut ranges = executable(false);
    if ranges.is_empty() {
        ranges = executable(true);
    }
    if ranges.is_empty() {
        let segments = segments.iter().map(|(segment, ..)| segment).filter(|s| s.executable);
        ranges = merged(segments.map(|s| s.paddr..s.paddr + s.file_size).collect());
    }
    let symbols = sections.symbols(endian, data, object::elf::SHT_SYMTAB).unwrap_or_default();
    let mut functions: Vec<u64> = symbols
        .iter()
        .filter(|symbol| symbol.st_type() == STT_FUNC && !symbol.is_undefined(endian))
        .filter_map(|symbol| physical(segments, symbol.st_value(endian).into()))
        .filter(|at| ranges.iter().any(|range| range.contains(at)))
        .collect();
    functions.sort_unstable();
    functions.dedup();
    KernelCode { bitness, ranges, functions }
}

/// Where bytes of the file lie in memory; `None` unless one segment loads all
/// of them.
fn in_memory(segments: &[(Segment, u64, u64)], offset: u64, size: u64) -> Option<Range<u64>> {
    segments.iter().find_map(|(segment, start, _)| {
        let into = offset.checked_sub(*start)?;
        let end = into.checked_add(size)?;
        (size > 0 && end <= segment.file_size).then(|| segment.paddr + into..segment.paddr + end)
    })
}

/// The physical address of a virtual one.
fn physical(segments: &[(Segment, u64, u64)], vaddr: u64) -> Option<u64> {
    segments.iter().find_map(|(segment, _, start)| {
        let into = vaddr.checked_sub(*start)?;
        (into < segment.file_size).then(|| segment.paddr + into)
    })
}

/// Sorted, and cut where they overlap. Ranges that only adjoin stay apart: each
/// begins with an instruction.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    let mut end = 0;
    ranges.retain_mut(|range| {
        range.start = range.start.max(end);
        end = end.max(range.end);
        !range.is_empty()
    });
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments() -> Vec<(Segment, u64, u64)> {
        let segment = |paddr, file_size| Segment {
            paddr,
            file_size,
            mem_size: file_size + 0x100,
            executable: true,
        };
        vec![
            (segment(0x10_0000, 0x1000), 0x200, 0xffff_8000_0000_0000),
            (segment(0x20_0000, 0x800), 0x1200, 0xffff_8000_0010_0000),
        ]
    }

    #[test]
    fn sections_lie_where_their_segment_loads_them() {
        for (offset, size, place) in [
            (0x200, 0x1000, Some(0x10_0000..0x10_1000)),
            (0x300, 0x10, Some(0x10_0100..0x10_0110)),
            (0x1200, 0x800, Some(0x20_0000..0x20_0800)),
            (0x11ff, 2, None),       // over the border of two
            (0x1fff, 2, None),       // past the bytes of the file
            (0, 0x10, None),         // in no segment
            (0x300, 0, None),        // nothing
            (u64::MAX, 2, None),     // far off
            (0x300, u64::MAX, None), // wraps
        ] {
            assert_eq!(in_memory(&segments(), offset, size), place, "{offset:#x}+{size:#x}");
        }
    }

    #[test]
    fn symbols_lie_where_their_segment_loads_them() {
        for (vaddr, place) in [
            (0xffff_8000_0000_0010, Some(0x10_0010)),
            (0xffff_8000_0010_07ff, Some(0x20_07ff)),
            (0xffff_8000_0010_0800, None),
            (0, None),
        ] {
            assert_eq!(physical(&segments(), vaddr), place, "{vaddr:#x}");
        }
    }

    #[test]
    fn overlapping_ranges_are_cut() {
        assert_eq!(
            merged(vec![40..50, 0..10, 5..8, 8..20, 20..30]),
            [0..10, 10..20, 20..30, 40..50]
        );
    }
}
