//! The clock page in guest memory: layout, version, dirty bits, bad addresses.

use super::*;
use crate::clock::TscFrequency;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

const RAM: u64 = 0x4000;
const PAGE: GuestAddress = GuestAddress(0x1020);

fn ram() -> GuestRam {
    let size = usize::try_from(RAM).unwrap();
    GuestRam::from_ranges(&[(GuestAddress(0), size)]).unwrap()
}

fn info() -> TimeInfo {
    TimeInfo {
        tsc_timestamp: 0x0102_0304_0506_0708,
        system_time: 0x1112_1314_1516_1718,
        mul: 0x2122_2324,
        shift: -3,
        flags: PVCLOCK_TSC_STABLE,
    }
}

fn dirty_pages(mem: &GuestRam) -> Vec<usize> {
    let region = mem.iter().next().unwrap();
    (0..4).filter(|page| region.bitmap().dirty_at(page * 4096)).collect()
}

#[test]
fn lands_where_xen_puts_it() {
    let mem = ram();
    assert_eq!(publish_time(&mem, PAGE, &info()), Ok(Published::Rewritten));
    let mut bytes = [0u8; TIME_INFO_SIZE];
    mem.read_slice(&mut bytes, PAGE).unwrap();
    assert_eq!(bytes[0..8], [2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[8..16], 0x0102_0304_0506_0708u64.to_le_bytes());
    assert_eq!(bytes[16..24], 0x1112_1314_1516_1718u64.to_le_bytes());
    assert_eq!(bytes[24..28], 0x2122_2324u32.to_le_bytes());
    assert_eq!(bytes[28..32], [0xfd, 1, 0, 0]);
    assert_eq!(read_time(&mem, PAGE), Ok(info()));
    assert_eq!(mem.read_obj::<u32>(GuestAddress(0x101c)).unwrap(), 0);
    assert_eq!(mem.read_obj::<u32>(GuestAddress(0x1040)).unwrap(), 0);
}

#[test]
fn version_moves_on_by_two_and_only_for_news() {
    let mem = ram();
    publish_time(&mem, PAGE, &info()).unwrap();
    assert_eq!(publish_time(&mem, PAGE, &info()), Ok(Published::Unchanged));
    assert_eq!(read_time_version(&mem, PAGE), Ok(2));
    let later = TimeInfo { flags: 0, ..info() };
    assert_eq!(publish_time(&mem, PAGE, &later), Ok(Published::Rewritten));
    assert_eq!(read_time_version(&mem, PAGE), Ok(4));
}

#[test]
fn any_version_a_guest_scribbles_is_overcome() {
    for (scribbled, after) in [(1, 4), (7, 10), (u32::MAX, 2), (u32::MAX - 1, 0), (8, 10)] {
        let mem = ram();
        mem.write_obj(scribbled, PAGE).unwrap();
        publish_time(&mem, PAGE, &info()).unwrap();
        assert_eq!(read_time_version(&mem, PAGE), Ok(after), "from {scribbled}");
        assert_eq!(read_time(&mem, PAGE), Ok(info()));
    }
}

#[test]
fn an_odd_version_is_repaired_even_under_equal_data() {
    let mem = ram();
    publish_time(&mem, PAGE, &info()).unwrap();
    mem.write_obj(3u32, PAGE).unwrap();
    let unstable = PageError::Unstable { what: WHAT, gpa: PAGE.raw_value(), tries: READ_TRIES };
    assert_eq!(read_time(&mem, PAGE), Err(unstable));
    assert_eq!(publish_time(&mem, PAGE, &info()), Ok(Published::Rewritten));
    assert_eq!(read_time(&mem, PAGE), Ok(info()));
}

#[test]
fn only_a_rewrite_dirties_its_page() {
    let mem = ram();
    assert!(dirty_pages(&mem).is_empty());
    publish_time(&mem, PAGE, &info()).unwrap();
    assert_eq!(dirty_pages(&mem), [1]);
    (**mem.iter().next().unwrap()).bitmap().reset();
    publish_time(&mem, PAGE, &info()).unwrap();
    assert!(dirty_pages(&mem).is_empty());
    // Half in page 2, half in page 3: physically adjacent, so one piece.
    publish_time(&mem, GuestAddress(0x2ff0), &info()).unwrap();
    assert_eq!(dirty_pages(&mem), [2, 3]);
}

#[test]
fn four_byte_alignment_is_enough_and_less_is_not() {
    let mem = ram();
    publish_time(&mem, GuestAddress(0x1004), &info()).unwrap();
    assert_eq!(read_time(&mem, GuestAddress(0x1004)), Ok(info()));
    for gpa in [0x1001, 0x1002, 0x1003] {
        let misaligned = PageError::Misaligned { what: WHAT, gpa };
        assert_eq!(publish_time(&mem, GuestAddress(gpa), &info()), Err(misaligned));
        assert_eq!(read_time(&mem, GuestAddress(gpa)), Err(misaligned));
    }
}

#[test]
fn addresses_outside_of_ram_are_named() {
    let mem = ram();
    assert!(publish_time(&mem, GuestAddress(RAM - 32), &info()).is_ok());
    for gpa in [RAM - 28, RAM, u64::MAX - 3, u64::MAX - 31] {
        let error = publish_time(&mem, GuestAddress(gpa), &info()).unwrap_err();
        assert_eq!(error, PageError::Unmapped { what: WHAT, gpa, len: 32 });
        assert!(error.to_string().contains(&format!("{gpa:#x}")));
    }
}

#[test]
fn a_line_fills_its_page() {
    let frequency = TscFrequency::from_khz(2_500_000).unwrap();
    let line = SystemTimeLine::new(frequency, 123, 456).unwrap();
    let page = TimeInfo::from_line(&line, PVCLOCK_TSC_STABLE);
    assert_eq!((page.tsc_timestamp, page.system_time), (123, 456));
    assert_eq!((page.mul, page.shift), (line.mul(), line.shift()));
}

/// The model check covers the order; this covers that guest memory is wired to
/// the protocol. A mix of two publications has two different numbers in it.
#[test]
fn a_reader_on_another_thread_sees_whole_pages() {
    const LAST: u32 = 20_000;
    let mem = ram();
    let numbered = |n: u32| TimeInfo {
        tsc_timestamp: u64::from(n) << 32 | u64::from(n),
        system_time: u64::from(n) << 32 | u64::from(n),
        mul: n,
        ..TimeInfo::default()
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1..=LAST {
                publish_time(&mem, PAGE, &numbered(n)).unwrap();
            }
        });
        let mut newest = 0;
        while newest < LAST {
            if let Ok(seen) = read_time(&mem, PAGE) {
                assert_eq!(seen, numbered(seen.mul));
                assert!(seen.mul >= newest);
                newest = seen.mul;
            }
        }
    });
    assert_eq!(read_time_version(&mem, PAGE), Ok(2 * LAST));
}
