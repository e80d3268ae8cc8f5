//! Event channels of two levels: every operation, its effect on the shared bits
//! and upcalls, and the error number of every misuse. With two CPUs also IPIs
//! from one to the other, and what they cost.
//!
//! Error numbers are those of Xen 4.17's `common/event_channel.c`.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use guests::cpu::{disable_interrupts, enable_interrupts, guest_tsc};
use guests::events::{
    UPCALL_VECTOR, bind_ipi, bind_virq, clear, close, count, is_pending, mask, operation, send,
    set_upcall_vector, status, unmask,
};
use guests::rt::Exit;
use guests::start_info::Machine;
use guests::{checks, entry, report, shared, smp};
use xen_abi::errno::Errno;
use xen_abi::event_channel::{
    EVTCHNOP_ALLOC_UNBOUND, EVTCHNOP_BIND_INTERDOMAIN, EVTCHNOP_BIND_VCPU, EVTCHNOP_RESET,
    EVTCHNSTAT_CLOSED, EVTCHNSTAT_INTERDOMAIN, EVTCHNSTAT_IPI, EVTCHNSTAT_UNBOUND, EVTCHNSTAT_VIRQ,
    EvtchnAllocUnbound, EvtchnBindInterdomain, EvtchnBindVcpu, EvtchnReset, EvtchnSend,
};
use xen_abi::xen::{DOMID_SELF, VIRQ_DEBUG, VIRQ_TIMER};

entry!(main);

const NO_PORT: u32 = 3000;
const BEYOND_PORTS: u32 = 4096;
const NO_VCPU: u32 = 1000;
const IPIS: usize = 1000;
/// A second or more on any machine: an event that takes longer is lost.
const PATIENCE_TSC: u64 = 5_000_000_000;

static READY: AtomicUsize = AtomicUsize::new(0);
static DONE: AtomicBool = AtomicBool::new(false);

fn main(machine: &Machine) -> Exit {
    checks::equal("map shared_info", shared::map_shared_info(), 0);
    smp::start(machine);
    smp::run_on_all(work);
    checks::finish("events")
}

/// The boot CPU checks, the second takes IPIs, others have nothing to do.
fn work(cpu: usize) {
    if cpu > 1 {
        return;
    }
    let vcpu = shared::vcpu_id(cpu);
    checks::equal("register_vcpu_info", shared::register_vcpu_info(cpu), 0);
    checks::equal("upcall vector", set_upcall_vector(vcpu, UPCALL_VECTOR), 0);
    enable_interrupts();
    READY.fetch_add(1, Ordering::Release);
    if cpu == 0 {
        let partners = smp::cpus().min(2);
        while READY.load(Ordering::Acquire) < partners {
            core::hint::spin_loop();
        }
        ipi_to_itself(vcpu);
        misuse(vcpu);
        states(vcpu);
        loopback();
        if partners == 2 {
            ipi_to_other();
        }
        reset(vcpu);
        DONE.store(true, Ordering::Release);
    } else {
        while !DONE.load(Ordering::Acquire) {
            core::hint::spin_loop();
        }
    }
    disable_interrupts();
}

/// Waits until a port's count is `wanted`; false if it takes too long.
fn comes(port: u32, wanted: u32) -> bool {
    let start = guest_tsc();
    while count(port) < wanted {
        if guest_tsc().wrapping_sub(start) > PATIENCE_TSC {
            return false;
        }
        core::hint::spin_loop();
    }
    count(port) == wanted
}

fn ipi_to_itself(vcpu: u32) {
    let Ok(port) = bind_ipi(vcpu) else {
        checks::equal("bind_ipi", bind_ipi(vcpu), Ok(1));
        return;
    };
    checks::holds("a port is never 0", port != 0, port);
    clear(port);
    checks::equal("send", send(port), 0);
    checks::holds("the event comes", comes(port, 1), count(port));
    checks::equal("taken", is_pending(port), false);

    mask(port);
    checks::equal("send to a masked port", send(port), 0);
    checks::equal("it pends", is_pending(port), true);
    checks::equal("no upcall while masked", count(port), 1);
    checks::equal("send again", send(port), 0);
    checks::equal("unmask", unmask(port), 0);
    checks::holds("two sends, one event", comes(port, 2), count(port));
    checks::equal("unmask what is not masked", unmask(port), 0);
    checks::equal("brings nothing", count(port), 2);
    checks::equal("close", close(port), 0);
}

fn misuse(vcpu: u32) {
    let invalid = Errno::EINVAL.to_return();
    let no_entry = Errno::ENOENT.to_return();
    for (name, port) in [("port 0", 0), ("a free port", NO_PORT), ("port 4096", BEYOND_PORTS)] {
        checks::equal(name, send(port), invalid);
        checks::equal(name, close(port), invalid);
    }
    checks::equal("send to the greatest port", send(u32::MAX), invalid);
    checks::equal("unmask port 4096", unmask(BEYOND_PORTS), invalid);
    checks::equal("status of port 4096", status(BEYOND_PORTS).err(), Some(invalid));
    checks::equal("bind_ipi of no vCPU", bind_ipi(NO_VCPU), Err(no_entry));
    checks::equal("bind_virq of no vCPU", bind_virq(VIRQ_TIMER, NO_VCPU), Err(no_entry));
    checks::equal("bind_virq of no VIRQ", bind_virq(99, vcpu), Err(invalid));
    checks::equal(
        "no such operation",
        operation(99, &mut EvtchnSend { port: 1 }),
        Errno::ENOSYS.to_return(),
    );
    checks::equal("upcall vector 15", set_upcall_vector(vcpu, 15), invalid);
    checks::equal("upcall vector of no vCPU", set_upcall_vector(NO_VCPU, 0xf0), no_entry);
}

fn states(vcpu: u32) {
    let invalid = Errno::EINVAL.to_return();
    let state = |port| status(port).map(|status| status.status);
    let (Ok(ipi), Ok(virq)) = (bind_ipi(vcpu), bind_virq(VIRQ_DEBUG, vcpu)) else {
        checks::holds("bind", false, vcpu);
        return;
    };
    mask(virq);
    checks::equal("status of an IPI", state(ipi), Ok(EVTCHNSTAT_IPI));
    checks::equal("its vCPU", status(ipi).map(|status| status.vcpu), Ok(vcpu));
    checks::equal("status of a VIRQ", state(virq), Ok(EVTCHNSTAT_VIRQ));
    checks::equal("its number", status(virq).map(|status| status.u), Ok(VIRQ_DEBUG));
    checks::equal("a VIRQ twice", bind_virq(VIRQ_DEBUG, vcpu), Err(Errno::EEXIST.to_return()));
    checks::equal("send to a VIRQ", send(virq), invalid);
    let mut bind = EvtchnBindVcpu { port: ipi, vcpu };
    checks::equal("an IPI stays on its vCPU", operation(EVTCHNOP_BIND_VCPU, &mut bind), invalid);
    checks::equal("close a VIRQ", close(virq), 0);
    checks::equal("status of a closed port", state(virq), Ok(EVTCHNSTAT_CLOSED));
    checks::equal("close twice", close(virq), invalid);
    let again = bind_virq(VIRQ_DEBUG, vcpu);
    checks::holds("a closed VIRQ binds again", again.is_ok(), again);
    if let Ok(port) = again {
        checks::equal("close again", close(port), 0);
    }
    checks::equal("close an IPI", close(ipi), 0);
}

/// Both ends of an interdomain channel in this domain.
fn loopback() {
    let mut alloc =
        EvtchnAllocUnbound { dom: DOMID_SELF, remote_dom: DOMID_SELF, ..Default::default() };
    checks::equal("alloc_unbound", operation(EVTCHNOP_ALLOC_UNBOUND, &mut alloc), 0);
    let far = alloc.port;
    clear(far);
    checks::equal("unbound", status(far).map(|status| status.status), Ok(EVTCHNSTAT_UNBOUND));
    let before = count(far);
    checks::equal("send to an unbound port", send(far), 0);
    checks::equal("is dropped", (count(far), is_pending(far)), (before, false));
    let mut bind =
        EvtchnBindInterdomain { remote_dom: DOMID_SELF, remote_port: far, ..Default::default() };
    checks::equal("bind_interdomain", operation(EVTCHNOP_BIND_INTERDOMAIN, &mut bind), 0);
    let near = bind.local_port;
    checks::equal("bound", status(far).map(|status| status.status), Ok(EVTCHNSTAT_INTERDOMAIN));
    checks::equal("its other end", status(far).map(|status| status.u_port), Ok(near));
    // Binding marks the local end pending once, for what may have been sent before.
    clear(near);
    let before = count(far);
    checks::equal("send through", send(near), 0);
    checks::holds("it comes at the other end", comes(far, before + 1), count(far));
    checks::equal(
        "bind a bound port",
        operation(EVTCHNOP_BIND_INTERDOMAIN, &mut bind),
        Errno::EINVAL.to_return(),
    );
    let mut bad = EvtchnBindVcpu { port: far, vcpu: NO_VCPU };
    checks::equal(
        "bind_vcpu to no vCPU",
        operation(EVTCHNOP_BIND_VCPU, &mut bad),
        Errno::ENOENT.to_return(),
    );
    checks::equal("close one end", close(near), 0);
    checks::equal(
        "the other is unbound",
        status(far).map(|status| status.status),
        Ok(EVTCHNSTAT_UNBOUND),
    );
    checks::equal("close it too", close(far), 0);
}

fn ipi_to_other() {
    let other = 1;
    let Ok(port) = bind_ipi(other) else {
        checks::equal("bind_ipi of the other", bind_ipi(other), Ok(0));
        return;
    };
    clear(port);
    let base = count(port);
    let mut cycles = [0_u64; IPIS];
    let mut sent = base;
    for slot in &mut cycles {
        let start = guest_tsc();
        let answer = send(port);
        sent += 1;
        if answer != 0 || !comes(port, sent) {
            break;
        }
        *slot = guest_tsc().wrapping_sub(start);
    }
    checks::equal("IPIs to the other CPU", (count(port) - base) as usize, IPIS);
    cycles.sort_unstable();
    report!("ipi";
        count = count(port) - base, median_cycles = cycles[IPIS / 2],
        p99_cycles = cycles[IPIS * 99 / 100]);
    checks::equal("close", close(port), 0);
}

fn reset(vcpu: u32) {
    let Ok(port) = bind_ipi(vcpu) else { return };
    let mut all = EvtchnReset { dom: DOMID_SELF };
    checks::equal("reset", operation(EVTCHNOP_RESET, &mut all), 0);
    checks::equal("reset closes", status(port).map(|status| status.status), Ok(EVTCHNSTAT_CLOSED));
}
