//! Random and hostile arguments to every hypercall: whatever Xen answers, it and
//! the machine must live. Only what would end this guest by its own wish is left
//! out.
//!
//! Half of the calls are nonsense all through; the others have the form of a real
//! one with hostile fields (`hostile/forms.rs`), because nonsense alone rarely comes
//! past the first check. Every vCPU makes them, each in a sandbox of its own.
//!
//! Parameters: `calls=N` (of each vCPU) or `seconds=N` (default 1), `seed=N`
//! (default 1). Needs 64 MiB of memory.

#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "hypercalls with nonsense in them")]

#[path = "hostile/forms.rs"]
mod forms;
#[path = "hostile/random.rs"]
mod random;

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use guests::cpu::{cpuid, guest_tsc};
use guests::rt::Exit;
use guests::start_info::Machine;
use guests::{checks, entry, hypercall, report, shared, smp};
use random::{Random, bad_address, unmapped_address};
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

const HYPERCALLS: usize = 65;
const ARGUMENT_WORDS: usize = 64;
const MULTICALL_WORDS: usize = 8;
const MULTICALL_ENTRIES: usize = 8;
const TARGET_BYTES: usize = 1 << 20;

/// vCPUs that make calls; further ones stay off.
const MAX_CALLERS: usize = 4;
/// Changed words that are shown.
const MOST_SHOWN: u64 = 64;
/// A pattern on pages that no call names, at 45 MiB: what changes it wrote where nobody
/// had asked it to. Grant entries and lists come to hold values that lie across two
/// fields of others; a frame with this upper byte is none that values here make so.
const CANARY_START: usize = 0x2d0_0000;
const CANARY_WORDS: usize = 256 * 4096 / 8;

/// Memory that Xen may write to at will: structures go to its start, and values
/// in them that look like addresses or frames point to its middle. Whatever is
/// written or taken away there, no code or data of this guest is in it.
#[repr(C, align(4096))]
struct Sandbox(UnsafeCell<[[u64; TARGET_BYTES / 8]; MAX_CALLERS]>);
// SAFETY: accessed through volatile pointers only, each part by its own CPU.
unsafe impl Sync for Sandbox {}
#[unsafe(link_section = ".bss.noinit")]
static SANDBOX: Sandbox = Sandbox(UnsafeCell::new([[0; TARGET_BYTES / 8]; MAX_CALLERS]));

/// Counts of answers by kind, of all callers.
struct Answers {
    calls: AtomicU64,
    accepted: AtomicU64,
    no_such: AtomicU64,
    faults: AtomicU64,
    other_errors: AtomicU64,
    /// Neither a success nor an error number of Xen.
    strange: AtomicU64,
}

impl Answers {
    const fn none() -> Self {
        Self {
            calls: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            no_such: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            other_errors: AtomicU64::new(0),
            strange: AtomicU64::new(0),
        }
    }

    fn count(&self, answer: i64) {
        let field = match Errno::from_return(answer) {
            Some(Errno::ENOSYS) => &self.no_such,
            Some(Errno::EFAULT) => &self.faults,
            Some(_) => &self.other_errors,
            None if answer >= 0 => &self.accepted,
            None => &self.strange,
        };
        field.fetch_add(1, Ordering::Relaxed);
        self.calls.fetch_add(1, Ordering::Relaxed);
    }
}

/// By hypercall number.
static ANSWERS: [Answers; HYPERCALLS] = [const { Answers::none() }; HYPERCALLS];
static CALLS: AtomicU64 = AtomicU64::new(u64::MAX);
static DURATION_TSC: AtomicU64 = AtomicU64::new(0);
static SEED: AtomicU64 = AtomicU64::new(1);

fn main(machine: &Machine) -> Exit {
    checks::equal("map shared_info", shared::map_shared_info(), 0);
    let base = hypercall::base_leaf().unwrap_or(0);
    let [_, _, khz, _] = cpuid(base + XEN_CPUID_LEAF_TIME, 0);
    let calls = machine.number("calls", u64::MAX);
    let seconds = if calls == u64::MAX { machine.number("seconds", 1) } else { u64::MAX };
    let seed = machine.number("seed", 1).max(1);
    CALLS.store(calls, Ordering::Relaxed);
    DURATION_TSC.store(seconds.saturating_mul(u64::from(khz) * 1000), Ordering::Relaxed);
    SEED.store(seed, Ordering::Relaxed);

    let cpus = smp::start(machine);
    canary(|word, pattern| {
        // SAFETY: RAM far behind this guest's image, mapped and used by nobody.
        unsafe { word.write_volatile(pattern) };
    });
    report!("hostile-start"; cpus = cpus, seed = seed);
    smp::run_on_all(attack);
    let mut changed = 0_u64;
    canary(|word, pattern| {
        // SAFETY: as above.
        let found = unsafe { word.read_volatile() };
        if found != pattern {
            changed += 1;
            if changed <= MOST_SHOWN {
                report!("hostile-canary"; address = word as usize, found = found);
            }
        }
    });
    checks::equal("words of pages that no call named, changed", changed, 0);

    let mut features = FeatureInfo::default();
    let alive = hypercall::call(HYPERVISOR_XEN_VERSION, XENVER_GET_FEATURES, &mut features);
    checks::equal("XENVER_get_features afterwards", alive, 0);
    checks::holds("features afterwards", features.submap != 0, features.submap);
    conclude(cpus, seed);
    checks::finish("hostile-checks")
}

/// Visits each word of the canary pages with what it should hold.
fn canary(mut visit: impl FnMut(*mut u64, u64)) {
    let first = core::ptr::without_provenance_mut::<u64>(CANARY_START);
    for i in 0..CANARY_WORDS {
        visit(first.wrapping_add(i), (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
}

/// One CPU's calls.
fn attack(cpu: usize) {
    if cpu >= MAX_CALLERS {
        return;
    }
    let sandbox = Caller(cpu);
    let mut random = Random::new(SEED.load(Ordering::Relaxed), cpu as u64, sandbox.target());
    let (calls, duration) = (CALLS.load(Ordering::Relaxed), DURATION_TSC.load(Ordering::Relaxed));
    let start = guest_tsc();
    let mut made = 0;
    while made < calls && guest_tsc().wrapping_sub(start) < duration {
        let (number, arguments) = hostile_call(&mut random, sandbox);
        // SAFETY: pointers lead to the sandbox or to where nothing is mapped.
        let answer = unsafe { hypercall::raw(number, arguments) };
        if let Some(answers) = usize::try_from(number).ok().and_then(|n| ANSWERS.get(n)) {
            answers.count(answer);
        }
        made += 1;
        if made.is_multiple_of(50_000) {
            report!("hostile-progress"; cpu = cpu, calls = made);
        }
    }
}

fn conclude(cpus: usize, seed: u64) {
    for (number, answers) in ANSWERS.iter().enumerate() {
        let count = |field: &AtomicU64| field.load(Ordering::Relaxed);
        // What every number that HVM guests do not have says in one line is enough.
        if count(&answers.no_such) < count(&answers.calls) {
            report!("hostile-hypercall"; number = number, calls = count(&answers.calls),
                accepted = count(&answers.accepted), enosys = count(&answers.no_such),
                efault = count(&answers.faults), errors = count(&answers.other_errors));
        }
    }
    let sum = |field: fn(&Answers) -> &AtomicU64| -> u64 {
        ANSWERS.iter().map(|answers| field(answers).load(Ordering::Relaxed)).sum()
    };
    report!("hostile";
        cpus = cpus, calls = sum(|a| &a.calls), seed = seed, accepted = sum(|a| &a.accepted),
        enosys = sum(|a| &a.no_such), efault = sum(|a| &a.faults),
        errors = sum(|a| &a.other_errors), strange = sum(|a| &a.strange));
}

/// A CPU's own part of the sandbox.
#[derive(Clone, Copy)]
struct Caller(usize);

impl Caller {
    /// The address of a word at its start.
    fn address(self, word: u64) -> u64 {
        SANDBOX.0.get() as u64 + (self.0 * TARGET_BYTES) as u64 + word * 8
    }

    /// Its middle, where values point to.
    fn target(self) -> u64 {
        self.address(TARGET_BYTES as u64 / 16)
    }

    fn write(self, word: usize, value: u64) {
        let part = SANDBOX.0.get().cast::<u64>().wrapping_add(self.0 * TARGET_BYTES / 8);
        // SAFETY: inside this CPU's part.
        unsafe { part.wrapping_add(word % (TARGET_BYTES / 8)).write_volatile(value) };
    }
}

fn hostile_call(random: &mut Random, sandbox: Caller) -> (u64, [u64; 6]) {
    for word in 0..ARGUMENT_WORDS {
        let value = random.value();
        sandbox.write(word, value);
    }
    if random.below(2) == 0 {
        return forms::call(random, sandbox);
    }
    let number = match random.below(HYPERCALLS as u64) {
        // Its stub is an undefined instruction: HVM guests have no such call.
        HYPERVISOR_IRET => HYPERVISOR_XEN_VERSION,
        number => number,
    };
    if number == HYPERVISOR_MULTICALL {
        // A list of calls of the same kind, each op, result and six arguments.
        for entry in 0..MULTICALL_ENTRIES {
            let number = random.below(HYPERCALLS as u64);
            let arguments = single_call(random, sandbox, number);
            let first = entry * MULTICALL_WORDS;
            sandbox.write(first, number);
            for (i, argument) in arguments.into_iter().enumerate() {
                sandbox.write(first + 2 + i, argument);
            }
        }
        let count = random.below(MULTICALL_ENTRIES as u64 + 1);
        let huge = random.below(16) == 0;
        let list = if huge { unmapped_address(random) } else { sandbox.address(0) };
        // Zeros that the compiler does not know, one for each: it has SSE in mind.
        let none = || core::hint::black_box(0);
        let count = if huge { random.next() } else { count };
        return (number, [list, count, none(), none(), none(), none()]);
    }
    (number, single_call(random, sandbox, number))
}

fn single_call(random: &mut Random, sandbox: Caller, number: u64) -> [u64; 6] {
    let mut arguments = [0; 6];
    for argument in &mut arguments {
        *argument = match random.below(3) {
            0 => sandbox.address(random.below(ARGUMENT_WORDS as u64)),
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
