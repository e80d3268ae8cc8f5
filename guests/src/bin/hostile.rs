//! Random and hostile arguments to every hypercall: whatever Xen answers, it and
//! the machine must live. Only what would end this guest by its own wish is left
//! out.
//!
//! Parameters: `calls=N` or `seconds=N` (default 1), `seed=N` (default 1).

#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "hypercalls with nonsense in them")]

use core::cell::UnsafeCell;

use guests::cpu::{cpuid, guest_tsc};
use guests::rt::Exit;
use guests::start_info::Machine;
use guests::{checks, entry, hypercall, report, shared};
use xen_abi::cpuid::XEN_CPUID_LEAF_TIME;
use xen_abi::errno::Errno;
use xen_abi::hypercall::{
    HYPERVISOR_GRANT_TABLE_OP, HYPERVISOR_IRET, HYPERVISOR_MULTICALL, HYPERVISOR_SCHED_OP,
    HYPERVISOR_SCHED_OP_COMPAT, HYPERVISOR_VCPU_OP, HYPERVISOR_XEN_VERSION,
};
use xen_abi::sched::{
    SCHEDOP_BLOCK, SCHEDOP_POLL, SCHEDOP_REMOTE_SHUTDOWN, SCHEDOP_SHUTDOWN, SCHEDOP_SHUTDOWN_CODE,
    SCHEDOP_WATCHDOG,
};
use xen_abi::vcpu::{VCPUOP_DOWN, VCPUOP_SEND_NMI};
use xen_abi::version::{FeatureInfo, XENVER_GET_FEATURES};

entry!(main);

const HYPERCALLS: u64 = 65;
const ARGUMENT_WORDS: usize = 64;
const MULTICALL_WORDS: usize = 8;
const MULTICALL_ENTRIES: usize = 8;
const TARGET_BYTES: usize = 1 << 20;

/// Memory that Xen may write to at will: structures go to its start, and values
/// in them that look like addresses or frames point to its middle. Whatever is
/// written or taken away there, no code or data of this guest is in it.
#[repr(C, align(4096))]
struct Sandbox(UnsafeCell<[u64; TARGET_BYTES / 8]>);
// SAFETY: accessed through volatile pointers only.
unsafe impl Sync for Sandbox {}
#[unsafe(link_section = ".bss.noinit")]
static SANDBOX: Sandbox = Sandbox(UnsafeCell::new([0; TARGET_BYTES / 8]));

/// Counts of answers by kind.
#[derive(Default)]
struct Answers {
    calls: u64,
    accepted: u64,
    no_such: u64,
    faults: u64,
    other_errors: u64,
    /// Neither a success nor an error number of Xen.
    strange: u64,
}

fn main(machine: &Machine) -> Exit {
    checks::equal("map shared_info", shared::map_shared_info(), 0);
    let base = hypercall::base_leaf().unwrap_or(0);
    let [_, _, khz, _] = cpuid(base + XEN_CPUID_LEAF_TIME, 0);
    let calls = machine.number("calls", u64::MAX);
    let seconds = if calls == u64::MAX { machine.number("seconds", 1) } else { u64::MAX };
    let duration = seconds.saturating_mul(u64::from(khz) * 1000);
    let seed = machine.number("seed", 1).max(1);

    let mut random = Random(seed);
    let mut answers = Answers::default();
    let start = guest_tsc();
    while answers.calls < calls && guest_tsc().wrapping_sub(start) < duration {
        let (number, arguments) = hostile_call(&mut random);
        // SAFETY: pointers lead to the sandbox or to where nothing is mapped.
        let answer = unsafe { hypercall::raw(number, arguments) };
        answers.count(answer);
        if answers.calls.is_multiple_of(10_000) {
            report!("hostile-progress"; calls = answers.calls);
        }
    }

    let mut features = FeatureInfo::default();
    let alive = hypercall::call(HYPERVISOR_XEN_VERSION, XENVER_GET_FEATURES, &mut features);
    checks::equal("XENVER_get_features afterwards", alive, 0);
    checks::holds("features afterwards", features.submap != 0, features.submap);
    report!("hostile";
        calls = answers.calls, seed = seed, accepted = answers.accepted,
        enosys = answers.no_such, efault = answers.faults, errors = answers.other_errors,
        strange = answers.strange);
    checks::finish("hostile-checks")
}

impl Answers {
    fn count(&mut self, answer: i64) {
        self.calls += 1;
        let field = match Errno::from_return(answer) {
            Some(Errno::ENOSYS) => &mut self.no_such,
            Some(Errno::EFAULT) => &mut self.faults,
            Some(_) => &mut self.other_errors,
            None if answer >= 0 => &mut self.accepted,
            None => &mut self.strange,
        };
        *field += 1;
    }
}

fn hostile_call(random: &mut Random) -> (u64, [u64; 6]) {
    for word in 0..ARGUMENT_WORDS {
        sandbox_write(word, random.value());
    }
    let number = match random.below(HYPERCALLS) {
        // Its stub is an undefined instruction: HVM guests have no such call.
        HYPERVISOR_IRET => HYPERVISOR_XEN_VERSION,
        number => number,
    };
    if number == HYPERVISOR_MULTICALL {
        // A list of calls of the same kind, each op, result and six arguments.
        for entry in 0..MULTICALL_ENTRIES {
            let number = random.below(HYPERCALLS);
            let arguments = single_call(random, number);
            let first = entry * MULTICALL_WORDS;
            sandbox_write(first, number);
            for (i, argument) in arguments.into_iter().enumerate() {
                sandbox_write(first + 2 + i, argument);
            }
        }
        let count = random.below(MULTICALL_ENTRIES as u64 + 1);
        let huge = random.below(16) == 0;
        let list = if huge { unmapped_address(random) } else { sandbox_address(0) };
        return (number, [list, if huge { random.next() } else { count }, 0, 0, 0, 0]);
    }
    (number, single_call(random, number))
}

fn single_call(random: &mut Random, number: u64) -> [u64; 6] {
    let mut arguments = [0; 6];
    for argument in &mut arguments {
        *argument = match random.below(3) {
            0 => sandbox_address(random.below(ARGUMENT_WORDS as u64)),
            1 => bad_address(random),
            _ => random.value(),
        };
    }
    // Mostly operations that exist.
    if random.below(8) != 0 {
        arguments[0] = random.below(32);
    }
    let operation = u32::try_from(arguments[0] & 0xffff_ffff).unwrap_or(0);
    match number {
        // What stops this guest gets addresses that lead nowhere, which must be
        // noticed first, or does not come at all.
        HYPERVISOR_SCHED_OP => match operation {
            SCHEDOP_BLOCK => arguments[0] = 0,
            SCHEDOP_SHUTDOWN
            | SCHEDOP_SHUTDOWN_CODE
            | SCHEDOP_POLL
            | SCHEDOP_REMOTE_SHUTDOWN
            | SCHEDOP_WATCHDOG => {
                arguments[1] = unmapped_address(random);
            }
            _ => {}
        },
        // Takes its reason as a plain number.
        HYPERVISOR_SCHED_OP_COMPAT => arguments[0] = 3 + random.below(100),
        // Xen answers in the list itself, however long: a long one in the sandbox
        // would end in this guest's code.
        HYPERVISOR_GRANT_TABLE_OP => match random.below(4) {
            0 => arguments[1] = unmapped_address(random),
            _ => arguments[2] = random.below(400),
        },
        HYPERVISOR_VCPU_OP if matches!(operation, VCPUOP_DOWN | VCPUOP_SEND_NMI) => {
            arguments[1] = 1000 + random.below(1 << 40);
        }
        // A list inside a list is refused or bounded by Xen, but could name
        // what is left out above.
        HYPERVISOR_MULTICALL => arguments[0] = unmapped_address(random),
        _ => {}
    }
    arguments
}

fn sandbox_address(word: u64) -> u64 {
    SANDBOX.0.get() as u64 + word * 8
}

/// An address or frame in the middle of the sandbox.
fn target(random: &mut Random) -> u64 {
    sandbox_address(TARGET_BYTES as u64 / 16 + random.below(8192))
}

fn sandbox_write(word: usize, value: u64) {
    let address = SANDBOX.0.get().cast::<u64>().wrapping_add(word % (TARGET_BYTES / 8));
    // SAFETY: inside the sandbox.
    unsafe { address.write_volatile(value) };
}

/// An address that no page table maps.
fn unmapped_address(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => 1 << 32 | random.below(1 << 32),
        1 => 0x0000_8000_0000_0000 | random.next() >> 20,
        2 => u64::MAX - random.below(64),
        _ => 0xffff_8000_0000_0000 | random.next() >> 20,
    }
}

/// An address that is mapped nowhere, to a device, or across a border.
fn bad_address(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => 0xfee0_0000 + random.below(4096),
        1 => 0xffff_f000 + random.below(4096),
        2 => random.below(4096),
        _ => unmapped_address(random),
    }
}

/// Marsaglia's xorshift, 64 bits.
struct Random(u64);

impl Random {
    const fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    const fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A number as a structure may hold it: small, a border, an address, a frame.
    fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => return target(self),
            1 => return target(self) >> 12,
            _ => {}
        }
        match self.any_value() {
            // The frames and addresses of this guest's image, which starts at
            // 2 MiB, stay its own.
            0x100..0x1000 | 0x10_0000..0x100_0000 => 0,
            value => value,
        }
    }

    fn any_value(&mut self) -> u64 {
        match self.below(6) {
            0 => 0,
            1..=2 => self.below(40),
            3 => 1 << self.below(64),
            4 => (1_u64 << self.below(64)).wrapping_sub(1),
            // Two small halves: most structures hold 32-bit fields, and domain
            // 0x7ff0 is this one.
            _ => self.below(40) << 32 | if self.below(2) == 0 { 0x7ff0 } else { self.below(40) },
        }
    }
}
