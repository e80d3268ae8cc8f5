//! Promise: a bzImage, a vmlinux or any PVH ELF starts as it is; what is no
//! kernel, or is cut short, is refused in one line that says what to do.
#![cfg(feature = "vmm")]

#[path = "loader/boot.rs"]
mod boot;
#[path = "loader/debian.rs"]
mod debian;
#[path = "loader/refusals.rs"]
mod refusals;
#[path = "loader/synthetic.rs"]
mod synthetic;

use kvm_xen::vmm::loader::{
    Compression, FileSource, KernelKind, LoadError, LoadedKernel, load_kernel,
};
use kvm_xen::vmm::memory::{GuestRam, MemoryLayout, MemoryOptions};
use std::io::Write;
use synthetic::{Elf, Note, PACKINGS, Packing, bzimage, pack};
use vm_memory::{Bytes, GuestAddress};

fn machine(mib: u64) -> (MemoryLayout, GuestRam) {
    let layout = MemoryLayout::new(mib << 20).unwrap();
    (layout, layout.create(MemoryOptions::default()).unwrap())
}

fn load(bytes: &[u8]) -> Result<LoadedKernel, LoadError> {
    let (layout, ram) = machine(2);
    load_kernel(&ram, &layout, &FileSource::Bytes(bytes))
}

/// Loads and compares all of memory with what the segments should have made.
fn load_and_compare(elf: &Elf, source: FileSource<'_>, kind: KernelKind) {
    let (layout, ram) = machine(2);
    let kernel = load_kernel(&ram, &layout, &source).unwrap();
    assert_eq!((u64::from(kernel.entry), kernel.kind), (elf.entry, kind));
    assert_eq!((kernel.start, kernel.end), (0x10_0000, 0x18_3000));
    assert_eq!(kernel.notes.guest_os.as_deref(), Some("test-os"));
    let mut expected = vec![0; 2 << 20];
    for segment in &elf.segments {
        let at = usize::try_from(segment.paddr).unwrap();
        expected[at..at + segment.data.len()].copy_from_slice(&segment.data);
    }
    let mut found = vec![0; 2 << 20];
    ram.read_slice(&mut found, GuestAddress(0)).unwrap();
    assert!(found == expected, "memory differs");
}

#[test]
fn elf_of_both_classes_with_the_note_in_either_place() {
    for wide in [false, true] {
        for note in [Note::Segment, Note::Section] {
            for note_bytes in [4, 8] {
                let elf = Elf { note_bytes, ..Elf::new(wide, note) };
                let bytes = elf.build();
                load_and_compare(&elf, FileSource::Bytes(&bytes), KernelKind::Elf);
                // Not aligned, as an embedded guest may lie.
                let shifted = [&[0u8][..], &bytes].concat();
                load_and_compare(&elf, FileSource::Bytes(&shifted[1..]), KernelKind::Elf);
                let mut file = tempfile::NamedTempFile::new().unwrap();
                file.write_all(&bytes).unwrap();
                load_and_compare(&elf, FileSource::Path(file.path()), KernelKind::Elf);
            }
        }
    }
}

#[test]
fn bzimage_of_every_compression() {
    for packing in PACKINGS {
        let elf = Elf::new(true, Note::Segment);
        let compression = match packing {
            Packing::Lz4 => Compression::Lz4,
            Packing::Zstd => Compression::Zstd,
            Packing::Xz => Compression::Xz,
            Packing::Gzip => Compression::Gzip,
        };
        let image = bzimage(&pack(packing, &elf.build()));
        let kind = KernelKind::BzImage(compression);
        load_and_compare(&elf, FileSource::Bytes(&image), kind);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&image).unwrap();
        load_and_compare(&elf, FileSource::Path(file.path()), kind);
    }
}

/// Unpacked where the higher segment belongs, the lower one would overwrite it
/// or pass it: the image is taken out again, and nothing of it stays behind.
#[test]
fn bzimage_whose_segments_are_not_in_order() {
    for packing in PACKINGS {
        let mut elf = Elf::new(true, Note::Segment);
        elf.segments.reverse();
        let image = bzimage(&pack(packing, &elf.build()));
        let (layout, ram) = machine(2);
        let kernel = load_kernel(&ram, &layout, &FileSource::Bytes(&image)).unwrap();
        load_and_compare(&elf, FileSource::Bytes(&image), kernel.kind);
    }
}

/// The file is larger than what lies between its segments and the end of RAM:
/// there is no place for it, but there is for the segments.
#[test]
fn bzimage_that_fits_only_without_the_rest_of_its_file() {
    for packing in PACKINGS {
        let mut elf = Elf::new(true, Note::Section);
        let size = elf.segments[1].data.len() as u64;
        elf.segments[1].mem_size = size;
        elf.segments[1].paddr = (2 << 20) - size;
        let image = bzimage(&pack(packing, &elf.build()));
        let (layout, ram) = machine(2);
        load_kernel(&ram, &layout, &FileSource::Bytes(&image)).unwrap();
        let mut found = vec![0; elf.segments[1].data.len()];
        ram.read_slice(&mut found, GuestAddress(elf.segments[1].paddr)).unwrap();
        assert!(found == elf.segments[1].data);
    }
}

#[test]
fn lz4_payload_of_several_blocks() {
    let mut elf = Elf::new(true, Note::Segment);
    // 20 MiB that do not repeat with the block size: three blocks.
    let data: Vec<u8> = (0..20u32 << 18).flat_map(|i| (i / 3 * 7).to_le_bytes()).collect();
    elf.segments[1].mem_size = data.len() as u64;
    elf.segments[1].data = data.clone();
    let image = bzimage(&pack(Packing::Lz4, &elf.build()));
    let (layout, ram) = machine(32);
    load_kernel(&ram, &layout, &FileSource::Bytes(&image)).unwrap();
    let mut found = vec![0; data.len()];
    ram.read_slice(&mut found, GuestAddress(0x18_0000)).unwrap();
    assert!(found == data);
}
