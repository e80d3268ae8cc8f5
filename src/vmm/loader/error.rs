//! What can be wrong with a kernel or a module, each in one line.

use super::Compression;
use thiserror::Error;

/// Why a kernel or a module could not be loaded. The file's name is added by
/// the caller, who knows it.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file cannot be opened or read.
    #[error("{0}; check the name and the permissions")]
    Io(#[from] std::io::Error),
    /// Neither an ELF nor a bzImage.
    #[error("not a kernel: starts with {start}{hint}; give a bzImage, a vmlinux or a PVH ELF")]
    NotAKernel {
        /// The first bytes, in hexadecimal, or "nothing".
        start: String,
        /// What it may be instead.
        hint: &'static str,
    },
    /// The file ends before something that its headers promise.
    #[error("truncated {what}: needs {need} bytes, the file has {have}; fetch it again")]
    Truncated {
        /// What was cut.
        what: &'static str,
        /// Bytes that the headers promise.
        need: u64,
        /// Bytes that there are.
        have: u64,
    },
    /// A bzImage older than boot protocol 2.08, which has no payload fields.
    #[error(
        "bzImage of boot protocol {}.{:02} has no payload fields; use Linux 2.6.26 or later, or its vmlinux",
        .0 >> 8, .0 & 0xff
    )]
    OldProtocol(u16),
    /// A bzImage whose payload fields are zero.
    #[error("bzImage without a payload (offset {offset}, length {size}); use its vmlinux")]
    NoPayload {
        /// Field `payload_offset`.
        offset: u32,
        /// Field `payload_length`.
        size: u32,
    },
    /// A compression that is not supported.
    #[error(
        "bzImage payload has unknown compression (starts with {0}); LZ4, zstd, xz and gzip work, or use its vmlinux"
    )]
    UnknownCompression(String),
    /// The payload does not unpack.
    #[error("{compression} payload is damaged: {reason}; fetch the kernel again")]
    Decompress {
        /// How it is packed.
        compression: Compression,
        /// What the unpacker said.
        reason: String,
    },
    /// The payload unpacks to more than the guest has.
    #[error(
        "kernel unpacks to {} MiB, the guest has {} MiB: give it more memory",
        .size.div_ceil(1 << 20), .limit >> 20
    )]
    PayloadTooLarge {
        /// Bytes when unpacked.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// A pipe that gives more than the guest has.
    #[error("input is larger than the guest's {} MiB; give it more memory", .limit >> 20)]
    FileTooLarge {
        /// Bytes read so far.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The payload unpacks to something that is no ELF.
    #[error("{compression} payload holds no ELF; use the kernel's vmlinux")]
    PayloadNotElf {
        /// How it is packed.
        compression: Compression,
    },
    /// An ELF that contradicts itself.
    #[error("damaged ELF: {0}; build or fetch it again")]
    BadElf(String),
    /// An ELF of another machine or byte order.
    #[error("ELF for {0}: only x86 and x86-64 kernels can run here")]
    Architecture(String),
    /// An object file, a core dump.
    #[error("ELF type {0} is no executable; link it, or give the vmlinux")]
    NotExecutable(u16),
    /// An ELF that loads nothing.
    #[error("ELF without a loadable segment; give the vmlinux, not its debug symbols")]
    NoSegments,
    /// No PHYS32_ENTRY note.
    #[error("no PVH note (Xen ELF note 18, PHYS32_ENTRY): build the kernel with CONFIG_PVH=y")]
    NoPvhNote,
    /// The entry is in no loaded segment.
    #[error("PVH entry {entry:#x} is outside every loaded segment; build the kernel again")]
    EntryOutside {
        /// The address of the note.
        entry: u64,
    },
    /// A segment reaches beyond the RAM below 3 GiB.
    #[error(
        "kernel needs memory up to {end:#x}, RAM below 4 GiB ends at {ram_end:#x}: give the guest at least {} MiB",
        .end.div_ceil(1 << 20)
    )]
    KernelTooLarge {
        /// First address after what it needs.
        end: u64,
        /// First address after RAM.
        ram_end: u64,
    },
    /// A segment above 3 GiB, where no RAM can be.
    #[error(
        "kernel segment {start:#x}..{end:#x} lies above 3 GiB, where a PVH guest has no RAM; link it lower"
    )]
    SegmentTooHigh {
        /// First address.
        start: u64,
        /// First address after.
        end: u64,
    },
    /// A segment over a reserved range.
    #[error(
        "kernel segment {start:#x}..{end:#x} overlaps the reserved range {reserved_start:#x}..{reserved_end:#x}; link it at 1 MiB or above"
    )]
    Overlap {
        /// First address.
        start: u64,
        /// First address after.
        end: u64,
        /// First reserved address.
        reserved_start: u64,
        /// First address after the reserved range.
        reserved_end: u64,
    },
    /// An initrd or module with nothing in it.
    #[error("file is empty; give a file with contents, or none")]
    Empty,
    /// An initrd or module that does not fit beside the kernel.
    #[error(
        "file of {} MiB does not fit: {} MiB of RAM are free beside the kernel; give the guest more memory",
        .size.div_ceil(1 << 20), .free >> 20
    )]
    ModuleTooLarge {
        /// Bytes of the file.
        size: u64,
        /// Bytes free.
        free: u64,
    },
    /// More modules than a guest can be told of.
    #[error("{0} modules: at most {max} can be passed", max = super::modules::MAX_MODULES)]
    TooManyModules(usize),
    /// A command line beyond COMMAND_LINE_SIZE.
    #[error(
        "command line has {len} bytes: at most {max} fit; shorten it",
        max = super::start_info::MAX_COMMAND_LINE
    )]
    CommandLineTooLong {
        /// Its length in bytes, without the final NUL.
        len: usize,
    },
    /// A NUL inside the command line.
    #[error("command line has a NUL byte at position {at}: remove it")]
    CommandLineNul {
        /// Position in bytes.
        at: usize,
    },
    /// Guest memory refused a write: the layout and the memory do not match.
    #[error("cannot write guest memory: {0}; the layout does not describe this memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

impl LoadError {
    /// The error for a file that starts with `head`.
    pub(super) fn not_a_kernel(head: &[u8]) -> Self {
        let hint = match head {
            [] => " (the file is empty)",
            [0x1f, 0x8b, ..] => " (gzip: unpack it first)",
            [0x28, 0xb5, 0x2f, 0xfd, ..] => " (zstd: unpack it first)",
            [0xfd, b'7', b'z', b'X', b'Z', ..] => " (xz: unpack it first)",
            [b'0', b'7', b'0', b'7', b'0', ..] => " (cpio: is this the initrd?)",
            [b'M', b'Z', ..] => " (an EFI program without a Linux header)",
            _ => "",
        };
        Self::NotAKernel { start: hex_start(head), hint }
    }
}

/// The first four bytes of `bytes`, for a message.
pub(super) fn hex_start(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "nothing".to_owned();
    }
    bytes.iter().take(4).map(|b| format!("{b:02x}")).collect()
}
