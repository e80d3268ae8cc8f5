//! Builders of the smallest kernels that the loader takes.
#![expect(clippy::cast_possible_truncation, reason = "every size here is small")]

use std::io::Write;

/// Where the PHYS32_ENTRY note is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Note {
    Segment,
    Section,
    Nowhere,
}

/// How a payload is packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packing {
    Lz4,
    Zstd,
    Xz,
    Gzip,
}

pub const PACKINGS: [Packing; 4] = [Packing::Lz4, Packing::Zstd, Packing::Xz, Packing::Gzip];

/// A segment: address, bytes of the file, size in memory.
#[derive(Clone, Debug)]
pub struct Seg {
    pub paddr: u64,
    pub data: Vec<u8>,
    pub mem_size: u64,
}

/// An ELF to be built.
#[derive(Clone, Debug)]
pub struct Elf {
    pub wide: bool,
    pub note: Note,
    pub note_bytes: usize,
    pub entry: u64,
    pub machine: u16,
    pub kind: u16,
    pub segments: Vec<Seg>,
}

impl Elf {
    /// Code full of calls (so that the x86 branch filter has work) at 1 MiB,
    /// data with zeros after it at 1.5 MiB.
    pub fn new(wide: bool, note: Note) -> Self {
        let code: Vec<u8> = (0..400u32)
            .flat_map(|i| {
                let mut call = vec![0xe8];
                call.extend_from_slice(&(i * 5).wrapping_neg().to_le_bytes());
                call
            })
            .collect();
        let data: Vec<u8> = (0..300u32).map(|i| (i * 7) as u8).collect();
        Self {
            wide,
            note,
            note_bytes: if wide { 8 } else { 4 },
            entry: 0x10_0010,
            machine: if wide { 62 } else { 3 },
            kind: 2,
            segments: vec![
                Seg { paddr: 0x10_0000, mem_size: code.len() as u64, data: code },
                Seg { paddr: 0x18_0000, mem_size: 0x3000, data },
            ],
        }
    }

    /// A word: 8 or 4 bytes.
    fn word(&self, out: &mut Vec<u8>, value: u64) {
        let bytes = value.to_le_bytes();
        out.extend_from_slice(if self.wide { &bytes } else { &bytes[..4] });
    }

    fn note_data(&self) -> Vec<u8> {
        let mut out = Vec::new();
        // A foreign note with the same number, and one of Xen's to skip over.
        for (name, kind, desc) in [
            (&b"GNU\0"[..], 18u32, vec![0xff; 4]),
            (b"Xen\0", 6, b"test-os\0".to_vec()),
            (b"Xen\0", 18, self.entry.to_le_bytes()[..self.note_bytes].to_vec()),
        ] {
            out.extend_from_slice(&(name.len() as u32).to_le_bytes());
            out.extend_from_slice(&(desc.len() as u32).to_le_bytes());
            out.extend_from_slice(&kind.to_le_bytes());
            out.extend_from_slice(name);
            out.extend_from_slice(&desc);
        }
        out
    }

    /// Header, program headers, segments, notes, section headers.
    pub fn build(&self) -> Vec<u8> {
        let (header, program, section) = if self.wide { (64, 56, 64) } else { (52, 32, 40) };
        let programs = self.segments.len() + usize::from(self.note == Note::Segment);
        let sections = if self.note == Note::Section { 2 } else { 1 };
        let mut offset = (header + programs * program).next_multiple_of(8);
        let mut placed = Vec::new();
        for segment in &self.segments {
            placed.push(offset);
            offset += segment.data.len().next_multiple_of(8);
        }
        let notes = self.note_data();
        let (notes_at, shoff) = (offset, (offset + notes.len()).next_multiple_of(8));

        let mut out = vec![0x7f, b'E', b'L', b'F', 1 + u8::from(self.wide), 1, 1];
        out.resize(16, 0);
        out.extend_from_slice(&self.kind.to_le_bytes());
        out.extend_from_slice(&self.machine.to_le_bytes());
        out.extend_from_slice(&1u32.to_le_bytes());
        for value in [self.entry, header as u64, shoff as u64] {
            self.word(&mut out, value);
        }
        out.extend_from_slice(&0u32.to_le_bytes());
        for half in [header, program, programs, section, sections, 0] {
            out.extend_from_slice(&(half as u16).to_le_bytes());
        }
        for (segment, at) in self.segments.iter().zip(&placed) {
            let sizes = (segment.data.len() as u64, segment.mem_size);
            self.program(&mut out, 1, *at, segment.paddr, sizes);
        }
        if self.note == Note::Segment {
            let size = notes.len() as u64;
            self.program(&mut out, 4, notes_at, 0, (size, size));
        }
        for (segment, at) in self.segments.iter().zip(&placed) {
            out.resize(*at, 0);
            out.extend_from_slice(&segment.data);
        }
        out.resize(notes_at, 0);
        out.extend_from_slice(&notes);
        out.resize(shoff + section, 0);
        if self.note == Note::Section {
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&7u32.to_le_bytes());
            for value in [0, 0, notes_at as u64, notes.len() as u64] {
                self.word(&mut out, value);
            }
            out.extend_from_slice(&[0; 8]);
            self.word(&mut out, 4);
            self.word(&mut out, 0);
        }
        out
    }

    fn program(&self, out: &mut Vec<u8>, kind: u32, at: usize, paddr: u64, sizes: (u64, u64)) {
        let flags = 5u32.to_le_bytes();
        out.extend_from_slice(&kind.to_le_bytes());
        if self.wide {
            out.extend_from_slice(&flags);
        }
        for value in [at as u64, paddr ^ 0xff00_0000, paddr, sizes.0, sizes.1] {
            self.word(out, value);
        }
        if !self.wide {
            out.extend_from_slice(&flags);
        }
        self.word(out, 4);
    }
}

/// `data` packed as the kernel's build does it, its size at the end.
pub fn pack(packing: Packing, data: &[u8]) -> Vec<u8> {
    let mut packed = match packing {
        Packing::Lz4 => lz4_legacy(data),
        Packing::Zstd => {
            let mut packed = Vec::with_capacity(zstd_safe::compress_bound(data.len()));
            zstd_safe::compress(&mut packed, data, 19).unwrap();
            packed
        }
        Packing::Xz => {
            let mut options = lzma_rust2::XzOptions::with_preset(6);
            options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
            let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
            writer.write_all(data).unwrap();
            writer.finish().unwrap()
        }
        // Ends in the size by itself.
        Packing::Gzip => {
            let level = flate2::Compression::best();
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), level);
            writer.write_all(data).unwrap();
            return writer.finish().unwrap();
        }
    };
    packed.extend_from_slice(&(data.len() as u32).to_le_bytes());
    packed
}

fn lz4_legacy(data: &[u8]) -> Vec<u8> {
    let mut packed = vec![0x02, 0x21, 0x4c, 0x18];
    for block in data.chunks(8 << 20) {
        let block = lz4_flex::block::compress(block);
        packed.extend_from_slice(&(block.len() as u32).to_le_bytes());
        packed.extend_from_slice(&block);
    }
    packed
}

/// A bzImage around a packed payload: one sector of setup code, 32 bytes of
/// protected-mode code before the payload, padding to 16 bytes after it.
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024 + 32];
    image.extend_from_slice(payload);
    image.resize(image.len().next_multiple_of(16), 0x90);
    let units = (image.len() - 1024) / 16;
    image[0x1f1] = 1;
    put(&mut image, 0x1f4, &(units as u32).to_le_bytes());
    put(&mut image, 0x1fe, &[0x55, 0xaa]);
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x20fu16.to_le_bytes());
    put(&mut image, 0x248, &32u32.to_le_bytes());
    put(&mut image, 0x24c, &(payload.len() as u32).to_le_bytes());
    image
}

/// Overwrites bytes of an image.
pub fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}
