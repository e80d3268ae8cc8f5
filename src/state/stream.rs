//! The stream: a header, then sections, each with its name, its length and two
//! checksums. `docs/state.md` describes it byte by byte.
//!
//! A section's checksums begin with that of the section before, so that one
//! that is missing, doubled, out of order or of another file is found too.

use std::fmt;
use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StateError;

/// The first eight bytes. 0x1a ends a text on some systems, 0x0a shows a
/// transfer that changes line ends.
const MAGIC: [u8; 8] = *b"KVMXEN\x1a\n";
/// Bytes of the header, which is the same in every version.
pub const HEADER_SIZE: usize = 16;
const SECTION_HEADER: usize = 20;
const CHECKSUM: usize = 4;
/// The longest payload, in bytes.
pub const MOST_PAYLOAD: u64 = 16 << 20;

/// A version of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FormatVersion(u16);

impl FormatVersion {
    /// The first.
    pub const V1: Self = Self(1);
    /// With the guest's incarnation, and with it how often it was moved.
    pub const V2: Self = Self(2);
    /// What is written.
    pub const NEWEST: Self = Self::V2;

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }

    fn known(found: u16) -> Result<Self, StateError> {
        let (oldest, newest) = (Self::V1.0, Self::NEWEST.0);
        match found {
            _ if found < oldest => Err(StateError::Older { found, oldest, newest }),
            _ if found > newest => Err(StateError::Newer { found, oldest, newest }),
            _ => Ok(Self(found)),
        }
    }
}

/// The name of a kind of section: four letters. One that begins with a small
/// letter may be left unread by who does not know it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag(pub [u8; 4]);

/// The sections there are.
pub mod tag {
    use super::Tag;

    /// The machine: what it is made of. The first section.
    pub const MACHINE: Tag = Tag(*b"MACH");
    /// Pages of guest memory, and pages that are zero again.
    pub const PAGES: Tag = Tag(*b"PAGE");
    /// The emulated hypervisor.
    pub const DOMAIN: Tag = Tag(*b"DOMN");
    /// A vCPU, by its number.
    pub const VCPU: Tag = Tag(*b"VCPU");
    /// Interrupt controllers outside of the vCPUs.
    pub const IRQCHIP: Tag = Tag(*b"IRQC");
    /// What the machine holds back for its vCPUs.
    pub const PLATFORM: Tag = Tag(*b"PLAT");
    /// The serial port.
    pub const SERIAL: Tag = Tag(*b"UART");
    /// The tree of xenstore, its watches and transactions.
    pub const XENSTORE: Tag = Tag(*b"STOR");
    /// A guest that registered for handovers: where that stands.
    pub const HANDOVER: Tag = Tag(*b"HOVR");
    /// The VMClock and VM generation devices.
    pub const VMCLOCK: Tag = Tag(*b"VMCL");
    /// The clock at the moment when the guest stopped.
    pub const CLOCK: Tag = Tag(*b"CLOC");
    /// The end: the number of sections before it.
    pub const DONE: Tag = Tag(*b"DONE");
}

impl Tag {
    /// Whether a reader that does not know it must stop.
    #[must_use]
    pub const fn is_critical(self) -> bool {
        !self.0[0].is_ascii_lowercase()
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn crc(before: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(before);
    hasher.update(bytes);
    hasher.finalize()
}

/// Writes a state, section by section.
pub struct StateWriter<W> {
    to: W,
    chain: u32,
    sections: u64,
    bytes: u64,
    page_bytes: u64,
}

impl<W: Write> StateWriter<W> {
    /// Begins a state of the newest version.
    ///
    /// # Errors
    /// [`StateError::Io`], here and in all that writes.
    pub fn new(to: W) -> Result<Self, StateError> {
        Self::of_version(to, FormatVersion::NEWEST)
    }

    /// Begins a state of this version, whose sections the caller writes as they
    /// were then.
    ///
    /// # Errors
    /// As [`StateWriter::new`].
    pub fn of_version(to: W, version: FormatVersion) -> Result<Self, StateError> {
        let mut header = [0; HEADER_SIZE];
        header[..8].copy_from_slice(&MAGIC);
        header[8..10].copy_from_slice(&version.0.to_le_bytes());
        let checksum = crc(0, &header[..12]);
        header[12..].copy_from_slice(&checksum.to_le_bytes());
        let mut writer = Self { to, chain: checksum, sections: 0, bytes: 0, page_bytes: 0 };
        writer.put(&header)?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let what = "writing the state";
        self.to.write_all(bytes).map_err(|error| StateError::Io { what, error })?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Writes a section.
    ///
    /// # Errors
    /// As [`StateWriter::new`], and [`StateError::TooLong`].
    pub fn section(&mut self, tag: Tag, index: u32, payload: &[u8]) -> Result<(), StateError> {
        let len = payload.len() as u64;
        if len > MOST_PAYLOAD {
            return Err(StateError::TooLong { tag, len, most: MOST_PAYLOAD });
        }
        let mut header = [0; SECTION_HEADER];
        header[..4].copy_from_slice(&tag.0);
        header[4..8].copy_from_slice(&index.to_le_bytes());
        header[8..16].copy_from_slice(&len.to_le_bytes());
        let checksum = crc(self.chain, &header[..16]);
        header[16..].copy_from_slice(&checksum.to_le_bytes());
        self.chain = crc(checksum, payload);
        self.put(&header)?;
        self.put(payload)?;
        self.put(&self.chain.to_le_bytes())?;
        self.sections += 1;
        if tag == tag::PAGES {
            self.page_bytes += len;
        }
        Ok(())
    }

    /// Writes a section in CBOR.
    ///
    /// # Errors
    /// As [`StateWriter::section`].
    pub fn value<T: Serialize>(
        &mut self,
        tag: Tag,
        index: u32,
        value: &T,
    ) -> Result<(), StateError> {
        let mut payload = Vec::new();
        ciborium::into_writer(value, &mut payload)
            .map_err(|error| StateError::Contents { tag, why: error.to_string() })?;
        self.section(tag, index, &payload)
    }

    /// Writes the end and gives back where it was written to, which is flushed,
    /// and how many bytes there are: all, and those of guest memory among them.
    ///
    /// # Errors
    /// As [`StateWriter::new`].
    pub fn finish(mut self) -> Result<(W, u64, u64), StateError> {
        let count = self.sections.to_le_bytes();
        self.section(tag::DONE, 0, &count)?;
        let what = "writing the state";
        self.to.flush().map_err(|error| StateError::Io { what, error })?;
        Ok((self.to, self.bytes, self.page_bytes))
    }
}

/// One section, whose checksums are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// What it is.
    pub tag: Tag,
    /// Which of its kind.
    pub index: u32,
    /// What is in it.
    pub payload: Vec<u8>,
}

impl Section {
    /// Its value, where it is CBOR.
    ///
    /// # Errors
    /// [`StateError::Contents`] for anything else, and for more than one value.
    pub fn value<T: DeserializeOwned>(&self) -> Result<T, StateError> {
        let refused = |why: String| StateError::Contents { tag: self.tag, why };
        let mut rest = self.payload.as_slice();
        let value = ciborium::from_reader(&mut rest).map_err(|error| refused(error.to_string()))?;
        match rest.len() {
            0 => Ok(value),
            left => Err(refused(format!("{left} bytes after its value"))),
        }
    }
}

/// Reads a state, section by section.
pub struct StateReader<R> {
    from: R,
    version: FormatVersion,
    chain: u32,
    sections: u64,
    at: u64,
    done: bool,
}

impl<R: Read> StateReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// What it is, if it is not a state of a version that is read here.
    pub fn new(from: R) -> Result<Self, StateError> {
        let version = FormatVersion::NEWEST;
        let mut reader = Self { from, version, chain: 0, sections: 0, at: 0, done: false };
        let mut header = [0; HEADER_SIZE];
        let got = reader.read_up_to(&mut header)?;
        if header[..got.min(8)] != MAGIC[..got.min(8)] || got == 0 {
            return Err(StateError::NotState);
        }
        if got < HEADER_SIZE {
            return Err(StateError::Truncated { at: got as u64, part: "its header".to_owned() });
        }
        let [.., a, b, c, d] = header;
        reader.chain = crc(0, &header[..12]);
        if reader.chain != u32::from_le_bytes([a, b, c, d]) {
            return Err(StateError::Header);
        }
        reader.version = FormatVersion::known(u16::from_le_bytes([header[8], header[9]]))?;
        // Reserved: a later version that uses them has another number.
        if header[10..12] != [0, 0] {
            return Err(StateError::Header);
        }
        Ok(reader)
    }

    /// The format's version.
    pub fn version(&self) -> FormatVersion {
        self.version
    }

    /// The next section, `None` at the end, after which nothing is read.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn next_section(&mut self) -> Result<Option<Section>, StateError> {
        if self.done {
            return Ok(None);
        }
        let began = self.at;
        let mut header = [0; SECTION_HEADER];
        let got = self.read_up_to(&mut header)?;
        if got < SECTION_HEADER {
            let part = format!("the header of section {}", self.sections + 1);
            return Err(StateError::Truncated { at: self.at, part });
        }
        let checksum = crc(self.chain, &header[..16]);
        let [t0, t1, t2, t3, i0, i1, i2, i3, l0, l1, l2, l3, l4, l5, l6, l7, c0, c1, c2, c3] =
            header;
        if checksum != u32::from_le_bytes([c0, c1, c2, c3]) {
            let part = format!("the header of section {}", self.sections + 1);
            return Err(StateError::Checksum { at: began, part });
        }
        let tag = Tag([t0, t1, t2, t3]);
        let index = u32::from_le_bytes([i0, i1, i2, i3]);
        let len = u64::from_le_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
        if len > MOST_PAYLOAD {
            return Err(StateError::TooLong { tag, len, most: MOST_PAYLOAD });
        }
        let mut payload = Vec::new();
        let what = "reading the state";
        let read = (&mut self.from).take(len).read_to_end(&mut payload);
        read.map_err(|error| StateError::Io { what, error })?;
        self.at += payload.len() as u64;
        let mut trailer = [0; CHECKSUM];
        if payload.len() as u64 != len || self.read_up_to(&mut trailer)? != CHECKSUM {
            let part = format!("section {tag} (number {index})");
            return Err(StateError::Truncated { at: self.at, part });
        }
        self.chain = crc(checksum, &payload);
        if self.chain != u32::from_le_bytes(trailer) {
            let part = format!("section {tag} (number {index})");
            return Err(StateError::Checksum { at: began, part });
        }
        if tag == tag::DONE {
            self.done = true;
            if payload != self.sections.to_le_bytes() {
                let why = format!("it does not count {} sections", self.sections);
                return Err(StateError::Contents { tag, why });
            }
            return Ok(None);
        }
        self.sections += 1;
        Ok(Some(Section { tag, index, payload }))
    }

    /// Sees to it that nothing comes after the end, as in a file.
    ///
    /// # Errors
    /// [`StateError::Trailing`]; [`StateError::Missing`] before the end.
    pub fn finish(mut self) -> Result<(), StateError> {
        if !self.done {
            return Err(StateError::Missing { tag: tag::DONE });
        }
        let at = self.at;
        match self.read_up_to(&mut [0])? {
            0 => Ok(()),
            _ => Err(StateError::Trailing { at }),
        }
    }

    fn read_up_to(&mut self, to: &mut [u8]) -> Result<usize, StateError> {
        let mut got = 0;
        while let Some(rest) = to.get_mut(got..).filter(|rest| !rest.is_empty()) {
            match self.from.read(rest) {
                Ok(0) => break,
                Ok(count) => got += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(StateError::Io { what: "reading the state", error }),
            }
        }
        self.at += got as u64;
        Ok(got)
    }
}

#[cfg(test)]
mod tests;
