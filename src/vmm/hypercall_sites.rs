//! Finds where a kernel makes hypercalls by VMCALL or VMMCALL, and makes them
//! port output of the same length, in guest memory alone.
//!
//! A KVM without Xen support answers those instructions itself. The three bytes
//! of each also turn up inside other instructions: displacements, immediates,
//! VMGEXIT. So a place counts only if an instruction begins there, which needs
//! a sound start to decode from:
//!
//! - the beginning of the section, or a function's, by the symbol table;
//! - without symbols, all 15 bytes of some place before. No x86 instruction is
//!   longer, so one of the 15 begins an instruction. Where decoding from each
//!   of them comes to the same answer, that one has given it.
//!
//! ```text
//! …  [15 starts]  ── 15 streams, which soon fall into step ──►  0f 01 c1 ?
//! ```
//!
//! A place where they do not agree is left alone: a hypercall that is not
//! rewritten fails aloud, other code that is rewritten would not.

use std::ops::Range;

use iced_x86::{Code, Decoder, DecoderOptions};
use vm_memory::{Bytes, GuestAddress};

use super::loader::KernelCode;
use super::memory::GuestRam;

/// The longest x86 instruction, in bytes.
const LONGEST: usize = 15;
const SITE: usize = 3;
const VMCALL: [u8; SITE] = [0x0f, 0x01, 0xc1];
const VMMCALL: [u8; SITE] = [0x0f, 0x01, 0xd9];
/// How far before a place the 15 starts lie, one distance after the other until
/// all streams agree. Streams fall into step within tens of bytes; a nearer
/// start helps where data or code of another bitness lies between.
const DISTANCES: [u64; 7] = [512, 1024, 256, 2048, 4096, 128, 64];
/// A function's beginning further away than this is not decoded from.
const FAR: u64 = 4 << 10;
/// Guest memory is searched in pieces of this size.
const PIECE: u64 = 1 << 20;

/// What was done to a kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// VMCALL and VMMCALL instructions that now do port output.
    pub sites: usize,
    /// Places that may be one, and were left alone.
    pub unsure: usize,
}

/// The bytes of guest memory could not be read or written: a range of the
/// kernel's code is not RAM.
#[derive(Debug, thiserror::Error)]
#[error("the kernel's code at {at:#x} is not in guest memory; fetch the kernel again")]
pub struct NotInMemory {
    /// Guest physical address.
    pub at: u64,
}

/// Rewrites every VMCALL and VMMCALL in `code` to `out port, al; nop`. Call it
/// before any vCPU runs. Doing it again changes nothing.
///
/// # Errors
/// [`NotInMemory`]; some sites may have been rewritten.
pub fn rewrite(ram: &GuestRam, code: &KernelCode, port: u8) -> Result<Rewritten, NotInMemory> {
    let mut done = Rewritten::default();
    for range in &code.ranges {
        // All of a range first: a rewritten site must not be read as code.
        for site in sites(ram, code, range)? {
            match site {
                Site::Unsure(at) => {
                    tracing::debug!(at, "may be a hypercall, and is left alone");
                    done.unsure += 1;
                }
                Site::Sure(at) => {
                    ram.write_slice(&output(port), GuestAddress(at))
                        .map_err(|_| NotInMemory { at })?;
                    tracing::trace!(at, "a hypercall by port output");
                    done.sites += 1;
                }
            }
        }
    }
    Ok(done)
}

/// `out port, al; nop`. AL is the hypercall's number, and every register but
/// RAX keeps its argument for the exit's handler.
fn output(port: u8) -> [u8; SITE] {
    const OUT_IMM8_AL: u8 = 0xe6;
    const NOP: u8 = 0x90;
    [OUT_IMM8_AL, port, NOP]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Site {
    Sure(u64),
    Unsure(u64),
}

/// The sites in one range of code, rising.
fn sites(ram: &GuestRam, code: &KernelCode, range: &Range<u64>) -> Result<Vec<Site>, NotInMemory> {
    let mut found = Vec::new();
    let mut start = range.start;
    while start < range.end {
        // Over the end by two bytes, so that none falls between two pieces.
        let end = start.saturating_add(PIECE).min(range.end);
        let piece = read(ram, start..end.saturating_add(SITE as u64 - 1).min(range.end))?;
        for offset in candidates(&piece) {
            let at = start + offset as u64;
            match is_site(ram, code, range, at)? {
                Some(true) => found.push(Site::Sure(at)),
                Some(false) => {}
                None => found.push(Site::Unsure(at)),
            }
        }
        start = end;
    }
    Ok(found)
}

/// Where the bytes of either instruction stand.
fn candidates(bytes: &[u8]) -> Vec<usize> {
    let mut found: Vec<usize> = [VMCALL, VMMCALL]
        .iter()
        .flat_map(|pattern| memchr::memmem::find_iter(bytes, pattern).collect::<Vec<_>>())
        .collect();
    found.sort_unstable();
    found
}

/// Whether an instruction begins at `at`; `None` where that cannot be told.
fn is_site(
    ram: &GuestRam,
    code: &KernelCode,
    range: &Range<u64>,
    at: u64,
) -> Result<Option<bool>, NotInMemory> {
    let function = code.functions.partition_point(|function| *function <= at);
    let known = function.checked_sub(1).and_then(|index| code.functions.get(index)).copied();
    let known = known.map_or(range.start, |function| function.max(range.start));
    if at - known <= FAR {
        let window = read(ram, known..at + SITE as u64)?;
        // Of a stream that ends in bytes which are no instruction nothing is known.
        if let Some(answer) = Streams::new(&window, code.bitness).begins(0) {
            return Ok(Some(answer));
        }
    }
    for distance in DISTANCES {
        let from = at.saturating_sub(distance).max(range.start);
        let window = read(ram, from..at + SITE as u64)?;
        if let Some(answer) = Streams::new(&window, code.bitness).agree() {
            return Ok(Some(answer));
        }
    }
    Ok(None)
}

fn read(ram: &GuestRam, range: Range<u64>) -> Result<Vec<u8>, NotInMemory> {
    let missing = NotInMemory { at: range.start };
    let Ok(len) = usize::try_from(range.end - range.start) else { return Err(missing) };
    let mut bytes = vec![0; len];
    ram.read_slice(&mut bytes, GuestAddress(range.start)).map_err(|_| missing)?;
    Ok(bytes)
}

/// What is known of a place in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Unknown,
    /// Decoding from here meets the site as an instruction (or passes it by).
    Ends(bool),
    /// Decoding from here meets what is no instruction.
    Dead,
}

/// Decoding of a window of code that ends with the three bytes in question.
struct Streams<'a> {
    window: &'a [u8],
    site: usize,
    bitness: u32,
    /// Streams that meet are one, so each byte is decoded from at most once.
    known: Vec<Stream>,
}

impl<'a> Streams<'a> {
    fn new(window: &'a [u8], bitness: u32) -> Self {
        let site = window.len().saturating_sub(SITE);
        Self { window, site, bitness, known: vec![Stream::Unknown; site + 1] }
    }

    /// Whether all of 15 consecutive starts give one answer, and which. Those
    /// that run into no instruction give none: the real one is not among them.
    fn agree(&mut self) -> Option<bool> {
        if self.site < LONGEST {
            return None;
        }
        let mut answer = None;
        for start in 0..LONGEST {
            if let Some(begins) = self.begins(start)
                && *answer.get_or_insert(begins) != begins
            {
                return None;
            }
        }
        answer
    }

    /// Whether decoding from `start` comes to the site as an instruction of its
    /// own; `None` if it runs into what is no instruction.
    fn begins(&mut self, start: usize) -> Option<bool> {
        let mut path = Vec::new();
        let mut decoder =
            Decoder::with_ip(self.bitness, self.window, start as u64, DecoderOptions::NONE);
        let mut at = start;
        let end = loop {
            if at > self.site {
                break Stream::Ends(false);
            }
            if let Some(known) = self.known.get(at).filter(|known| **known != Stream::Unknown) {
                break *known;
            }
            path.push(at);
            if decoder.set_position(at).is_err() {
                break Stream::Dead;
            }
            let instruction = decoder.decode();
            if at == self.site {
                let code = instruction.code();
                break Stream::Ends(
                    matches!(code, Code::Vmcall | Code::Vmmcall) && instruction.len() == SITE,
                );
            }
            if instruction.is_invalid() {
                // Cut off by the window's end, it reaches over the site.
                let cut = decoder.last_error() == iced_x86::DecoderError::NoMoreBytes;
                break if cut { Stream::Ends(false) } else { Stream::Dead };
            }
            at += instruction.len();
        };
        for at in path {
            if let Some(known) = self.known.get_mut(at) {
                *known = end;
            }
        }
        match end {
            Stream::Ends(begins) => Some(begins),
            Stream::Dead | Stream::Unknown => None,
        }
    }
}

#[cfg(test)]
mod tests;
