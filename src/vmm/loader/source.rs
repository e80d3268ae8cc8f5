//! Where the bytes of a kernel or module come from.

use super::LoadError;
use crate::vmm::memory::GuestRam;
use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use vm_memory::{Bytes, GuestAddress};

/// A file by name, or bytes that are already here (an embedded guest).
#[derive(Debug, Clone, Copy)]
pub enum FileSource<'a> {
    /// A file; a pipe works too.
    Path(&'a Path),
    /// The file's contents.
    Bytes(&'a [u8]),
}

impl<'a> FileSource<'a> {
    /// Opens it. What has no length of its own (a pipe) is read at once, up to
    /// `limit` bytes.
    pub(super) fn open(&self, limit: u64) -> Result<Image<'a>, LoadError> {
        let path = match self {
            Self::Bytes(bytes) => return Ok(Image::Bytes(Cow::Borrowed(bytes))),
            Self::Path(path) => path,
        };
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(std::io::Error::from(std::io::ErrorKind::IsADirectory).into());
        }
        if metadata.is_file() {
            return Ok(Image::File { file, len: metadata.len() });
        }
        let mut bytes = Vec::new();
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        let size = bytes.len() as u64;
        if size > limit {
            return Err(LoadError::FileTooLarge { size, limit });
        }
        Ok(Image::Bytes(Cow::Owned(bytes)))
    }

    /// How to name it in a message.
    pub fn name(&self) -> Cow<'a, str> {
        match self {
            Self::Path(path) => path.to_string_lossy(),
            Self::Bytes(_) => Cow::Borrowed("(built in)"),
        }
    }
}

/// A source that has been opened.
#[derive(Debug)]
pub(super) enum Image<'a> {
    /// A regular file, read by ranges: what is not loaded is never read.
    File { file: File, len: u64 },
    /// All of it.
    Bytes(Cow<'a, [u8]>),
}

impl Image<'_> {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::File { len, .. } => *len,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// The first `count` bytes, or all when there are fewer.
    pub(super) fn head(&self, count: u64) -> Result<Cow<'_, [u8]>, LoadError> {
        self.range("file", 0, count.min(self.len()))
    }

    /// Bytes `offset .. offset + size`; `what` names them in the error.
    pub(super) fn range(
        &self,
        what: &'static str,
        offset: u64,
        size: u64,
    ) -> Result<Cow<'_, [u8]>, LoadError> {
        self.check(what, offset, size)?;
        match self {
            Self::Bytes(bytes) => {
                let range = to_usize(offset)..to_usize(offset + size);
                Ok(Cow::Borrowed(&bytes[range]))
            }
            Self::File { file, .. } => {
                let mut bytes = vec![0; to_usize(size)];
                file.read_exact_at(&mut bytes, offset)?;
                Ok(Cow::Owned(bytes))
            }
        }
    }

    /// Puts bytes `offset .. offset + size` at `addr` of guest memory. A file
    /// is read straight into it, with no buffer between.
    pub(super) fn copy_to_guest(
        &self,
        offset: u64,
        size: u64,
        ram: &GuestRam,
        addr: u64,
    ) -> Result<(), LoadError> {
        self.check("file", offset, size)?;
        match self {
            Self::Bytes(bytes) => {
                let range = to_usize(offset)..to_usize(offset + size);
                write_nonzero(ram, &bytes[range], addr)?;
            }
            Self::File { file, .. } => {
                let mut file: &File = file;
                file.seek(SeekFrom::Start(offset))?;
                ram.read_exact_volatile_from(GuestAddress(addr), &mut file, to_usize(size))?;
            }
        }
        Ok(())
    }

    fn check(&self, what: &'static str, offset: u64, size: u64) -> Result<(), LoadError> {
        let need = offset.saturating_add(size);
        if need > self.len() {
            return Err(LoadError::Truncated { what, need, have: self.len() });
        }
        Ok(())
    }
}

/// Writes the pages of `bytes` that hold anything but zeros. Fresh memory is
/// zero already, and a page that is never touched costs the host nothing; a
/// vmlinux carries its .bss as zeros, a quarter of its size.
fn write_nonzero(ram: &GuestRam, bytes: &[u8], addr: u64) -> Result<(), LoadError> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let write = |range: Range<usize>| {
        if range.is_empty() {
            return Ok(());
        }
        let to = GuestAddress(addr + range.start as u64);
        ram.write_slice(&bytes[range], to)
    };
    // One write for each run of pages with contents.
    let mut run = 0;
    let mut at = 0;
    for page in bytes.chunks(ZEROS.len()) {
        let next = at + page.len();
        if page == &ZEROS[..page.len()] {
            write(run..at)?;
            run = next;
        }
        at = next;
    }
    Ok(write(run..at)?)
}

/// Lossless: `usize` has 64 bits on x86-64.
pub(super) fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("x86-64 has a 64-bit usize")
}
