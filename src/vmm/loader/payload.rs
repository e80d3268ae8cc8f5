//! Unpacks the payload of a bzImage.
//!
//! The kernel's build appends the unpacked size, 4 bytes little-endian, to
//! every payload; gzip's own trailer ends in the same number. So the output is
//! allocated once, and a payload that gives more or less is refused.

use super::LoadError;
use super::error::hex_start;
use super::source::to_usize;
use std::fmt;
use std::io::Read;
use std::sync::{Mutex, PoisonError};

/// How a payload is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// LZ4, legacy frame.
    Lz4,
    /// Zstandard.
    Zstd,
    /// xz with the x86 branch filter.
    Xz,
    /// gzip.
    Gzip,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lz4 => "LZ4",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Gzip => "gzip",
        })
    }
}

impl Compression {
    fn detect(payload: &[u8]) -> Option<Self> {
        match payload {
            [0x02, 0x21, 0x4c, 0x18, ..] => Some(Self::Lz4),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            _ => None,
        }
    }
}

/// Bytes of the size that ends every payload.
const SIZE_BYTES: usize = 4;
/// Unpacked bytes of every LZ4 block but the last.
const LZ4_BLOCK: usize = 8 << 20;

/// First bytes that are unpacked to look at: headers of an ELF.
const HEAD: usize = 4096;

/// A payload whose format and size are known.
pub(super) struct Payload<'a> {
    compression: Compression,
    /// All of it.
    bytes: &'a [u8],
    /// Without the size at its end.
    packed: &'a [u8],
    size: u64,
}

impl<'a> Payload<'a> {
    /// Refuses what unpacks to more than `limit` bytes.
    pub(super) fn open(bytes: &'a [u8], limit: u64) -> Result<Self, LoadError> {
        let compression = Compression::detect(bytes)
            .ok_or_else(|| LoadError::UnknownCompression(hex_start(bytes)))?;
        let Some((packed, size)) = bytes.split_last_chunk::<SIZE_BYTES>() else {
            let reason = format!("it has only {} bytes", bytes.len());
            return Err(LoadError::Decompress { compression, reason });
        };
        let size = u64::from(u32::from_le_bytes(*size));
        if size > limit {
            return Err(LoadError::PayloadTooLarge { size, limit });
        }
        Ok(Self { compression, bytes, packed, size })
    }

    /// How it is packed.
    pub(super) fn compression(&self) -> Compression {
        self.compression
    }

    /// Bytes when unpacked, by its trailer.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The first bytes as far as they are easily had: a hint, with anything
    /// where they are missing.
    pub(super) fn head(&self) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        // Errors show when all of it is unpacked. A decoder that wants room for
        // more has written what there was room for.
        match self.compression {
            Compression::Lz4 => {
                let _ = lz4_flex::block::decompress_into(
                    self.packed.get(8..).unwrap_or_default(),
                    &mut head,
                );
            }
            Compression::Zstd => {
                let mut input = zstd_safe::InBuffer::around(self.packed);
                let mut output = zstd_safe::OutBuffer::around(&mut head[..]);
                let _ = zstd_safe::DCtx::create().decompress_stream(&mut output, &mut input);
            }
            Compression::Xz => {
                let _ = lzma_rust2::XzReader::new(self.packed, false).read_exact(&mut head);
            }
            Compression::Gzip => {
                let _ = flate2::read::GzDecoder::new(self.bytes).read_exact(&mut head);
            }
        }
        head
    }

    /// Unpacks it into `output`, which has [`size`](Self::size) bytes.
    pub(super) fn unpack_into(&self, output: &mut [u8]) -> Result<(), LoadError> {
        let written = match self.compression {
            Compression::Lz4 => unpack_lz4(self.packed, output),
            Compression::Zstd => unpack_zstd(self.packed, output),
            Compression::Xz => read_all(lzma_rust2::XzReader::new(self.packed, false), output),
            // The size is part of the gzip format itself.
            Compression::Gzip => read_all(flate2::read::GzDecoder::new(self.bytes), output),
        };
        let written = written.and_then(|written| match self.size {
            size if size == written as u64 => Ok(()),
            size => Err(format!("it unpacks to {written} bytes, its trailer says {size}")),
        });
        written.map_err(|reason| LoadError::Decompress { compression: self.compression, reason })
    }

    /// Unpacks it into memory of its own.
    pub(super) fn unpack(&self) -> Result<Vec<u8>, LoadError> {
        let mut output = vec![0; to_usize(self.size)];
        self.unpack_into(&mut output)?;
        self.check_elf(&output)?;
        Ok(output)
    }

    /// Refuses what it unpacked to unless that is an ELF.
    pub(super) fn check_elf(&self, unpacked: &[u8]) -> Result<(), LoadError> {
        if unpacked.starts_with(&super::elf::MAGIC) {
            return Ok(());
        }
        Err(LoadError::PayloadNotElf { compression: self.compression })
    }
}

/// One LZ4 block and the place for what it unpacks to.
type Lz4Job<'a> = (&'a [u8], &'a mut [u8]);

/// Legacy frame: a magic, then blocks, each with its packed size in front. All
/// but the last unpack to [`LZ4_BLOCK`] bytes, and none refers to another, so
/// that the host's CPUs can share them.
fn unpack_lz4(packed: &[u8], output: &mut [u8]) -> Result<usize, String> {
    let jobs = lz4_jobs(packed.get(4..).unwrap_or_default(), output)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
    let queue = Mutex::new(jobs.into_iter());
    let work = || {
        let mut written = 0;
        loop {
            let job = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((block, chunk)) = job else { return Ok(written) };
            let count = lz4_flex::block::decompress_into(block, chunk);
            let count = count.map_err(|e| e.to_string())?;
            if count != chunk.len() {
                return Err(format!("a block of {count} bytes instead of {}", chunk.len()));
            }
            written += count;
        }
    };
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut written = work();
        for helper in helpers {
            let more = helper.join().unwrap_or_else(|_| Err("the unpacker panicked".to_owned()));
            written = written.and_then(|sum: usize| Ok(sum + more?));
        }
        written
    })
}

fn lz4_jobs<'a>(mut rest: &'a [u8], output: &'a mut [u8]) -> Result<Vec<Lz4Job<'a>>, String> {
    let mut chunks = output.chunks_mut(LZ4_BLOCK);
    let mut jobs = Vec::new();
    while let Some((size, tail)) = rest.split_first_chunk::<4>() {
        let size = u32::from_le_bytes(*size);
        let block = usize::try_from(size).ok().and_then(|s| tail.split_at_checked(s));
        let (block, tail) =
            block.ok_or_else(|| format!("a block of {size} bytes, {} are left", tail.len()))?;
        jobs.push((block, chunks.next().ok_or("more blocks than its size allows")?));
        rest = tail;
    }
    Ok(jobs)
}

/// With the whole output at hand no window is kept beside it, so that the
/// 128 MiB windows of `zstd --ultra -22` cost nothing.
fn unpack_zstd(packed: &[u8], output: &mut [u8]) -> Result<usize, String> {
    zstd_safe::decompress(output, packed).map_err(|code| zstd_safe::get_error_name(code).to_owned())
}

/// Reads until `output` is full, and then that nothing follows.
fn read_all(mut reader: impl Read, output: &mut [u8]) -> Result<usize, String> {
    let mut written = 0;
    while let Some(free) = output.get_mut(written..).filter(|free| !free.is_empty()) {
        match reader.read(free).map_err(|e| e.to_string())? {
            0 => return Ok(written),
            count => written += count,
        }
    }
    // Also makes the reader check the trailing checksum.
    match reader.read(&mut [0]).map_err(|e| e.to_string())? {
        0 => Ok(written),
        _ => Err("it unpacks to more than its trailer says".to_owned()),
    }
}
