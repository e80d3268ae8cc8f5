//! Timers on every CPU at once: singleshot by vcpu_op and by set_timer_op,
//! periodic, cancelled and past ones, polls with a deadline; and how late they
//! come.
//!
//! Parameters: `n=N` singleshot timers on each CPU (default 100, most 1000), of
//! which the first half is awaited spinning, the second half in HLT;
//! `served-by=kvm` where KVM serves them, which takes no notice of the future
//! flag.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guests::cpu::{disable_interrupts, enable_interrupts, wait_for_interrupt};
use guests::events::{UPCALL_VECTOR, arrived_tsc, bind_virq, clear, count, set_upcall_vector};
use guests::rt::Exit;
use guests::shared::{time_info, vcpu_op};
use guests::smp::MAX_CPUS;
use guests::start_info::Machine;
use guests::{checks, entry, hypercall, pvclock, report, shared, smp};
use xen_abi::errno::Errno;
use xen_abi::hypercall::{HYPERVISOR_SCHED_OP, HYPERVISOR_SET_TIMER_OP};
use xen_abi::sched::{SCHEDOP_POLL, SchedPoll};
use xen_abi::vcpu::{
    VCPU_SSHOTTMR_FUTURE, VCPUOP_SET_PERIODIC_TIMER, VCPUOP_SET_SINGLESHOT_TIMER,
    VCPUOP_STOP_PERIODIC_TIMER, VCPUOP_STOP_SINGLESHOT_TIMER, VcpuSetPeriodicTimer,
    VcpuSetSingleshotTimer,
};
use xen_abi::xen::VIRQ_TIMER;

entry!(main);

const MAX_TIMERS: usize = 1000;
const MILLISECOND_NS: u64 = 1_000_000;
/// A timer that takes longer is lost.
const PATIENCE_NS: u64 = 2_000 * MILLISECOND_NS;
/// Longer than a busy host keeps a vCPU waiting, mostly.
const FAR_NS: u64 = 30 * MILLISECOND_NS;
const PERIOD_NS: u64 = 5 * MILLISECOND_NS;
const PERIODS: u64 = 20;

static BY_KVM: AtomicBool = AtomicBool::new(false);
static TIMERS: AtomicU64 = AtomicU64::new(100);
static MEDIAN_NS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
static P99_NS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
static MAX_NS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
static PERIODIC: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

fn main(machine: &Machine) -> Exit {
    BY_KVM.store(machine.text("served-by") == Some("kvm"), Ordering::Relaxed);
    TIMERS.store(machine.number("n", 100).clamp(2, MAX_TIMERS as u64), Ordering::Relaxed);
    checks::equal("map shared_info", shared::map_shared_info(), 0);
    let cpus = smp::start(machine);
    smp::run_on_all(work);
    for cpu in 0..cpus {
        report!("timer-cpu";
            cpu = cpu, lateness_median_ns = MEDIAN_NS[cpu].load(Ordering::Relaxed),
            lateness_p99_ns = P99_NS[cpu].load(Ordering::Relaxed),
            lateness_max_ns = MAX_NS[cpu].load(Ordering::Relaxed),
            periodic = PERIODIC[cpu].load(Ordering::Relaxed));
    }
    let worst = |values: &[AtomicU64]| {
        values.iter().map(|value| value.load(Ordering::Relaxed)).max().unwrap_or(0)
    };
    report!("lateness";
        cpus = cpus, n = TIMERS.load(Ordering::Relaxed), median_ns = worst(&MEDIAN_NS[..cpus]),
        p99_ns = worst(&P99_NS[..cpus]), max_ns = worst(&MAX_NS[..cpus]));
    checks::finish("timer")
}

/// One CPU's timer and the port that it fires on.
struct Timer {
    cpu: usize,
    port: u32,
}

fn work(cpu: usize) {
    let vcpu = shared::vcpu_id(cpu);
    checks::equal("register_vcpu_info", shared::register_vcpu_info(cpu), 0);
    checks::equal("upcall vector", set_upcall_vector(vcpu, UPCALL_VECTOR), 0);
    match bind_virq(VIRQ_TIMER, vcpu) {
        Ok(port) => {
            clear(port);
            let timer = Timer { cpu, port };
            enable_interrupts();
            timer.check();
            disable_interrupts();
        }
        Err(error) => checks::equal("bind VIRQ_TIMER", error, 0),
    }
}

impl Timer {
    fn check(&self) {
        checks::equal("stop periodic", self.plain(VCPUOP_STOP_PERIODIC_TIMER), 0);
        self.singleshots();
        self.past();
        self.cancelled();
        self.polled();
        self.periodic();
    }

    fn singleshots(&self) {
        let total = usize::try_from(TIMERS.load(Ordering::Relaxed)).unwrap_or(2);
        let mut lateness = [0_u64; MAX_TIMERS];
        let lateness = &mut lateness[..total.min(MAX_TIMERS)];
        let (mut early, mut lost) = (0, 0);
        for (i, slot) in lateness.iter_mut().enumerate() {
            // From 0.2 to 2.1 ms, every other one by the other call.
            let deadline = self.now() + (2 + i as u64 % 20) * MILLISECOND_NS / 10;
            let seen = count(self.port);
            let answer =
                if i % 2 == 0 { self.singleshot(deadline, 0) } else { set_timer(deadline) };
            if answer != 0 || !self.await_event(seen, i >= total / 2) {
                lost += 1;
                continue;
            }
            let arrived = self.system_time(arrived_tsc(self.port));
            early += u32::from(arrived < deadline);
            *slot = arrived.saturating_sub(deadline);
        }
        checks::equal("lost timers", lost, 0);
        checks::equal("early timers", early, 0);
        lateness.sort_unstable();
        let at = |index: usize| lateness.get(index).copied().unwrap_or(0);
        MEDIAN_NS[self.cpu].store(at(lateness.len() / 2), Ordering::Relaxed);
        P99_NS[self.cpu].store(at(lateness.len() * 99 / 100), Ordering::Relaxed);
        MAX_NS[self.cpu].store(at(lateness.len() - 1), Ordering::Relaxed);
    }

    fn past(&self) {
        let seen = count(self.port);
        let past = self.now() - self.now().min(MILLISECOND_NS);
        let by_kvm = BY_KVM.load(Ordering::Relaxed);
        checks::equal(
            "past, with the future flag",
            self.singleshot(past, VCPU_SSHOTTMR_FUTURE),
            if by_kvm { 0 } else { Errno::ETIME.to_return() },
        );
        self.pass(MILLISECOND_NS);
        checks::equal("fires only for KVM", count(self.port) - seen, u32::from(by_kvm));
        let seen = count(self.port);
        checks::equal("past, without it", self.singleshot(past, 0), 0);
        checks::holds("fires at once", self.await_event(seen, false), count(self.port));
    }

    fn cancelled(&self) {
        let soon = self.now() + FAR_NS;
        checks::equal("set", self.singleshot(soon, VCPU_SSHOTTMR_FUTURE), 0);
        checks::equal("stop", self.plain(VCPUOP_STOP_SINGLESHOT_TIMER), 0);
        checks::equal("a stopped timer is silent", self.events_until(soon), 0);
        let soon = self.now() + FAR_NS;
        checks::equal("set_timer_op", set_timer(soon), 0);
        checks::equal("set_timer_op 0", set_timer(0), 0);
        checks::equal("a cleared timer is silent", self.events_until(soon), 0);
    }

    /// A poll ends at its deadline, which is a time of day and not a length.
    fn polled(&self) {
        for ms in [0, 1, 20] {
            let deadline = self.now() + ms * MILLISECOND_NS;
            let ports = [self.port];
            let mut poll = SchedPoll {
                ports: ports.as_ptr() as u64,
                nr_ports: 1,
                _pad: [0; 4],
                timeout: deadline,
            };
            let seen = count(self.port);
            let answer = hypercall::call(HYPERVISOR_SCHED_OP, SCHEDOP_POLL, &mut poll);
            let after = self.now();
            checks::equal("poll", answer, 0);
            let came = count(self.port) != seen;
            checks::holds("a poll is not early", came || after >= deadline, deadline - after);
            checks::holds("a poll ends", after < deadline + PATIENCE_NS, after - deadline);
        }
    }

    /// Events from now to a while after `deadline_ns`. A host so slow that the
    /// deadline has passed already shows nothing.
    fn events_until(&self, deadline_ns: u64) -> u32 {
        let seen = count(self.port);
        if self.now() < deadline_ns {
            self.pass(deadline_ns.saturating_sub(self.now()) + FAR_NS);
            count(self.port) - seen
        } else {
            0
        }
    }

    fn periodic(&self) {
        let start = |period_ns| {
            vcpu_op(VCPUOP_SET_PERIODIC_TIMER, self.cpu, &mut VcpuSetPeriodicTimer { period_ns })
        };
        checks::equal("a period below 1 ms", start(1000), Errno::EINVAL.to_return());
        let seen = count(self.port);
        let began = self.now();
        checks::equal("periodic", start(PERIOD_NS), 0);
        self.pass(PERIODS * PERIOD_NS);
        checks::equal("stop periodic", self.plain(VCPUOP_STOP_PERIODIC_TIMER), 0);
        let most = (self.now() - began) / PERIOD_NS + 1;
        let ticks = u64::from(count(self.port) - seen);
        PERIODIC[self.cpu].store(ticks, Ordering::Relaxed);
        // Ticks may be merged when the host is late, but not invented.
        checks::holds("ticks", (PERIODS / 2..=most).contains(&ticks), ticks);
        self.pass(MILLISECOND_NS);
        let seen = count(self.port);
        self.pass(3 * PERIOD_NS);
        checks::equal("a stopped period is silent", count(self.port), seen);
    }

    fn singleshot(&self, timeout_abs_ns: u64, flags: u32) -> i64 {
        let mut timer = VcpuSetSingleshotTimer { timeout_abs_ns, flags, _pad: [0; 4] };
        vcpu_op(VCPUOP_SET_SINGLESHOT_TIMER, self.cpu, &mut timer)
    }

    fn plain(&self, operation: u32) -> i64 {
        vcpu_op(operation, self.cpu, &mut 0_u64)
    }

    /// Waits for the event after the `seen`th; false if it takes too long.
    fn await_event(&self, seen: u32, halt: bool) -> bool {
        let give_up = self.now() + PATIENCE_NS;
        while self.now() < give_up {
            if halt {
                // Off while looking, on only in HLT: none slips between the two.
                disable_interrupts();
                if count(self.port) == seen {
                    wait_for_interrupt();
                }
                enable_interrupts();
            }
            if count(self.port) != seen {
                return true;
            }
            core::hint::spin_loop();
        }
        false
    }

    /// Spins for a time.
    fn pass(&self, ns: u64) {
        let end = self.now() + ns;
        while self.now() < end {
            core::hint::spin_loop();
        }
    }

    fn now(&self) -> u64 {
        self.read().system_time_ns()
    }

    fn system_time(&self, guest_tsc: u64) -> u64 {
        self.read().line.at(guest_tsc)
    }

    #[expect(unsafe_code, reason = "the clock page")]
    fn read(&self) -> pvclock::Reading {
        // SAFETY: `shared` hands out addresses inside static pages only.
        unsafe { pvclock::read(time_info(self.cpu)) }
    }
}

fn set_timer(timeout_ns: u64) -> i64 {
    hypercall::call_plain(HYPERVISOR_SET_TIMER_OP, [timeout_ns, 0, 0])
}
