//! Loads a PVH ELF: segments by physical address, entry by its Xen note.

use super::source::Image;
use super::{KernelCode, KernelKind, LoadError, LoadedKernel, Segment, XenNotes, code};
use crate::vmm::memory::{GuestRam, LOW_RAM_LIMIT, MemoryLayout};
use object::elf::{
    self, EM_386, EM_X86_64, ET_DYN, ET_EXEC, FileHeader32, FileHeader64, PF_X, PT_LOAD,
};
use object::read::elf::{FileHeader, NoteIterator, ProgramHeader, SectionHeader};
use object::{Endianness, ReadCache, ReadRef};
use xen_abi::memory::E820_RESERVED;

/// What every ELF file begins with.
pub(super) const MAGIC: [u8; 4] = elf::ELFMAG;

/// Xen ELF notes: public `elfnote.h`.
const NOTE_NAME: &[u8] = b"Xen";
const NOTE_HYPERCALL_PAGE: u32 = 2;
const NOTE_XEN_VERSION: u32 = 5;
const NOTE_GUEST_OS: u32 = 6;
const NOTE_GUEST_VERSION: u32 = 7;
const NOTE_LOADER: u32 = 8;
const NOTE_PHYS32_ENTRY: u32 = 18;

/// Loads `image` at the addresses that it asks for.
pub(super) fn load(
    ram: &GuestRam,
    layout: &MemoryLayout,
    image: &Image<'_>,
    kind: KernelKind,
) -> Result<LoadedKernel, LoadError> {
    let (kernel, offsets) = check(layout, image, kind)?;
    copy(ram, image, &kernel.segments, &offsets)?;
    Ok(kernel)
}

/// Puts every segment, `offsets` into the file, at its address.
pub(super) fn copy(
    ram: &GuestRam,
    image: &Image<'_>,
    segments: &[Segment],
    offsets: &[u64],
) -> Result<(), LoadError> {
    segments.iter().zip(offsets).try_for_each(|(segment, offset)| {
        image.copy_to_guest(*offset, segment.file_size, ram, segment.paddr)
    })
}

/// Everything that is to be known of `image`, with the offsets of its segments
/// in the file: they lie within it, and their addresses within RAM.
pub(super) fn check(
    layout: &MemoryLayout,
    image: &Image<'_>,
    kind: KernelKind,
) -> Result<(LoadedKernel, Vec<u64>), LoadError> {
    let Parsed { notes, segments, code } = match image {
        Image::Bytes(bytes) => parse(&**bytes, image)?,
        Image::File { file, .. } => parse(&ReadCache::new(file), image)?,
    };
    let entry = notes.phys32_entry.ok_or(LoadError::NoPvhNote)?;
    let (segments, offsets): (Vec<Segment>, Vec<u64>) = segments.into_iter().unzip();
    for segment in &segments {
        check_place(layout, segment)?;
    }
    let (Some(start), Some(end)) =
        (segments.iter().map(|s| s.paddr).min(), segments.iter().map(end_of).max())
    else {
        return Err(LoadError::NoSegments);
    };
    let inside = segments.iter().any(|s| s.paddr <= entry && entry < end_of(s));
    let entry =
        u32::try_from(entry).ok().filter(|_| inside).ok_or(LoadError::EntryOutside { entry })?;
    Ok((LoadedKernel { entry, start, end, kind, segments, notes, code }, offsets))
}

/// The largest distance from a segment's offset in the file to its address,
/// going by the first bytes of the file alone; `None` where they do not tell.
pub(super) fn distance(head: &[u8]) -> Option<u64> {
    match *head.get(4)? {
        elf::ELFCLASS64 => distance_class::<FileHeader64<Endianness>>(head),
        elf::ELFCLASS32 => distance_class::<FileHeader32<Endianness>>(head),
        _ => None,
    }
}

fn distance_class<H: FileHeader<Endian = Endianness>>(head: &[u8]) -> Option<u64> {
    let header = H::parse(head).ok()?;
    let endian = header.endian().ok()?;
    let programs = header.program_headers(endian, head).ok()?;
    let loads = programs.iter().filter(|p| p.p_type(endian) == PT_LOAD);
    let distance = |program: &H::ProgramHeader| {
        let (paddr, offset): (u64, u64) =
            (program.p_paddr(endian).into(), program.p_offset(endian).into());
        paddr.saturating_sub(offset)
    };
    loads.map(distance).max()
}

/// What the headers say.
struct Parsed {
    notes: XenNotes,
    /// Segments with their offset in the file.
    segments: Vec<(Segment, u64)>,
    code: KernelCode,
}

fn parse<'data, R: ReadRef<'data>>(data: R, image: &Image<'_>) -> Result<Parsed, LoadError> {
    let ident = image.head(16)?;
    match ident.get(4) {
        Some(&elf::ELFCLASS64) => parse_class::<FileHeader64<Endianness>, R>(data, image),
        Some(&elf::ELFCLASS32) => parse_class::<FileHeader32<Endianness>, R>(data, image),
        Some(class) => Err(LoadError::BadElf(format!("class {class}"))),
        None => Err(truncated_header(image)),
    }
}

fn parse_class<'data, H, R>(data: R, image: &Image<'_>) -> Result<Parsed, LoadError>
where
    H: FileHeader<Endian = Endianness>,
    R: ReadRef<'data>,
{
    let bad = |e: object::Error| LoadError::BadElf(e.to_string());
    if image.len() < size_of::<H>() as u64 {
        return Err(truncated_header(image));
    }
    let header = H::parse(data).map_err(bad)?;
    let endian = header.endian().map_err(bad)?;
    check_machine(header, endian)?;
    check_tables(header, endian, image)?;

    let mut notes = XenNotes::default();
    let mut segments = Vec::new();
    for program in header.program_headers(endian, data).map_err(bad)? {
        if program.p_type(endian) == PT_LOAD {
            let vaddr: u64 = program.p_vaddr(endian).into();
            let loaded = segment(program, endian, image)?;
            segments.extend(loaded.map(|(segment, offset)| (segment, offset, vaddr)));
        } else if let Ok(Some(found)) = program.notes(endian, data) {
            read_notes(&mut notes, found, endian);
        }
    }
    if segments.is_empty() {
        return Err(LoadError::NoSegments);
    }
    // Some linker scripts leave the notes in a section of no segment of their own.
    if notes.phys32_entry.is_none() {
        for section in header.section_headers(endian, data).map_err(bad)? {
            if let Ok(Some(found)) = section.notes(endian, data) {
                read_notes(&mut notes, found, endian);
            }
        }
    }
    let code = code::find(header, endian, data, &segments);
    let segments = segments.into_iter().map(|(segment, offset, _)| (segment, offset)).collect();
    Ok(Parsed { notes, segments, code })
}

fn truncated_header(image: &Image<'_>) -> LoadError {
    let need = size_of::<FileHeader64<Endianness>>() as u64;
    LoadError::Truncated { what: "ELF header", need, have: image.len() }
}

fn check_machine<H: FileHeader>(header: &H, endian: H::Endian) -> Result<(), LoadError> {
    if !header.is_little_endian() {
        return Err(LoadError::Architecture("a big-endian machine".to_owned()));
    }
    match header.e_machine(endian) {
        EM_386 | EM_X86_64 => {}
        elf::EM_AARCH64 => return Err(LoadError::Architecture("AArch64".to_owned())),
        elf::EM_ARM => return Err(LoadError::Architecture("Arm".to_owned())),
        elf::EM_RISCV => return Err(LoadError::Architecture("RISC-V".to_owned())),
        other => return Err(LoadError::Architecture(format!("machine number {other}"))),
    }
    match header.e_type(endian) {
        ET_EXEC | ET_DYN => Ok(()),
        other => Err(LoadError::NotExecutable(other)),
    }
}

/// Both header tables must be in the file: the section table is usually its
/// end, so a file that was cut short shows here.
fn check_tables<H: FileHeader>(
    header: &H,
    endian: H::Endian,
    image: &Image<'_>,
) -> Result<(), LoadError> {
    let table = |what, offset: u64, count: u16, size: u16| {
        let need = offset.saturating_add(u64::from(count) * u64::from(size));
        if count > 0 && need > image.len() {
            return Err(LoadError::Truncated { what, need, have: image.len() });
        }
        Ok(())
    };
    let (phoff, shoff) = (header.e_phoff(endian).into(), header.e_shoff(endian).into());
    table("ELF program headers", phoff, header.e_phnum(endian), header.e_phentsize(endian))?;
    table("ELF section headers", shoff, header.e_shnum(endian), header.e_shentsize(endian))
}

fn segment<P: ProgramHeader>(
    program: &P,
    endian: P::Endian,
    image: &Image<'_>,
) -> Result<Option<(Segment, u64)>, LoadError> {
    let offset: u64 = program.p_offset(endian).into();
    let segment = Segment {
        paddr: program.p_paddr(endian).into(),
        file_size: program.p_filesz(endian).into(),
        mem_size: program.p_memsz(endian).into(),
        executable: program.p_flags(endian) & PF_X != 0,
    };
    if segment.mem_size == 0 && segment.file_size == 0 {
        return Ok(None);
    }
    if segment.file_size > segment.mem_size {
        return Err(LoadError::BadElf(format!(
            "segment at {:#x} has {} bytes in the file, {} in memory",
            segment.paddr, segment.file_size, segment.mem_size
        )));
    }
    if segment.paddr.checked_add(segment.mem_size).is_none() {
        return Err(LoadError::BadElf(format!(
            "segment at {:#x} of {:#x} bytes wraps around",
            segment.paddr, segment.mem_size
        )));
    }
    let need = offset.saturating_add(segment.file_size);
    if need > image.len() {
        return Err(LoadError::Truncated { what: "ELF segment", need, have: image.len() });
    }
    Ok(Some((segment, offset)))
}

fn end_of(segment: &Segment) -> u64 {
    // Checked when the segment was read.
    segment.paddr.saturating_add(segment.mem_size)
}

/// A segment must lie in one range of RAM below 3 GiB.
fn check_place(layout: &MemoryLayout, segment: &Segment) -> Result<(), LoadError> {
    let (start, end) = (segment.paddr, end_of(segment));
    if end > LOW_RAM_LIMIT {
        return Err(LoadError::SegmentTooHigh { start, end });
    }
    if end > layout.low_ram_end() {
        return Err(LoadError::KernelTooLarge { end, ram_end: layout.low_ram_end() });
    }
    let reserved = layout
        .memory_map()
        .into_iter()
        .find(|range| range.kind == E820_RESERVED && start < range.end() && range.addr < end);
    match reserved {
        Some(range) => Err(LoadError::Overlap {
            start,
            end,
            reserved_start: range.addr,
            reserved_end: range.end(),
        }),
        None => Ok(()),
    }
}

/// Takes what is known from `found`; a damaged note ends the list.
fn read_notes<H: FileHeader>(notes: &mut XenNotes, found: NoteIterator<'_, H>, endian: H::Endian) {
    for note in found.map_while(Result::ok).filter(|note| note.name() == NOTE_NAME) {
        let text = || {
            let desc = note.desc();
            let end = desc.iter().position(|b| *b == 0).unwrap_or(desc.len());
            Some(String::from_utf8_lossy(&desc[..end]).into_owned())
        };
        match note.n_type(endian) {
            NOTE_PHYS32_ENTRY => {
                let entry = number(note.desc());
                notes.phys32_entry = notes.phys32_entry.or(entry);
            }
            NOTE_HYPERCALL_PAGE => notes.hypercall_page = true,
            NOTE_GUEST_OS => notes.guest_os = text(),
            NOTE_GUEST_VERSION => notes.guest_version = text(),
            NOTE_XEN_VERSION => notes.xen_version = text(),
            NOTE_LOADER => notes.loader = text(),
            _ => {}
        }
    }
}

/// A numeric note may have 4 or 8 bytes, whatever the ELF's class.
fn number(desc: &[u8]) -> Option<u64> {
    match desc.len() {
        4 => Some(u64::from(u32::from_le_bytes(desc.try_into().ok()?))),
        8 => Some(u64::from_le_bytes(desc.try_into().ok()?)),
        _ => None,
    }
}
