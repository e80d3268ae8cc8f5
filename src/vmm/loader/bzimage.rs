//! Finds the compressed kernel inside a bzImage.
//!
//! Linux x86 boot protocol (`Documentation/arch/x86/boot.rst`), all fields
//! little-endian:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0x1f1 | 1 | setup_sects: sectors of real-mode code after the first; 0 means 4 |
//! | 0x1f4 | 4 | syssize: size of the rest, in 16-byte units |
//! | 0x1fe | 2 | boot_flag 0xaa55 |
//! | 0x202 | 4 | "HdrS" |
//! | 0x206 | 2 | version: major, minor |
//! | 0x248 | 4 | payload_offset, from the start of the protected-mode code |
//! | 0x24c | 4 | payload_length |

use super::LoadError;
use std::ops::Range;

/// Bytes of the file that hold every field used here.
pub(super) const HEADER_END: u64 = 0x250;

const SECTOR: u64 = 512;
const BOOT_FLAG: u16 = 0xaa55;
/// The first protocol with payload_offset and payload_length.
const PAYLOAD_PROTOCOL: u16 = 0x208;

/// Where the payload lies in a file of `file_size` bytes that begins with
/// `head`; `None` if it is no bzImage.
pub(super) fn payload_range(head: &[u8], file_size: u64) -> Result<Option<Range<u64>>, LoadError> {
    if le16(head, 0x1fe) != Some(BOOT_FLAG) || head.get(0x202..0x206) != Some(b"HdrS") {
        return Ok(None);
    }
    let truncated = |what, need| LoadError::Truncated { what, need, have: file_size };
    let version = le16(head, 0x206).ok_or_else(|| truncated("bzImage header", HEADER_END))?;
    if version < PAYLOAD_PROTOCOL {
        return Err(LoadError::OldProtocol(version));
    }
    let fields = (head.get(0x1f1), le32(head, 0x1f4), le32(head, 0x248), le32(head, 0x24c));
    let (Some(&setup_sects), Some(syssize), Some(offset), Some(size)) = fields else {
        return Err(truncated("bzImage header", HEADER_END));
    };
    if offset == 0 || size == 0 {
        return Err(LoadError::NoPayload { offset, size });
    }
    let setup_sects = if setup_sects == 0 { 4 } else { u64::from(setup_sects) };
    let setup_end = (setup_sects + 1) * SECTOR;
    let start = setup_end + u64::from(offset);
    let end = start + u64::from(size);
    let need = end.max(setup_end + u64::from(syssize) * 16);
    if need > file_size {
        return Err(truncated("bzImage", need));
    }
    Ok(Some(start..end))
}

fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
