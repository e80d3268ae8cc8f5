//! Anything at all thrown at the table: it ends, it does not panic, and it writes
//! to guest memory only.
#![expect(unsafe_code, reason = "guest memory inside a larger mapping, to see what is beside it")]

use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::bitmap::{AtomicBitmap, NewBitmap};
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap, VolatileMemory};
use xen_abi::hypercall::*;

use crate::pages::{GuestRam, Width};
use crate::xen::GrantAccess;
use crate::xen::test_calls::{ARG, full_config, full_domain, outcome};
use crate::xen::test_platform::{HIGH_RAM, HIGH_RAM_SIZE, RAM_SIZE, domain_over, put};

/// What lies before, between and behind the regions of guest memory.
const CANARY: usize = 64 << 10;
const CANARY_BYTE: u8 = 0xc5;
const SIZES: [(u64, usize); 2] = [(0, RAM_SIZE), (HIGH_RAM, HIGH_RAM_SIZE)];

/// Host memory of which guest memory is a part.
struct GuardedHost(MmapRegion);

impl GuardedHost {
    fn new() -> Self {
        let len = SIZES.iter().map(|(_, size)| size + CANARY).sum::<usize>() + CANARY;
        let host = Self(MmapRegion::new(len).expect("host memory"));
        for at in canaries() {
            let canary = host.0.get_slice(at, CANARY).expect("a canary");
            canary.copy_from(&[CANARY_BYTE; CANARY]);
        }
        host
    }

    /// The regions, all zero. They must not outlive `self`.
    fn guest_ram(&self) -> GuestRam {
        let regions = SIZES.iter().zip(canaries()).map(|(&(base, size), canary)| {
            let start = self.0.as_ptr().wrapping_add(canary + CANARY);
            let builder = MmapRegionBuilder::new_with_bitmap(size, AtomicBitmap::with_len(size));
            // SAFETY: `size` bytes of a live, private and anonymous mapping,
            // page aligned, which the test keeps until the domain is dropped.
            let builder = unsafe { builder.with_raw_mmap_pointer(start) };
            let region = builder.build().expect("a region");
            GuestRegionMmap::new(region, GuestAddress(base)).expect("its address")
        });
        GuestRam::from_regions(regions.collect()).expect("regions apart")
    }

    fn is_whole(&self) -> bool {
        canaries().all(|at| {
            let mut bytes = [0; CANARY];
            let canary = self.0.get_slice(at, CANARY).expect("a canary");
            canary.copy_to(&mut bytes) == CANARY && bytes == [CANARY_BYTE; CANARY]
        })
    }
}

/// Where the canaries are: before each region, and behind the last.
fn canaries() -> impl Iterator<Item = usize> {
    let ends = SIZES.iter().scan(0, |at, (_, size)| {
        *at += CANARY + size;
        Some(*at)
    });
    std::iter::once(0).chain(ends)
}

#[test]
fn a_byte_beside_guest_memory_is_seen() {
    for (index, at) in canaries().enumerate() {
        let host = GuardedHost::new();
        let ram = host.guest_ram();
        ram.write_slice(&[1; 4096], GuestAddress(HIGH_RAM)).expect("RAM");
        assert!(host.is_whole());
        host.0.get_slice(at + CANARY - 1, 1).expect("a byte").copy_from(&[0u8]);
        assert!(!host.is_whole(), "canary {index}");
    }
}

/// Several vCPUs rearrange the same memory, and a back end uses its grants: they
/// come to an end, and the accounts still hold.
#[test]
fn vcpus_that_rearrange_memory_at_once() {
    let (domain, ..) = full_domain();
    let most = domain.physmap.max_pages();
    let worker = |seed: u64| {
        // Each has its own page of arguments, and frames that it shares.
        let page = 0x8000 + seed * 0x1000;
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 20) % below
        };
        for _ in 0..3000 {
            let (a, b) = (0x20 + random(24), 0x20 + random(24));
            put(&domain, page + 0x800, &[a, b]);
            let reservation = [page + 0x800, 2, 0, 0x7ff0];
            let physmap = |space: u64, idx: u64| [0x7ff0 | space << 32, idx, a, 0];
            let (number, cmd, words) = match random(8) {
                0 => (HYPERVISOR_MEMORY_OP, 1, reservation),
                1 | 2 => (HYPERVISOR_MEMORY_OP, 6, reservation),
                3 => (HYPERVISOR_MEMORY_OP, 7, physmap(0, 0)),
                4 => (HYPERVISOR_MEMORY_OP, 7, physmap(1, random(3))),
                5 => (HYPERVISOR_MEMORY_OP, 7, physmap(2, b)),
                6 => (HYPERVISOR_MEMORY_OP, 15, [0x7ff0, a, 0, 0]),
                _ => (HYPERVISOR_GRANT_TABLE_OP, 8, [1 + random(2), 0, 0, 0]),
            };
            put(&domain, page, &words);
            let _ = outcome(&domain, Width::Bits64, number, &[cmd, page, 1]);
            domain.set_pending(random(64).try_into().expect("a port"), 0);
            drop(domain.map_grant(0, 0, GrantAccess::Read));
        }
    };
    std::thread::scope(|scope| {
        let worker = &worker;
        (1..4).for_each(|seed| drop(scope.spawn(move || worker(seed))));
        worker(4);
    });
    assert!(domain.physmap.pages() <= most);
    assert_eq!(domain.physmap.max_pages(), most);
    // Every frame can be had again, once the hypervisor's pages are out.
    for gfn in 0x20..0x38 {
        put(&domain, ARG, &[0x7ff0u64, gfn]);
        let _ = outcome(&domain, Width::Bits64, HYPERVISOR_MEMORY_OP, &[15, ARG]);
        assert!(!domain.physmap.is_present(gfn), "{gfn:#x}");
        assert_eq!(domain.physmap.populate(gfn), Ok(()), "{gfn:#x}");
    }
    assert_eq!(domain.physmap.pages(), most);
    assert_eq!(domain.shared_info_address(), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    /// Any number with any arguments over any memory: no panic, and an end.
    #[test]
    fn hostile_hypercalls_end(
        fill in prop::collection::vec(word(), 64..512),
        calls in prop::collection::vec((number(), prop::array::uniform6(argument()), any::<bool>()), 1..40),
    ) {
        let host = GuardedHost::new();
        let (domain, ..) = domain_over(full_config(), host.guest_ram());
        domain.attach_console().unwrap();
        let memory = domain.memory();
        let bytes: Vec<u8> = fill.iter().flat_map(|word| word.to_le_bytes()).collect();
        for start in [0, ARG, HIGH_RAM] {
            memory.write_slice(&bytes, GuestAddress(start)).unwrap();
        }
        let mut mapped = Vec::new();
        for (index, (number, args, long)) in (0u32..).zip(calls) {
            let width = if long { Width::Bits64 } else { Width::Bits32 };
            let start = Instant::now();
            let _ = outcome(&domain, width, number, &args);
            let took = start.elapsed();
            // A back end tries its luck in between, and lets go late.
            let access = if long { GrantAccess::ReadWrite } else { GrantAccess::Read };
            mapped.extend(domain.map_grant(0, index % 16, access));
            let _ = domain.copy_to_grant(7, index, 4000, &[0xab; 96]);
            prop_assert!(took < Duration::from_secs(5), "{number} {args:x?} took {took:?}");
        }
        domain.service_console();
        domain.console_input(b"input");
        for page in &mapped {
            let _ = page.write(4090, b"end of").and_then(|()| page.read(0, &mut [0; 64]));
        }
        drop(mapped);
        prop_assert!(host.is_whole(), "written outside guest memory");
    }
}

/// Mostly numbers of the table.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => prop::sample::select(vec![
            HYPERVISOR_MEMORY_OP, HYPERVISOR_GRANT_TABLE_OP, HYPERVISOR_EVENT_CHANNEL_OP,
            HYPERVISOR_SCHED_OP, HYPERVISOR_VCPU_OP, HYPERVISOR_HVM_OP, HYPERVISOR_MULTICALL,
            HYPERVISOR_XEN_VERSION, HYPERVISOR_SET_TIMER_OP, HYPERVISOR_CONSOLE_IO,
            HYPERVISOR_PHYSDEV_OP, HYPERVISOR_VM_ASSIST, HYPERVISOR_DM_OP, HYPERVISOR_MMUEXT_OP,
        ]),
        2 => 0u64..64,
        1 => any::<u64>(),
    ]
}

/// Sub-operations, addresses in and about RAM, and anything.
fn argument() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0u64..40,
        4 => (0u64..0x2_0000).prop_map(|at| at & !7),
        1 => HIGH_RAM - 16..HIGH_RAM + 4096,
        1 => RAM_SIZE as u64 - 64..RAM_SIZE as u64 + 64,
        1 => any::<u64>(),
        1 => any::<u32>().prop_map(u64::from),
        1 => prop::sample::select(vec![u64::MAX, u64::MAX >> 1, 1 << 31, 1 << 32, 0x7ff0]),
    ]
}

/// Words of memory: what structures hold when a guest means mischief.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0u32..64,
        2 => prop::sample::select(vec![0x7ff0, 7, 0x7ff0 << 16, u32::MAX, 1 << 31, 0x8000, 0x100]),
        1 => any::<u32>(),
    ]
}
