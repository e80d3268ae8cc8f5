//! A storm of events: every CPU sends to every other one as fast as it can, and
//! through a loop of two interdomain ports, while receivers mask and unmask.
//! No event may be lost, and no CPU may be told much more often than there is
//! something to tell.
//!
//! Parameters: `sends=` of each CPU (default 2000), `abi=2l` or `fifo`, `upcall=`
//! `vector` (each vCPU's own), `callback` (the same one for all, past the local
//! APIC) or `gsi` (level triggered, vCPU 0 only).
//!
//! An event says "at least one". So each sender counts up before it sends, and
//! the receiver notes the count that it sees when it takes the event: after the
//! last send the two must be equal.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use guests::cpu::{disable_interrupts, enable_interrupts, guest_tsc};
use guests::events::{self, UPCALL_VECTOR, bind_ipi, callback_by, operation, send, upcall_by};
use guests::interrupts::{cpu_index, set_handler};
use guests::rt::Exit;
use guests::start_info::Machine;
use guests::{checks, entry, fifo, hypercall, ioapic, report, shared, smp};
use xen_abi::event_channel::{
    EVTCHNOP_ALLOC_UNBOUND, EVTCHNOP_BIND_INTERDOMAIN, EVTCHNOP_BIND_VCPU, EvtchnAllocUnbound,
    EvtchnBindInterdomain, EvtchnBindVcpu,
};
use xen_abi::hvm_op::{HVMOP_SET_PARAM, HvmParam};
use xen_abi::hvm_params::HVM_PARAM_CALLBACK_IRQ;
use xen_abi::hypercall::HYPERVISOR_HVM_OP;
use xen_abi::xen::DOMID_SELF;

entry!(main);

const MAX_CPUS: usize = 4;
const MAX_LINKS: usize = MAX_CPUS * MAX_CPUS + 2;
const MAX_PORTS: usize = 64;
/// A pin of the I/O APIC that no device has.
const GSI: u32 = 20;
/// Each CPU masks and unmasks a port of its own once in so many sends.
const MASK_EVERY: u32 = 61;
/// Some seconds on any machine: an event that takes longer is lost.
const PATIENCE_TSC: u64 = 20_000_000_000;
/// Upcalls that no event accounts for: the first of each CPU, and the like.
const SLACK: u32 = 64;

/// From one CPU to one port.
struct Link {
    from: AtomicUsize,
    to: AtomicUsize,
    send_port: AtomicU32,
    event_port: AtomicU32,
    sent: AtomicU32,
    seen: AtomicU32,
}

static LINKS: [Link; MAX_LINKS] = [const {
    Link {
        from: AtomicUsize::new(usize::MAX),
        to: AtomicUsize::new(usize::MAX),
        send_port: AtomicU32::new(0),
        event_port: AtomicU32::new(0),
        sent: AtomicU32::new(0),
        seen: AtomicU32::new(0),
    }
}; MAX_LINKS];
static NEXT_LINK: AtomicUsize = AtomicUsize::new(0);
/// The link whose events come at a port, plus 1.
static LINK_OF: [AtomicUsize; MAX_PORTS] = [const { AtomicUsize::new(0) }; MAX_PORTS];
/// The ports of each CPU, one bit each.
static MINE: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

static FIFO: AtomicBool = AtomicBool::new(false);
static BY_GSI: AtomicBool = AtomicBool::new(false);
static BY_CALLBACK: AtomicBool = AtomicBool::new(false);
static SENDS: AtomicU32 = AtomicU32::new(0);

static READY: AtomicUsize = AtomicUsize::new(0);
static START: AtomicBool = AtomicBool::new(false);
static FINISHED: AtomicUsize = AtomicUsize::new(0);
static UPCALLS: AtomicU32 = AtomicU32::new(0);
static EMPTY: AtomicU32 = AtomicU32::new(0);
static EVENTS: AtomicU32 = AtomicU32::new(0);
static MASKINGS: AtomicU32 = AtomicU32::new(0);
static SEND_CYCLES: AtomicU64 = AtomicU64::new(0);

fn main(machine: &Machine) -> Exit {
    let abi = machine.text("abi").unwrap_or("2l");
    let upcall = machine.text("upcall").unwrap_or("vector");
    checks::holds("abi=2l or fifo", matches!(abi, "2l" | "fifo"), abi);
    let known = matches!(upcall, "vector" | "callback" | "gsi");
    checks::holds("upcall=vector, callback or gsi", known, upcall);
    FIFO.store(abi == "fifo", Ordering::Relaxed);
    BY_GSI.store(upcall == "gsi", Ordering::Relaxed);
    BY_CALLBACK.store(upcall == "callback", Ordering::Relaxed);
    let sends = machine.number("sends", 2000).min(100_000_000);
    SENDS.store(u32::try_from(sends).unwrap_or(u32::MAX), Ordering::Relaxed);
    checks::equal("map shared_info", shared::map_shared_info(), 0);
    smp::start(machine);
    smp::run_on_all(work);
    judge();
    checks::finish("storm")
}

fn work(cpu: usize) {
    if cpu >= MAX_CPUS {
        return;
    }
    let cpus = smp::cpus().min(MAX_CPUS);
    prepare(cpu);
    READY.fetch_add(1, Ordering::Release);
    if cpu == 0 {
        while READY.load(Ordering::Acquire) < cpus {
            core::hint::spin_loop();
        }
        connect(cpus);
        START.store(true, Ordering::Release);
    }
    while !START.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    enable_interrupts();
    storm(cpu);
    FINISHED.fetch_add(1, Ordering::Release);
    // Until all have had their last event.
    while FINISHED.load(Ordering::Acquire) < cpus {
        core::hint::spin_loop();
    }
    disable_interrupts();
}

fn prepare(cpu: usize) {
    checks::equal("register_vcpu_info", shared::register_vcpu_info(cpu), 0);
    if FIFO.load(Ordering::Relaxed) {
        checks::equal("init_control", fifo::init_control(cpu), 0);
        if cpu == 0 {
            checks::equal("expand_array", fifo::expand_array(), 0);
        }
    }
    if BY_CALLBACK.load(Ordering::Relaxed) {
        if cpu == 0 {
            checks::equal("callback vector", callback_by(UPCALL_VECTOR, upcall), 0);
        }
    } else if !BY_GSI.load(Ordering::Relaxed) {
        checks::equal("vector", upcall_by(shared::vcpu_id(cpu), UPCALL_VECTOR, upcall), 0);
    } else if cpu == 0 {
        set_handler(UPCALL_VECTOR, upcall);
        ioapic::route_level(GSI, UPCALL_VECTOR);
        let mut via = HvmParam {
            domid: DOMID_SELF,
            index: HVM_PARAM_CALLBACK_IRQ,
            value: u64::from(GSI),
            ..Default::default()
        };
        checks::equal("callback", hypercall::call(HYPERVISOR_HVM_OP, HVMOP_SET_PARAM, &mut via), 0);
    }
}

/// Binds an IPI for every pair of CPUs, and the loop.
fn connect(cpus: usize) {
    let receivers = if BY_GSI.load(Ordering::Relaxed) { 1 } else { cpus };
    for to in 0..receivers {
        for from in (0..cpus).filter(|&from| from != to || cpus == 1) {
            match bind_ipi(shared::vcpu_id_of(to)) {
                Ok(port) => add_link(from, to, port, port),
                Err(errno) => checks::holds("bind_ipi", false, errno),
            }
        }
    }
    let mut alloc =
        EvtchnAllocUnbound { dom: DOMID_SELF, remote_dom: DOMID_SELF, ..Default::default() };
    checks::equal("alloc_unbound", operation(EVTCHNOP_ALLOC_UNBOUND, &mut alloc), 0);
    let mut bind = EvtchnBindInterdomain {
        remote_dom: DOMID_SELF,
        remote_port: alloc.port,
        ..Default::default()
    };
    checks::equal("bind_interdomain", operation(EVTCHNOP_BIND_INTERDOMAIN, &mut bind), 0);
    let other = receivers.min(2) - 1;
    let mut vcpu = EvtchnBindVcpu { port: alloc.port, vcpu: shared::vcpu_id_of(other) };
    checks::equal("bind_vcpu", operation(EVTCHNOP_BIND_VCPU, &mut vcpu), 0);
    let sender = cpus.min(2) - 1;
    add_link(0, other, bind.local_port, alloc.port);
    add_link(sender, 0, alloc.port, bind.local_port);
    if FIFO.load(Ordering::Relaxed) {
        // Each at a priority of its own; the default's queue holds several.
        let ports = LINKS.iter().map(|link| link.event_port.load(Ordering::Relaxed));
        for port in ports.filter(|port| port % 3 == 1) {
            checks::equal("set_priority", fifo::set_priority(port, port % 16), 0);
        }
    }
}

fn add_link(from: usize, to: usize, send_port: u32, event_port: u32) {
    let index = NEXT_LINK.fetch_add(1, Ordering::Relaxed);
    let slot = LINK_OF.get(event_port as usize);
    let (Some(link), Some(slot)) = (LINKS.get(index), slot) else {
        checks::holds("room for a link", false, event_port);
        return;
    };
    link.send_port.store(send_port, Ordering::Relaxed);
    link.event_port.store(event_port, Ordering::Relaxed);
    link.from.store(from, Ordering::Relaxed);
    link.to.store(to, Ordering::Relaxed);
    MINE[to].fetch_or(1 << event_port, Ordering::Relaxed);
    slot.store(index + 1, Ordering::Release);
}

fn upcall() {
    UPCALLS.fetch_add(1, Ordering::Relaxed);
    let taken = if FIFO.load(Ordering::Relaxed) {
        fifo::take(handle)
    } else {
        events::take(|word| if word == 0 { mine() } else { u64::MAX }, handle)
    };
    EVENTS.fetch_add(taken, Ordering::Relaxed);
    EMPTY.fetch_add(u32::from(taken == 0), Ordering::Relaxed);
}

fn mine() -> u64 {
    MINE.get(cpu_index()).map_or(0, |ports| ports.load(Ordering::Relaxed))
}

fn handle(port: u32) {
    let slot = LINK_OF.get(port as usize).map_or(0, |slot| slot.load(Ordering::Acquire));
    if let Some(link) = slot.checked_sub(1).and_then(|index| LINKS.get(index)) {
        // After the pending bit was cleared: a later send sets it again.
        link.seen.store(link.sent.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

fn of_cpu(cpu: usize) -> impl Iterator<Item = &'static Link> {
    LINKS.iter().filter(move |link| link.from.load(Ordering::Relaxed) == cpu)
}

fn storm(cpu: usize) {
    let own = MINE[cpu].load(Ordering::Relaxed);
    let sends = SENDS.load(Ordering::Relaxed);
    let start = guest_tsc();
    let mut done = 0;
    let mut failed = 0_u32;
    while done < sends && failed == 0 && of_cpu(cpu).next().is_some() {
        for link in of_cpu(cpu) {
            if done == sends {
                break;
            }
            done += 1;
            link.sent.fetch_add(1, Ordering::SeqCst);
            failed += u32::from(send(link.send_port.load(Ordering::Relaxed)) != 0);
            if done % MASK_EVERY == 0 && own != 0 {
                let nth = done / MASK_EVERY % own.count_ones();
                let rest = (0..nth).fold(own, |bits, _| bits & (bits - 1));
                failed += u32::from(mask_and_unmask(rest.trailing_zeros()) != 0);
            }
        }
    }
    checks::equal("sends and unmaskings that failed", failed, 0);
    SEND_CYCLES.fetch_add(guest_tsc().wrapping_sub(start), Ordering::Relaxed);
    let arrived =
        |link: &Link| link.seen.load(Ordering::SeqCst) == link.sent.load(Ordering::SeqCst);
    let since = guest_tsc();
    while !of_cpu(cpu).all(arrived) && guest_tsc().wrapping_sub(since) < PATIENCE_TSC {
        core::hint::spin_loop();
    }
}

fn mask_and_unmask(port: u32) -> i64 {
    MASKINGS.fetch_add(1, Ordering::Relaxed);
    if FIFO.load(Ordering::Relaxed) {
        fifo::mask(port);
        fifo::unmask(port)
    } else {
        events::mask(port);
        events::unmask(port)
    }
}

fn judge() {
    let mut sent = 0;
    for link in LINKS.iter().filter(|link| link.from.load(Ordering::Relaxed) != usize::MAX) {
        let count = link.sent.load(Ordering::SeqCst);
        let lost = count - link.seen.load(Ordering::SeqCst);
        checks::equal("events lost", lost, 0);
        sent += count;
    }
    let load = |counter: &AtomicU32| counter.load(Ordering::SeqCst);
    let (upcalls, events, maskings) = (load(&UPCALLS), load(&EVENTS), load(&MASKINGS));
    let cycles = SEND_CYCLES.load(Ordering::SeqCst);
    report!("storm";
        cpus = smp::cpus(), sends = sent, events = events, upcalls = upcalls,
        empty = load(&EMPTY), maskings = maskings,
        cycles_per_send = cycles / u64::from(sent.max(1)));
    checks::holds("events came", events > 0, events);
    // Each event tells at most once, and once more if it was masked when its
    // CPU looked. A level may come again at the end of an interrupt.
    let per_event = if BY_GSI.load(Ordering::Relaxed) { 2 } else { 1 };
    let bound = per_event * events + maskings + SLACK;
    checks::holds("no spurious storm", upcalls <= bound, upcalls);
}
