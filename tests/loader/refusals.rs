//! What the loader refuses, and what it says.

use super::synthetic::{Elf, Note, PACKINGS, Packing, Seg, bzimage, pack, put};
use super::{load, machine};
use kvm_xen::vmm::loader::{FileSource, load_kernel};
use proptest::prelude::*;

/// Loads it into 2 MiB and returns the message, which must be one line.
fn refusal(bytes: &[u8]) -> String {
    let message = load(bytes).expect_err("it should be refused").to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

fn elf_with(change: impl FnOnce(&mut Elf)) -> Vec<u8> {
    let mut elf = Elf::new(true, Note::Segment);
    change(&mut elf);
    elf.build()
}

/// A good bzImage with bytes of its header changed.
fn bzimage_with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = bzimage(&pack(Packing::Lz4, &Elf::new(true, Note::Segment).build()));
    put(&mut image, at, bytes);
    image
}

/// A bzImage whose LZ4 payload claims another size.
fn claiming(size: u32) -> Vec<u8> {
    let mut payload = pack(Packing::Lz4, &Elf::new(true, Note::Segment).build());
    let at = payload.len() - 4;
    put(&mut payload, at, &size.to_le_bytes());
    bzimage(&payload)
}

#[test]
fn every_refusal_names_the_value_and_the_remedy() {
    let segment = |paddr, mem_size| vec![Seg { paddr, data: vec![1; 16], mem_size }];
    let mut big_endian = Elf::new(true, Note::Segment).build();
    big_endian[5] = 2;
    let mut class = Elf::new(true, Note::Segment).build();
    class[4] = 9;
    let cases: &[(&str, Vec<u8>, &[&str])] = &[
        ("empty", vec![], &["not a kernel", "nothing", "empty", "give a bzImage"]),
        ("text", b"#!/bin/sh\n".to_vec(), &["not a kernel", "23212f62"]),
        ("gzip", vec![0x1f, 0x8b, 8, 0], &["gzip: unpack it first"]),
        ("cpio", b"070701".to_vec(), &["is this the initrd?"]),
        ("old protocol", bzimage_with(0x206, &[7, 2]), &["protocol 2.07", "2.6.26"]),
        ("no payload", bzimage_with(0x24c, &[0; 4]), &["without a payload", "length 0", "vmlinux"]),
        ("far payload", bzimage_with(0x248, &[0xff; 4]), &["truncated bzImage", "fetch it again"]),
        ("syssize", bzimage_with(0x1f4, &[0xff; 4]), &["truncated bzImage", "68719477744"]),
        ("setup_sects 0 means 4", bzimage_with(0x1f1, &[0]), &["truncated", "fetch it again"]),
        ("bzip2", bzimage(b"BZh91AY&SY____"), &["unknown compression", "425a6839", "xz"]),
        ("no ELF inside", bzimage(&pack(Packing::Zstd, b"hello hello")), &["zstd", "no ELF"]),
        ("claims more", claiming(1 << 20), &["LZ4 payload is damaged", "1048576"]),
        ("claims less", claiming(100), &["LZ4 payload is damaged"]),
        ("claims too much", claiming(u32::MAX), &["4096 MiB", "guest has 2 MiB", "more memory"]),
        ("no note", elf_with(|e| e.note = Note::Nowhere), &["no PVH note", "CONFIG_PVH=y"]),
        ("note of 5 bytes", elf_with(|e| e.note_bytes = 5), &["no PVH note"]),
        ("entry outside", elf_with(|e| e.entry = 0x17_0000), &["entry 0x170000", "outside"]),
        ("entry at end", elf_with(|e| e.entry = 0x18_3000), &["entry 0x183000", "outside"]),
        ("entry beyond 4 GiB", elf_with(|e| e.entry |= 1 << 32), &["entry 0x100100010"]),
        (
            "too large",
            elf_with(|e| e.segments[1].mem_size = 0x8_0001),
            &["up to 0x200001", "ends at 0x200000", "at least 3 MiB"],
        ),
        ("too high", elf_with(|e| e.segments = segment(0xc000_0000 - 8, 16)), &["above 3 GiB"]),
        (
            "legacy area",
            elf_with(|e| e.segments = segment(0x9_fff8, 16)),
            &["0x9fff8..0xa0008", "reserved range 0xa0000..0x100000", "1 MiB"],
        ),
        ("wraps", elf_with(|e| e.segments = segment(u64::MAX - 8, 16)), &["wraps around"]),
        ("file beyond memory", elf_with(|e| e.segments[0].mem_size = 1), &["1 in memory"]),
        ("no segments", elf_with(|e| e.segments.clear()), &["without a loadable segment"]),
        ("object file", elf_with(|e| e.kind = 1), &["ELF type 1", "link it"]),
        ("AArch64", elf_with(|e| e.machine = 183), &["AArch64", "x86-64"]),
        ("machine 9999", elf_with(|e| e.machine = 9999), &["machine number 9999"]),
        ("big endian", big_endian, &["big-endian"]),
        ("class", class, &["class 9"]),
    ];
    for (name, bytes, expected) in cases {
        let message = refusal(bytes);
        for part in *expected {
            assert!(message.contains(part), "{name}: \"{part}\" is not in: {message}");
        }
    }
}

#[test]
fn last_fitting_byte_of_memory() {
    assert!(load(&elf_with(|e| e.segments[1].mem_size = 0x8_0000)).is_ok());
}

#[test]
fn every_prefix_of_an_elf_is_refused() {
    for wide in [false, true] {
        for note in [Note::Segment, Note::Section] {
            let elf = Elf::new(wide, note).build();
            for len in 0..elf.len() {
                refusal(&elf[..len]);
            }
        }
    }
}

#[test]
fn every_prefix_of_a_bzimage_is_refused() {
    for packing in PACKINGS {
        let image = bzimage(&pack(packing, &Elf::new(true, Note::Segment).build()));
        for len in 0..image.len() {
            refusal(&image[..len]);
        }
    }
}

/// A cut payload in a whole image: the headers agree, the contents do not.
#[test]
fn every_prefix_of_a_payload_is_refused() {
    for packing in PACKINGS {
        let payload = pack(packing, &Elf::new(true, Note::Segment).build());
        for len in 1..payload.len() {
            refusal(&bzimage(&payload[..len]));
        }
    }
}

/// A damaged byte may go unnoticed where nothing checks it; it may not panic,
/// and what is accepted lies in RAM.
fn load_damaged(bytes: &[u8]) {
    let (layout, ram) = machine(2);
    if let Ok(kernel) = load_kernel(&ram, &layout, &FileSource::Bytes(bytes)) {
        assert!(kernel.end <= layout.low_ram_end());
        assert!(kernel.segments.iter().all(|s| s.file_size <= s.mem_size));
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..2048), head in 0..6) {
        let start: &[u8] = match head {
            0 => b"\x7fELF\x02\x01\x01",
            1 => b"\x7fELF\x01\x01\x01",
            _ => b"",
        };
        if bytes.len() >= 0x260 && head == 2 {
            put(&mut bytes, 0x1fe, &[0x55, 0xaa]);
            put(&mut bytes, 0x202, b"HdrS\x0f\x02");
        }
        let bytes = [start, &bytes].concat();
        load_damaged(&bytes);
    }

    #[test]
    fn damaged_elf_never_panics(
        wide: bool, section: bool,
        damage in prop::collection::vec((0usize..4096, any::<u8>()), 1..8),
    ) {
        let note = if section { Note::Section } else { Note::Segment };
        let mut bytes = Elf::new(wide, note).build();
        // Mostly the headers, which come first.
        for (at, value) in damage {
            let at = if at % 4 == 0 { at % bytes.len() } else { at % 0xe8 };
            bytes[at] = value;
        }
        load_damaged(&bytes);
    }

    #[test]
    fn damaged_payload_never_panics(
        packing in 0usize..4,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut payload = pack(PACKINGS[packing], &Elf::new(true, Note::Segment).build());
        for (at, value) in damage {
            let at = at.index(payload.len());
            payload[at] = value;
        }
        load_damaged(&bzimage(&payload));
    }
}
