//! The runstate in guest memory: both layouts, whole and split over pages.

use super::*;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

const RAM: u64 = 0x8000;

fn ram() -> GuestRam {
    let size = usize::try_from(RAM).unwrap();
    GuestRam::from_ranges(&[(GuestAddress(0), size)]).unwrap()
}

fn runstate() -> Runstate {
    Runstate {
        state: 2,
        state_entry_time_ns: 0x0102_0304_0506_0708,
        time_ns: [0x1111_2222, 0x3333_0000_0000, u64::MAX, 4],
    }
}

fn bytes_of(layout: Width) -> Vec<u8> {
    let sample = runstate();
    let mut bytes = sample.state.to_le_bytes().to_vec();
    if layout == Width::Bits64 {
        bytes.extend([0; 4]);
    }
    bytes.extend(sample.state_entry_time_ns.to_le_bytes());
    bytes.extend(sample.time_ns.iter().flat_map(|ns| ns.to_le_bytes()));
    bytes
}

#[test]
fn both_layouts_land_where_xen_puts_them() {
    for layout in [Width::Bits64, Width::Bits32] {
        for update_flag in [false, true] {
            let mem = ram();
            let area = RunstateArea::new(layout, GuestAddress(0x1004), None).unwrap();
            publish_runstate(&mem, &area, &runstate(), update_flag).unwrap();
            let mut bytes = vec![0; RunstateArea::size(layout)];
            mem.read_slice(&mut bytes, area.gpa()).unwrap();
            assert_eq!(bytes, bytes_of(layout), "{layout:?}");
            assert_eq!(read_runstate(&mem, &area), Ok(runstate()));
            let after = GuestAddress(0x1004 + bytes.len() as u64);
            assert_eq!(mem.read_obj::<u32>(after).unwrap(), 0);
        }
    }
}

#[test]
fn every_split_over_distant_pages() {
    for layout in [Width::Bits64, Width::Bits32] {
        let size = RunstateArea::size(layout);
        for in_first in (4..size).step_by(4) {
            let mem = ram();
            let gpa = GuestAddress(0x2000 - in_first as u64);
            let area = RunstateArea::new(layout, gpa, Some(GuestAddress(0x5000))).unwrap();
            assert_eq!(area.next_page(), Some(GuestAddress(0x5000)));
            publish_runstate(&mem, &area, &runstate(), true).unwrap();
            let mut bytes = vec![0; size];
            mem.read_slice(&mut bytes[..in_first], gpa).unwrap();
            mem.read_slice(&mut bytes[in_first..], GuestAddress(0x5000)).unwrap();
            assert_eq!(bytes, bytes_of(layout), "{layout:?}, {in_first} bytes first");
            assert_eq!(mem.read_obj::<u64>(GuestAddress(0x2000)).unwrap(), 0);
            let region = mem.iter().next().unwrap();
            let dirty: Vec<_> = (0..8).filter(|n| region.bitmap().dirty_at(n * 4096)).collect();
            assert_eq!(dirty, [1, 5]);
        }
    }
}

#[test]
fn an_area_that_ends_with_its_page_needs_no_second() {
    let area = RunstateArea::new(Width::Bits64, GuestAddress(0x2000 - 48), None).unwrap();
    assert_eq!(area.next_page(), None);
    let area = RunstateArea::new(Width::Bits32, GuestAddress(0x2000 - 44), None).unwrap();
    assert_eq!(area.next_page(), None);
}

#[test]
fn bad_areas_are_named() {
    let new = |gpa, next: Option<u64>| {
        RunstateArea::new(Width::Bits64, GuestAddress(gpa), next.map(GuestAddress))
    };
    assert_eq!(new(0x1002, None), Err(PageError::Misaligned { what: WHAT, gpa: 0x1002 }));
    assert_eq!(new(0x1ff0, None), Err(PageError::CrossesPage { what: WHAT, gpa: 0x1ff0 }));
    let crooked = PageError::Misaligned { what: WHAT, gpa: 0x5004 };
    assert_eq!(new(0x1ff0, Some(0x5004)), Err(crooked));
    assert!(new(u64::MAX - 3, None).is_err());
}

#[test]
fn nothing_is_written_when_one_half_is_missing() {
    let mem = ram();
    let gpa = GuestAddress(0x1ff0);
    let area = RunstateArea::new(Width::Bits64, gpa, Some(GuestAddress(RAM))).unwrap();
    let missing = PageError::Unmapped { what: WHAT, gpa: RAM, len: 32 };
    assert_eq!(publish_runstate(&mem, &area, &runstate(), true), Err(missing));
    assert_eq!(mem.read_obj::<u128>(gpa).unwrap(), 0);
}

#[test]
fn the_update_flag_never_stays() {
    let mem = ram();
    let area = RunstateArea::new(Width::Bits64, GuestAddress(0x1000), None).unwrap();
    let marked = Runstate { state_entry_time_ns: 1 << 63 | 5, ..runstate() };
    for update_flag in [true, false] {
        publish_runstate(&mem, &area, &marked, update_flag).unwrap();
        assert_eq!(read_runstate(&mem, &area).unwrap().state_entry_time_ns, 5);
    }
}
