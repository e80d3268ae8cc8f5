//! What a guest finds: start info, modules, memory map, read as a guest would.

use super::machine;
use super::synthetic::{Elf, Note};
use kvm_xen::vmm::acpi::AcpiConfig;
use kvm_xen::vmm::boot::{BootConfig, BootError, BootState, prepare_boot};
use kvm_xen::vmm::loader::{FileSource, LoadError, ModuleSource};
use kvm_xen::vmm::memory::GuestRam;
use std::path::Path;
use vm_memory::{Bytes, GuestAddress};

const ACPI: AcpiConfig<'static> = AcpiConfig { cpus: 1, devices: &[] };

fn read(ram: &GuestRam, addr: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    ram.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
    bytes
}

fn u64_at(ram: &GuestRam, addr: u64) -> u64 {
    u64::from_le_bytes(read(ram, addr, 8).try_into().unwrap())
}

fn u32_at(ram: &GuestRam, addr: u64) -> u32 {
    u32::from_le_bytes(read(ram, addr, 4).try_into().unwrap())
}

fn string_at(ram: &GuestRam, addr: u64) -> String {
    let bytes: Vec<u8> = (addr..).map(|a| read(ram, a, 1)[0]).take_while(|b| *b != 0).collect();
    String::from_utf8(bytes).unwrap()
}

/// Prepares a small guest of `mib` MiB with the given modules.
fn prepare<'a>(
    mib: u64,
    kernel: &'a [u8],
    initrd: Option<FileSource<'a>>,
    modules: &'a [ModuleSource<'a>],
    cmdline: &'a str,
) -> Result<(GuestRam, BootState<'a>), BootError> {
    let (layout, ram) = machine(mib);
    let kernel = FileSource::Bytes(kernel);
    let config = BootConfig { kernel, initrd, modules, cmdline, acpi: ACPI };
    let state = prepare_boot(&ram, &layout, &config)?;
    Ok((ram, state))
}

#[test]
fn start_info_tells_everything() {
    let kernel = Elf::new(true, Note::Segment).build();
    let second = vec![0xcd; 5000];
    let modules = [
        ModuleSource { source: FileSource::Bytes(&second), cmdline: "second=1" },
        ModuleSource { source: FileSource::Bytes(b"third"), cmdline: "" },
    ];
    let initrd = vec![0xab; 4097];
    let (ram, state) =
        prepare(4, &kernel, Some(FileSource::Bytes(&initrd)), &modules, "console=hvc0 x").unwrap();

    let info = u64::from(state.start_info);
    assert_eq!(info, 0x18_3000, "the page after the kernel");
    assert_eq!((u32_at(&ram, info), u32_at(&ram, info + 4)), (0x336e_c578, 1));
    assert_eq!((u32_at(&ram, info + 8), u32_at(&ram, info + 12)), (0, 3));
    assert_eq!(string_at(&ram, u64_at(&ram, info + 24)), "console=hvc0 x");
    assert_eq!(u64_at(&ram, info + 32), state.rsdp);
    assert_eq!(read(&ram, state.rsdp, 8), b"RSD PTR ");

    let list = u64_at(&ram, info + 16);
    let mut top = 4 << 20;
    for (i, (bytes, cmdline)) in
        [(&initrd[..], ""), (&second, "second=1"), (b"third", "")].into_iter().enumerate()
    {
        let entry = list + i as u64 * 32;
        let (addr, size) = (u64_at(&ram, entry), u64_at(&ram, entry + 8));
        assert_eq!(addr % 4096, 0);
        assert!(addr + size <= top && top - (addr + size) < 4096, "as high as possible");
        top = addr;
        assert_eq!(read(&ram, addr, size), bytes);
        match (u64_at(&ram, entry + 16), cmdline) {
            (0, "") => {}
            (at, line) => assert_eq!(string_at(&ram, at), line),
        }
    }

    let (map, count) = (u64_at(&ram, info + 40), u64::from(u32_at(&ram, info + 48)));
    let told: Vec<_> = (0..count)
        .map(|i| map + i * 24)
        .map(|e| (u64_at(&ram, e), u64_at(&ram, e + 8), u32_at(&ram, e + 16)))
        .collect();
    assert_eq!(
        told,
        [
            (0, 0xa_0000, 1),
            (0xa_0000, 0x6_0000, 2),
            (0x10_0000, 0x30_0000, 1),
            (0xfeff_0000, 0x1_0000, 2),
        ]
    );
    assert_eq!(told.len(), state.memory_map.len());
    assert!(state.memory_map.iter().all(|e| e.kind <= xen_abi::memory::E820_RESERVED));
}

#[test]
fn start_info_without_modules() {
    let kernel = Elf::new(false, Note::Section).build();
    let (ram, state) = prepare(2, &kernel, None, &[], "").unwrap();
    let info = u64::from(state.start_info);
    assert_eq!((u32_at(&ram, info + 12), u64_at(&ram, info + 16)), (0, 0));
    assert_eq!(string_at(&ram, u64_at(&ram, info + 24)), "");
}

#[test]
fn kernel_below_the_legacy_area() {
    let mut elf = Elf::new(true, Note::Segment);
    elf.entry = 0x9_e000;
    elf.segments.truncate(1);
    elf.segments[0].paddr = 0x9_e000;
    elf.segments[0].mem_size = 0x2000;
    let kernel = elf.build();
    let (_, state) = prepare(2, &kernel, None, &[], "x").unwrap();
    assert_eq!(state.start_info, 0x10_0000, "after the reserved range");
}

#[test]
fn module_fills_memory_to_the_last_page() {
    let kernel = Elf::new(true, Note::Segment).build();
    // RAM ends at 2 MiB, the start info is the page at 0x183000.
    let fits = vec![1; 0x20_0000 - 0x18_4000];
    let (_, state) = prepare(2, &kernel, Some(FileSource::Bytes(&fits)), &[], "").unwrap();
    assert_eq!(state.modules[0].addr, 0x18_4000);
    let more = vec![1; fits.len() + 1];
    let error = prepare(2, &kernel, Some(FileSource::Bytes(&more)), &[], "").unwrap_err();
    assert!(
        matches!(&error, BootError::Module { error: LoadError::ModuleTooLarge { .. }, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("more memory"), "{error}");
}

#[test]
fn command_lines_are_checked() {
    let kernel = Elf::new(true, Note::Segment).build();
    let longest = "x".repeat(2047);
    assert!(prepare(2, &kernel, None, &[], &longest).is_ok());
    let longer = "x".repeat(2048);
    let message = prepare(2, &kernel, None, &[], &longer).unwrap_err().to_string();
    assert_eq!(message, "command line has 2048 bytes: at most 2047 fit; shorten it");
    let message = prepare(2, &kernel, None, &[], "ab\0c").unwrap_err().to_string();
    assert_eq!(message, "command line has a NUL byte at position 2: remove it");
    let modules = [ModuleSource { source: FileSource::Bytes(b"m"), cmdline: &longer }];
    assert!(prepare(2, &kernel, None, &modules, "").is_err());
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let kernel = Elf::new(true, Note::Segment).build();
    let missing = FileSource::Path(Path::new("/nonexistent/initrd.img"));
    let directory = FileSource::Path(Path::new("/"));
    for (initrd, parts) in [
        (missing, ["module /nonexistent/initrd.img: No such file", "check the name"]),
        (directory, ["module /: ", "check the name"]),
        (FileSource::Bytes(b""), ["file is empty", "give a file with contents"]),
    ] {
        let message = prepare(2, &kernel, Some(initrd), &[], "").unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    let (layout, ram) = machine(2);
    let config =
        BootConfig { kernel: missing, initrd: None, modules: &[], cmdline: "", acpi: ACPI };
    let message = prepare_boot(&ram, &layout, &config).unwrap_err().to_string();
    assert!(message.starts_with("kernel /nonexistent/initrd.img: "), "{message}");
}

#[test]
fn too_many_modules() {
    let kernel = Elf::new(true, Note::Segment).build();
    let modules = [ModuleSource { source: FileSource::Bytes(b"m"), cmdline: "" }; 65];
    let message = prepare(2, &kernel, None, &modules, "").unwrap_err().to_string();
    assert_eq!(message, "65 modules: at most 64 can be passed");
    assert!(prepare(4, &kernel, None, &modules[1..], "").is_ok());
}
