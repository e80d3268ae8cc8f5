//! Is handed over: gathers its CPUs when it is asked, waits to be let go, and
//! brings its own clocks up to date before any CPU reads them again, while every
//! CPU reads them all the time.
//!
//! Four clocks: the TSC, system time as published, and two of the guest's own
//! that would show the move if they were read before they are updated: `mono`,
//! which does not count the time in which the guest did not run, and `tai`,
//! which does. None may go back, on one CPU or from one to another.
//!
//! Parameters: `moves=N` ends it after so many (default 10), `stays=N` after so
//! many times asked and not moved; `ignore=1` lets it never answer; `hasty=1` has it
//! release its CPUs before it updates its clocks, which they see go back; `seconds=N`
//! (default 120) is the longest that it waits for all that.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use guest_clock::handover as words;
use guests::cpu::{disable_interrupts, enable_interrupts, guest_tsc, spin_cycles};
use guests::events::{bind_virq, clear, take, upcall_by};
use guests::interrupts::set_handler;
use guests::pvclock::{self, Reading};
use guests::rt::Exit;
use guests::smp::{self, MAX_CPUS};
use guests::start_info::Machine;
use guests::{checks, entry, handover, hypercall, lapic, report, shared};
use xen_abi::arch_x86::VcpuTimeInfo;
use xen_abi::cpuid::{XEN_CPUID_LEAF_TIME, XEN_CPUID_TIME_SUBLEAF_MODE};
use xen_abi::errno::Errno;
use xen_abi::handover::{
    HANDOVER_FLAG_COUNTED, HANDOVER_FLAG_GATHERED, HANDOVER_FLAG_MOVED, HANDOVER_FLAG_TAI,
    HANDOVER_NO_BOUND, HandoverPage,
};

entry!(main);

const UPCALL_VECTOR: u8 = 0xf3;
const GATHER_VECTOR: u8 = 0xe0;
const FIXED: u32 = 0x4000;
/// Room for the slowest emulated CPU: seconds.
const PATIENCE_TSC: u64 = 10_000_000_000;
/// How far the guest's own TAI may be from the wallclock after a move between two
/// processes of one host, whose clock both come from, ns.
const SAME_HOST_NS: u64 = 5_000_000;
/// A few readings of another CPU.
const HASTE_TSC: u64 = 20_000_000;
const CLOCKS: usize = 4;

/// What the guest's own clocks are made of; even `SEQUENCE`: at rest.
static SEQUENCE: AtomicU32 = AtomicU32::new(0);
/// System time less `mono`, ns.
static MONO_BEHIND_NS: AtomicU64 = AtomicU64::new(0);
/// `tai` less system time, ns, modulo 2^64.
static TAI_AHEAD_NS: AtomicU64 = AtomicU64::new(0);

/// The latest reading of each clock by any CPU.
static LATEST: [AtomicU64; CLOCKS] = [const { AtomicU64::new(0) }; CLOCKS];
static READS: AtomicU64 = AtomicU64::new(0);
static BACKWARD: [AtomicU64; CLOCKS] = [const { AtomicU64::new(0) }; CLOCKS];
/// Clock readings that had to begin anew because a move came between.
static TORN: AtomicU64 = AtomicU64::new(0);

static OTHERS: AtomicUsize = AtomicUsize::new(0);
static APIC_IDS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
static WATCHING: AtomicUsize = AtomicUsize::new(0);
static TICKET: AtomicU32 = AtomicU32::new(0);
static GATHERED: AtomicUsize = AtomicUsize::new(0);
static RELEASED: AtomicU32 = AtomicU32::new(0);
static IGNORE: AtomicBool = AtomicBool::new(false);
static HASTY: AtomicBool = AtomicBool::new(false);
static END: AtomicBool = AtomicBool::new(false);

static PORT: AtomicU32 = AtomicU32::new(0);
static ASKED: AtomicU32 = AtomicU32::new(0);
static MOVES: AtomicU32 = AtomicU32::new(0);
static STAYS: AtomicU32 = AtomicU32::new(0);
/// The first thing that went wrong, by its line; 0 for nothing.
static WRONG: AtomicU32 = AtomicU32::new(0);
static MOVE_COUNT: AtomicU64 = AtomicU64::new(0);

/// What the last move is to be reported as.
static FLAGS: AtomicU64 = AtomicU64::new(0);
static TSC_DELTA: AtomicU64 = AtomicU64::new(0);
static SYSTEM_DELTA: AtomicU64 = AtomicU64::new(0);
static TAI_DELTA: AtomicU64 = AtomicU64::new(0);
static TAI_ERROR: AtomicU64 = AtomicU64::new(0);
static WAITED_TSC: AtomicU64 = AtomicU64::new(0);

macro_rules! demand {
    ($holds:expr) => {
        if !$holds {
            let _ = WRONG.compare_exchange(0, line!(), Ordering::AcqRel, Ordering::Relaxed);
        }
    };
}

fn main(machine: &Machine) -> Exit {
    checks::equal("map shared_info", shared::map_shared_info(), 0);
    let Some(virq) = handover::find() else {
        report!("error no handover in CPUID");
        return Exit::Crash;
    };
    refusals();
    let started = smp::start(machine);
    checks::equal("all CPUs run", started, machine.apic_ids().len());
    OTHERS.store(started - 1, Ordering::Relaxed);
    for (slot, id) in APIC_IDS.iter().zip(machine.apic_ids()) {
        slot.store(*id, Ordering::Relaxed);
    }
    IGNORE.store(machine.number("ignore", 0) != 0, Ordering::Relaxed);
    HASTY.store(machine.number("hasty", 0) != 0, Ordering::Relaxed);
    set_handler(GATHER_VECTOR, gathered_here);
    checks::equal("vcpu_info", shared::register_vcpu_info(0), 0);
    checks::equal("upcall vector", upcall_by(shared::vcpu_id(0), UPCALL_VECTOR, upcall), 0);
    let port = bind_virq(virq, 0);
    checks::holds("the VIRQ", port.is_ok(), port);
    let port = port.unwrap_or(0);
    PORT.store(port, Ordering::Release);
    clear(port);
    // TAI by the wallclock: as far ahead of system time as that says.
    let wallclock = shared::wallclock();
    TAI_AHEAD_NS.store(utc_at_zero_ns(wallclock), Ordering::Relaxed);
    checks::equal("register", handover::register(), 0);
    let began = words::record(handover::page(), 1000);
    checks::holds("a page of version 1", began.is_ok_and(|page| page.version == 1), 0);
    MOVE_COUNT.store(began.map_or(u64::MAX, |page| page.move_count), Ordering::Relaxed);
    let [_, _, khz, _] = guests::cpu::cpuid(
        hypercall::base_leaf().unwrap_or(0) + XEN_CPUID_LEAF_TIME,
        XEN_CPUID_TIME_SUBLEAF_MODE,
    );
    let wanted = Wanted {
        moves: u32::try_from(machine.number("moves", 10)).unwrap_or(u32::MAX),
        stays: u32::try_from(machine.number("stays", 0)).unwrap_or(0),
        until_ns: machine.number("seconds", 120).saturating_mul(1_000_000_000),
    };
    WANTED_MOVES.store(wanted.moves, Ordering::Relaxed);
    WANTED_STAYS.store(wanted.stays, Ordering::Relaxed);
    UNTIL_NS.store(wanted.until_ns, Ordering::Relaxed);
    report!("start"; cpus = started, moves = wanted.moves, stays = wanted.stays, tsc_khz = khz);
    smp::run_on_all(watch);
    conclude(&wanted)
}

struct Wanted {
    moves: u32,
    stays: u32,
    until_ns: u64,
}

static WANTED_MOVES: AtomicU32 = AtomicU32::new(0);
static WANTED_STAYS: AtomicU32 = AtomicU32::new(0);
static UNTIL_NS: AtomicU64 = AtomicU64::new(0);

/// What no guest may ask, before it asks for anything.
fn refusals() {
    let error = Errno::to_return;
    checks::equal("ready, not asked", handover::ready(1), error(Errno::ENOENT));
    checks::equal("done, not asked", handover::done(1), error(Errno::ENOENT));
    checks::equal("unregister nothing", handover::unregister(), error(Errno::ENOENT));
    checks::equal("register", handover::register(), 0);
    checks::equal("register again", handover::register(), 0);
    checks::equal("unregister", handover::unregister(), 0);
}

fn utc_at_zero_ns(wallclock: shared::Wallclock) -> u64 {
    wallclock.seconds.wrapping_mul(1_000_000_000).wrapping_add(u64::from(wallclock.nanoseconds))
}

#[expect(unsafe_code, reason = "clock pages")]
fn read(page: *const VcpuTimeInfo) -> Reading {
    // SAFETY: `shared` hands out addresses inside static pages only.
    unsafe { pvclock::read(page) }
}

/// One reading of all clocks, of one moment: TSC, system time, mono, tai.
fn clocks(page: *const VcpuTimeInfo) -> ([u64; CLOCKS], Reading) {
    loop {
        let before = SEQUENCE.load(Ordering::Acquire);
        let reading = read(page);
        let system_ns = reading.system_time_ns();
        let behind_ns = MONO_BEHIND_NS.load(Ordering::Relaxed);
        let ahead_ns = TAI_AHEAD_NS.load(Ordering::Relaxed);
        // Partner: the fence in `update`.
        fence(Ordering::Acquire);
        if before & 1 == 0 && SEQUENCE.load(Ordering::Relaxed) == before {
            let mono_ns = system_ns.wrapping_sub(behind_ns);
            let tai_ns = system_ns.wrapping_add(ahead_ns);
            return ([reading.guest_tsc, system_ns, mono_ns, tai_ns], reading);
        }
        TORN.fetch_add(1, Ordering::Relaxed);
    }
}

/// Reads all clocks on this CPU until the end; the boot CPU says what happens.
fn watch(cpu: usize) {
    if cpu != 0 {
        let registered = shared::register_vcpu_info(cpu);
        demand!(registered == 0);
    }
    let page = shared::time_info(cpu);
    WATCHING.fetch_add(1, Ordering::Release);
    while WATCHING.load(Ordering::Acquire) <= OTHERS.load(Ordering::Relaxed) {
        core::hint::spin_loop();
    }
    enable_interrupts();
    let began_ns = clocks(page).0[2];
    let mut own = [0; CLOCKS];
    let (mut told, mut stays, mut reads) = (0, 0, 0u64);
    let mut tai_off_ns = 0i64;
    while !END.load(Ordering::Acquire) {
        // Before the reading: what another CPU has seen by now is not ahead of it.
        let latest: [u64; CLOCKS] = core::array::from_fn(|n| LATEST[n].load(Ordering::Acquire));
        let (now, _) = clocks(page);
        for clock in 0..CLOCKS {
            if now[clock] < latest[clock] || now[clock] < own[clock] {
                BACKWARD[clock].fetch_add(1, Ordering::Relaxed);
            }
            LATEST[clock].fetch_max(now[clock], Ordering::AcqRel);
        }
        own = now;
        reads += 1;
        if cpu != 0 || reads & 255 != 0 {
            continue;
        }
        if IGNORE.load(Ordering::Relaxed) {
            plain_moves();
        }
        let (moves, stayed) = (MOVES.load(Ordering::Acquire), STAYS.load(Ordering::Acquire));
        if (moves, stayed) != (told, stays) {
            (told, stays) = (moves, stayed);
            tell(page, &mut tai_off_ns);
        }
        let waits_ns = now[2].saturating_sub(began_ns);
        let enough = moves >= WANTED_MOVES.load(Ordering::Relaxed)
            && stayed >= WANTED_STAYS.load(Ordering::Relaxed);
        if enough || waits_ns > UNTIL_NS.load(Ordering::Relaxed) {
            END.store(true, Ordering::Release);
        }
    }
    disable_interrupts();
    READS.fetch_add(reads, Ordering::Relaxed);
}

/// Reports the last move, and holds the guest's own TAI against the wallclock.
fn tell(page: *const VcpuTimeInfo, tai_off_ns: &mut i64) {
    let (now, _) = clocks(page);
    let wallclock = shared::wallclock();
    let utc_ns = utc_at_zero_ns(wallclock).wrapping_add(now[1]);
    let off_ns = now[3].wrapping_sub(utc_ns).cast_signed();
    let flags = FLAGS.load(Ordering::Acquire);
    if !IGNORE.load(Ordering::Relaxed) {
        demand!(off_ns.abs_diff(*tai_off_ns) <= SAME_HOST_NS);
    }
    *tai_off_ns = off_ns;
    report!("moved";
        moves = MOVES.load(Ordering::Relaxed), stays = STAYS.load(Ordering::Relaxed),
        count = MOVE_COUNT.load(Ordering::Relaxed), flags = report::Hex(flags),
        tsc_delta = TSC_DELTA.load(Ordering::Relaxed).cast_signed(),
        system_time_delta_ns = SYSTEM_DELTA.load(Ordering::Relaxed).cast_signed(),
        tai_delta_ns = TAI_DELTA.load(Ordering::Relaxed).cast_signed(),
        tai_error_ns = TAI_ERROR.load(Ordering::Relaxed),
        tai_less_utc_ns = off_ns, waited_tsc = WAITED_TSC.load(Ordering::Relaxed),
        torn = TORN.load(Ordering::Relaxed));
}

/// Takes the events of the boot CPU.
fn upcall() {
    take(
        |_| u64::MAX,
        |port| {
            if port == PORT.load(Ordering::Relaxed) {
                asked();
            }
        },
    );
}

/// Another CPU: stands here until the boot CPU releases it.
fn gathered_here() {
    let ticket = TICKET.load(Ordering::Acquire);
    GATHERED.fetch_add(1, Ordering::AcqRel);
    // Acquire: the clocks' parameters were written before.
    while RELEASED.load(Ordering::Acquire) != ticket {
        core::hint::spin_loop();
    }
}

/// The boot CPU, with interrupts off: the whole handover.
fn asked() {
    let page = handover::page();
    let Some(ticket) = words::requested(page) else { return };
    ASKED.fetch_add(1, Ordering::Relaxed);
    if IGNORE.load(Ordering::Relaxed) {
        TICKET.store(ticket, Ordering::Release);
        return;
    }
    let others = OTHERS.load(Ordering::Relaxed);
    GATHERED.store(0, Ordering::Relaxed);
    TICKET.store(ticket, Ordering::Release);
    for id in APIC_IDS.iter().take(others + 1).skip(1) {
        lapic::send(id.load(Ordering::Relaxed), FIXED | u32::from(GATHER_VECTOR));
    }
    let since = guest_tsc();
    while GATHERED.load(Ordering::Acquire) < others {
        if guest_tsc().wrapping_sub(since) > PATIENCE_TSC {
            demand!(false);
            break;
        }
        core::hint::spin_loop();
    }
    // All stand. Whoever reads a clock now is this CPU.
    let before = guest_tsc();
    let answer = handover::ready(ticket);
    if answer == 0 {
        while !words::may_go(page, ticket) {
            core::hint::spin_loop();
        }
        if HASTY.load(Ordering::Relaxed) {
            RELEASED.store(ticket, Ordering::Release);
            spin_cycles(HASTE_TSC);
        }
        match words::record(page, 1000) {
            Ok(record) => update(&record, ticket, before),
            Err(_) => demand!(false),
        }
    } else {
        // It came too late, and nobody waits for it any more.
        demand!(answer == Errno::ENOENT.to_return());
    }
    WAITED_TSC.store(guest_tsc().wrapping_sub(before), Ordering::Relaxed);
    RELEASED.store(ticket, Ordering::Release);
    if answer == 0 {
        let again = handover::ready(ticket);
        demand!(again == Errno::EEXIST.to_return());
        let done = handover::done(ticket);
        demand!(done == 0);
    }
}

/// Brings the guest's own clocks up to date, and judges what it was told.
fn update(record: &HandoverPage, ticket: u32, before: u64) {
    demand!(record.go == ticket && record.request == 0);
    demand!(record.flags & HANDOVER_FLAG_GATHERED != 0);
    let count = MOVE_COUNT.load(Ordering::Relaxed);
    if record.flags & HANDOVER_FLAG_MOVED == 0 {
        demand!(record.move_count == count && record.tsc_delta == 0 && record.tai_delta_ns == 0);
        keep(record);
        STAYS.fetch_add(1, Ordering::Release);
        return;
    }
    demand!(record.move_count == count + 1);
    plausible(record, before);
    let tai_ns = record.tai_delta_ns.max(0);
    let system_ns = record.system_time_delta_ns;
    let sequence = SEQUENCE.load(Ordering::Relaxed);
    SEQUENCE.store(sequence + 1, Ordering::Relaxed);
    // Partner: the fence in `clocks`.
    fence(Ordering::Release);
    MONO_BEHIND_NS.fetch_add(system_ns.cast_unsigned(), Ordering::Relaxed);
    TAI_AHEAD_NS.fetch_add((tai_ns - system_ns).cast_unsigned(), Ordering::Relaxed);
    SEQUENCE.store(sequence + 2, Ordering::Release);
    keep(record);
    MOVES.fetch_add(1, Ordering::Release);
}

/// The deltas against this guest's own TSC, its line, and each other.
fn plausible(record: &HandoverPage, before: u64) {
    let line = read(shared::time_info(0)).line;
    let stopped = record.tsc_after.wrapping_sub(record.tsc_delta.cast_unsigned());
    // Stopped after this CPU said that it is ready, gone on before it reads on.
    demand!(stopped >= before && record.tsc_after <= guest_tsc());
    demand!(record.system_time_after_ns == line.at(record.tsc_after));
    let system_ns = line.at(record.tsc_after).wrapping_sub(line.at(stopped)).cast_signed();
    demand!(record.system_time_delta_ns == system_ns && system_ns >= 0);
    demand!(record.flags & HANDOVER_FLAG_TAI != 0);
    demand!(record.tai_error_ns > 0 && record.tai_error_ns != HANDOVER_NO_BOUND);
    let slack_ns = SAME_HOST_NS + record.tai_delta_ns.unsigned_abs() / 1000;
    if record.flags & HANDOVER_FLAG_COUNTED != 0 {
        demand!(record.tai_delta_ns.abs_diff(system_ns) <= slack_ns);
        demand!(record.tsc_error != HANDOVER_NO_BOUND);
    } else {
        demand!(record.tai_delta_ns >= system_ns - slack_ns.cast_signed());
        demand!(record.tsc_error == HANDOVER_NO_BOUND);
        demand!(record.system_time_error_ns == HANDOVER_NO_BOUND);
    }
}

fn keep(record: &HandoverPage) {
    MOVE_COUNT.store(record.move_count, Ordering::Relaxed);
    TSC_DELTA.store(record.tsc_delta.cast_unsigned(), Ordering::Relaxed);
    SYSTEM_DELTA.store(record.system_time_delta_ns.cast_unsigned(), Ordering::Relaxed);
    TAI_DELTA.store(record.tai_delta_ns.cast_unsigned(), Ordering::Relaxed);
    TAI_ERROR.store(record.tai_error_ns, Ordering::Relaxed);
    FLAGS.store(record.flags, Ordering::Release);
}

/// A guest that does not answer sees by the count that it was moved.
fn plain_moves() {
    let Ok(record) = words::record(handover::page(), 1000) else { return };
    let count = MOVE_COUNT.load(Ordering::Relaxed);
    if record.move_count == count {
        return;
    }
    demand!(record.move_count == count + 1);
    demand!(record.flags & HANDOVER_FLAG_MOVED != 0);
    demand!(record.flags & HANDOVER_FLAG_GATHERED == 0 && record.request == 0);
    // An answer now is one that nobody waits for.
    let late = handover::ready(TICKET.load(Ordering::Acquire));
    demand!(late == Errno::ENOENT.to_return());
    keep(&record);
    MOVES.fetch_add(1, Ordering::Release);
}

fn conclude(wanted: &Wanted) -> Exit {
    let backward: [u64; CLOCKS] = core::array::from_fn(|n| BACKWARD[n].load(Ordering::Relaxed));
    let [tsc, system, mono, tai] = backward;
    let (moves, stays) = (MOVES.load(Ordering::Relaxed), STAYS.load(Ordering::Relaxed));
    let (asked, wrong) = (ASKED.load(Ordering::Relaxed), WRONG.load(Ordering::Relaxed));
    report!("handover";
        reads = READS.load(Ordering::Relaxed), asked = asked, moves = moves, stays = stays,
        count = MOVE_COUNT.load(Ordering::Relaxed), backward_tsc = tsc,
        backward_system_time = system, backward_mono = mono, backward_tai = tai,
        wrong_at_line = wrong);
    checks::equal("backward steps", backward, [0; CLOCKS]);
    checks::equal("what it was told is right", wrong, 0);
    checks::equal("moves", moves, wanted.moves);
    checks::equal("stays", stays, wanted.stays);
    checks::equal("asked", asked, moves + stays);
    checks::finish("handover-checks")
}
