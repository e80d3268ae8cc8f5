//! The store, through the kernel's device for processes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

const DEVICE: &str = "/dev/xen/xenbus";
const READ: u32 = 2;
const WRITE: u32 = 11;
const ERROR: u32 = 16;

/// A connection.
#[derive(Debug)]
pub struct Store(File);

impl Store {
    /// # Errors
    /// Where the kernel has no store, or the store does not answer.
    pub fn open() -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(DEVICE).map(Self)
    }

    /// A node's value, as text.
    ///
    /// # Errors
    /// What the store says, by its name.
    pub fn read(&mut self, path: &str) -> io::Result<String> {
        let value = self.ask(READ, &[path.as_bytes(), &[0]].concat())?;
        Ok(String::from_utf8_lossy(&value).into_owned())
    }

    /// Writes a node.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub fn write(&mut self, path: &str, value: &str) -> io::Result<()> {
        self.ask(WRITE, &[path.as_bytes(), &[0], value.as_bytes()].concat()).map(drop)
    }

    fn ask(&mut self, kind: u32, body: &[u8]) -> io::Result<Vec<u8>> {
        let len = u32::try_from(body.len()).map_err(io::Error::other)?;
        let mut message: Vec<u8> =
            [kind, 1, 0, len].iter().flat_map(|word| word.to_le_bytes()).collect();
        message.extend_from_slice(body);
        self.0.write_all(&message)?;
        let mut header = [0; 16];
        self.0.read_exact(&mut header)?;
        let word = |at: usize| {
            header[at..at + 4].iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
        };
        let mut answer = vec![0; usize::try_from(word(12)).map_err(io::Error::other)?];
        self.0.read_exact(&mut answer)?;
        if word(0) == ERROR {
            let name = String::from_utf8_lossy(&answer);
            return Err(io::Error::other(name.trim_end_matches('\0').to_owned()));
        }
        Ok(answer)
    }
}
