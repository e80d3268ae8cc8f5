//! Boundaries of the layout, and memory that is really mapped.

use super::*;
use vm_memory::Bytes;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[test]
fn sizes_that_people_write() {
    for (text, bytes) in [
        ("512M", 512 * MIB),
        ("512m", 512 * MIB),
        ("512MiB", 512 * MIB),
        (" 1G ", GIB),
        ("64k", 64 << 10),
        ("2T", 2 << 40),
        ("0", 0),
        ("134217728", 128 * MIB),
        ("18446744073709551615", u64::MAX),
        ("16777215T", 16_777_215 << 40),
    ] {
        assert_eq!(parse_memory_size(text), Ok(bytes), "{text}");
    }
}

#[test]
fn sizes_that_are_refused_name_the_value() {
    for text in
        ["", "M", "-1", "1.5G", "1X", "1GG", "0x100", "18446744073709551616", "16777216T", "１G"]
    {
        let message = parse_memory_size(text).unwrap_err().to_string();
        assert!(message.contains(&format!("\"{text}\"")), "{message}");
        assert!(!message.contains('\n'));
    }
}

#[test]
fn bounds_of_the_size() {
    assert!(matches!(MemoryLayout::new(0), Err(MemoryError::Zero)));
    assert!(matches!(MemoryLayout::new(MIB + 1), Err(MemoryError::NotPageMultiple(_))));
    assert!(matches!(MemoryLayout::new(MIB - PAGE_SIZE), Err(MemoryError::TooSmall(_))));
    assert!(matches!(MemoryLayout::new(MAX_RAM + PAGE_SIZE), Err(MemoryError::TooLarge(_))));
    assert!(MemoryLayout::new(MIB).is_ok());
    assert!(MemoryLayout::new(MAX_RAM).is_ok());
    let error = MemoryLayout::for_host(8 * GIB, 4 * GIB).unwrap_err().to_string();
    assert_eq!(error, "memory size 8192 MiB is more than this host's 4096 MiB: ask for less");
    assert!(MemoryLayout::for_host(4 * GIB, 4 * GIB).is_ok());
}

#[test]
fn map_is_sorted_disjoint_and_holds_all_ram() {
    for size in [MIB, 2 * MIB, 512 * MIB, 3 * GIB, 3 * GIB + PAGE_SIZE, 8 * GIB, MAX_RAM] {
        let layout = MemoryLayout::new(size).unwrap();
        let map = layout.memory_map();
        assert!(map.windows(2).all(|w| w[0].end() <= w[1].addr), "{map:?}");
        assert!(map.iter().all(|e| e.size > 0));
        let ram: u64 = map.iter().filter(|e| e.kind == E820_RAM).map(|e| e.size).sum();
        assert_eq!(ram, size - (LEGACY_END - LEGACY_START));
        let backed: u64 = layout.regions().iter().map(|r| r.1 as u64).sum();
        assert_eq!(backed, size + 16 * PAGE_SIZE);
    }
}

#[test]
fn ram_splits_at_three_gib() {
    let layout = MemoryLayout::new(3 * GIB).unwrap();
    assert_eq!((layout.low_ram_end(), layout.high_ram_end()), (3 * GIB, None));
    let layout = MemoryLayout::new(3 * GIB + PAGE_SIZE).unwrap();
    assert_eq!(layout.high_ram_end(), Some(HIGH_RAM_START + PAGE_SIZE));
}

#[test]
fn special_pages_are_where_xen_has_them() {
    assert_eq!((XENSTORE_PFN, IDENT_PT_PFN, CONSOLE_PFN), (0xfeffc, 0xfeffe, 0xfefff));
    assert_eq!(DEVICE_PAGES_START + DEVICE_PAGES * PAGE_SIZE, XEN_SPECIAL_START);
    assert_eq!(XEN_SPECIAL_START + XEN_SPECIAL_PAGES * PAGE_SIZE, 0xff00_0000);
}

#[test]
fn mapped_memory_is_zero_writable_and_ends_where_it_should() {
    for huge_pages in [false, true] {
        let layout = MemoryLayout::new(16 * MIB).unwrap();
        let ram = layout.create(MemoryOptions { huge_pages }).unwrap();
        for addr in [0, 16 * MIB - 8, CONSOLE_PFN * PAGE_SIZE, DEVICE_PAGES_START] {
            assert_eq!(ram.read_obj::<u64>(GuestAddress(addr)).unwrap(), 0);
            ram.write_obj(0xa5u64, GuestAddress(addr)).unwrap();
        }
        for addr in [16 * MIB - 7, LOW_RAM_LIMIT, 0xff00_0000 - 7, HIGH_RAM_START] {
            assert!(ram.write_obj(1u64, GuestAddress(addr)).is_err(), "{addr:#x}");
        }
    }
}

#[test]
fn meminfo() {
    assert_eq!(parse_meminfo("MemFree: 1 kB\nMemTotal:       4 kB\n"), Some(4096));
    assert_eq!(parse_meminfo("MemTotal: x kB"), None);
    assert_eq!(parse_meminfo(""), None);
    assert!(host_memory().is_some_and(|m| m > 64 * MIB));
}
