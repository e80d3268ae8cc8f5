//! Every vCPU brought up, asked to report in, reached by one event, and taken
//! down: by VCPUOP_initialise in 32-bit and in 64-bit mode and by INIT-SIPI in
//! turn. Then some go on where they stopped, and others are started anew.
//!
//! At most one secondary CPU runs at a time, so that 128 of them fit a host
//! with two CPUs.

#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "control registers")]

use core::arch::asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guests::boot::{ap_enter32, ap_enter64};
use guests::cpu::{guest_tsc, rdmsr, wait_for_interrupt};
use guests::events::{UPCALL_VECTOR, bind_ipi, clear, close, count, send, set_upcall_vector};
use guests::rt::Exit;
use guests::shared::{register_vcpu_info_of, vcpu_id, vcpu_op_on};
use guests::smp::{MAX_CPUS, install_trampoline, prepare, send_init_and_startup, set_entry};
use guests::start_info::Machine;
use guests::{checks, entry, hypercall, report, shared};
use xen_abi::errno::Errno;
use xen_abi::hvm_vcpu::{
    VCPU_HVM_MODE_32B, VCPU_HVM_MODE_64B, VcpuHvmContext, VcpuHvmX86_32, VcpuHvmX86_64,
};
use xen_abi::hypercall::HYPERVISOR_VCPU_OP;
use xen_abi::vcpu::{
    RUNSTATE_OFFLINE, RUNSTATE_RUNNING, VCPUOP_DOWN, VCPUOP_GET_RUNSTATE_INFO, VCPUOP_INITIALISE,
    VCPUOP_IS_UP, VCPUOP_UP,
};

entry!(main);

const MSR_EFER: u32 = 0xc000_0080;
const EFER_LMA: u64 = 1 << 10;
/// vCPUs from here on have no place in `shared_info`.
const FIRST_WITHOUT_INFO: u32 = 32;
/// Room for the slowest emulated CPU: seconds.
const PATIENCE_CYCLES: u64 = 10_000_000_000;

/// What a CPU has come to; each only ever counts up.
static STAGE: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
static PORT: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];

const WAITING: u32 = 1;
const REACHED: u32 = 2;
const WENT_ON: u32 = 3;

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Sipi,
    Flat32,
    Long64,
}

const fn how(cpu: u32) -> How {
    match cpu % 3 {
        0 => How::Sipi,
        1 => How::Long64,
        _ => How::Flat32,
    }
}

fn main(machine: &Machine) -> Exit {
    checks::equal("map shared_info", shared::map_shared_info(), 0);
    let Some(page) = install_trampoline(machine) else {
        checks::holds("a page below 1 MiB", false, 0);
        return checks::finish("vcpus");
    };
    set_entry(secondary);
    checks::equal("register vcpu_info 0", shared::register_vcpu_info(0), 0);
    refusals(machine.apic_ids().len());
    let since = guest_tsc();
    let mut reached = 0;
    for (index, &apic_id) in machine.apic_ids().iter().enumerate().skip(1) {
        reached += u32::from(bring_up(index, apic_id, page));
    }
    let cycles = guest_tsc().wrapping_sub(since);
    for index in 1..machine.apic_ids().len() {
        go_on(index);
    }
    report!("vcpus-up"; vcpus = machine.apic_ids().len(), reached = reached,
        cycles_each = cycles / (machine.apic_ids().len() as u64).max(1));
    checks::equal("every one was reached", reached as usize + 1, machine.apic_ids().len());
    checks::finish("vcpus")
}

fn number(cpu: usize) -> u32 {
    u32::try_from(cpu).unwrap_or(u32::MAX)
}

/// A `vcpu_op` without a structure.
fn plain(operation: u32, vcpu: u32) -> i64 {
    vcpu_op_on(operation, vcpu, &mut 0_u64)
}

/// What is refused, whatever vCPUs there are.
fn refusals(cpus: usize) {
    checks::equal("is_up of itself", plain(VCPUOP_IS_UP, 0), 1);
    let beyond = number(cpus);
    checks::equal("is_up beyond", plain(VCPUOP_IS_UP, beyond), Errno::ENOENT.to_return());
    checks::equal(
        "initialise beyond",
        initialise(beyond, How::Long64, 0),
        Errno::ENOENT.to_return(),
    );
    if cpus > 1 {
        checks::equal("up before initialise", plain(VCPUOP_UP, 1), Errno::EINVAL.to_return());
        CONTEXT[0].store(2, Ordering::Relaxed);
        let answer = on_words(VCPUOP_INITIALISE, 1, &CONTEXT);
        checks::equal("a third mode", answer, Errno::EINVAL.to_return());
        checks::equal("runstate of one that is down", runstate(1), RUNSTATE_OFFLINE);
    }
    checks::equal("initialise itself", initialise(0, How::Long64, 0), Errno::EEXIST.to_return());
    checks::equal("runstate of itself", runstate(0), RUNSTATE_RUNNING);
}

fn runstate(vcpu: u32) -> u32 {
    checks::equal("get_runstate_info", on_words(VCPUOP_GET_RUNSTATE_INFO, vcpu, &RUNSTATE), 0);
    (RUNSTATE[0].load(Ordering::Acquire) & 0xffff_ffff) as u32
}

/// Starts a CPU, sends it its event and sees it go down.
fn bring_up(cpu: usize, apic_id: u32, page: u32) -> bool {
    let vcpu = number(cpu);
    let stack = prepare(cpu);
    if how(vcpu) == How::Sipi {
        send_init_and_startup(apic_id, page);
    } else {
        if vcpu >= FIRST_WITHOUT_INFO {
            let early = initialise(vcpu, how(vcpu), stack);
            checks::equal("initialise without vcpu_info", early, Errno::EINVAL.to_return());
            checks::equal("register its vcpu_info", register_vcpu_info_of(cpu, vcpu), 0);
        }
        checks::equal("initialise", initialise(vcpu, how(vcpu), stack), 0);
        let again = initialise(vcpu, how(vcpu), stack);
        checks::equal("initialise again", again, Errno::EEXIST.to_return());
        checks::equal("is_up before up", plain(VCPUOP_IS_UP, vcpu), 0);
        checks::equal("up", plain(VCPUOP_UP, vcpu), 0);
    }
    if !reaches(cpu, WAITING) {
        return false;
    }
    checks::equal("is_up", plain(VCPUOP_IS_UP, vcpu), 1);
    checks::equal("send", send(PORT[cpu].load(Ordering::Acquire)), 0);
    reaches(cpu, REACHED) && goes_down(vcpu)
}

/// A second life: up again goes on behind the call that took it down.
fn go_on(cpu: usize) {
    let vcpu = number(cpu);
    checks::equal("up again", plain(VCPUOP_UP, vcpu), 0);
    if reaches(cpu, WENT_ON) {
        goes_down(vcpu);
    }
}

fn reaches(cpu: usize, stage: u32) -> bool {
    let there = await_that(|| STAGE[cpu].load(Ordering::Acquire) >= stage);
    checks::holds("a vCPU comes to its next stage", there, (cpu, stage));
    there
}

fn goes_down(vcpu: u32) -> bool {
    let down = await_that(|| plain(VCPUOP_IS_UP, vcpu) == 0);
    checks::holds("a vCPU goes down", down, vcpu);
    down
}

fn await_that(condition: impl Fn() -> bool) -> bool {
    let since = guest_tsc();
    while guest_tsc().wrapping_sub(since) < PATIENCE_CYCLES {
        if condition() {
            return true;
        }
        core::hint::spin_loop();
    }
    false
}

/// Runs on each CPU but the first.
fn secondary(cpu: usize) {
    let vcpu = number(cpu);
    checks::equal("its own number", vcpu_id(cpu), vcpu);
    if how(vcpu) == How::Sipi || vcpu < FIRST_WITHOUT_INFO {
        checks::equal("register vcpu_info", shared::register_vcpu_info(cpu), 0);
    }
    let twice = shared::register_vcpu_info(cpu);
    checks::equal("register it twice", twice, Errno::EINVAL.to_return());
    checks::equal("upcall vector", set_upcall_vector(vcpu, UPCALL_VECTOR), 0);
    match bind_ipi(vcpu) {
        Ok(port) => {
            clear(port);
            let seen = count(port);
            PORT[cpu].store(port, Ordering::Release);
            STAGE[cpu].store(WAITING, Ordering::Release);
            while count(port) == seen {
                wait_for_interrupt();
            }
            checks::equal("one event", count(port) - seen, 1);
            checks::equal("close", close(port), 0);
        }
        Err(error) => checks::equal("bind an IPI", error, 0),
    }
    checks::equal("its own runstate", runstate(vcpu), RUNSTATE_RUNNING);
    STAGE[cpu].store(REACHED, Ordering::Release);
    checks::equal("down", plain(VCPUOP_DOWN, vcpu), 0);
    STAGE[cpu].store(WENT_ON, Ordering::Release);
    checks::equal("down again", plain(VCPUOP_DOWN, vcpu), 0);
}

/// The structures that Xen is given, as words: a KVM without hardware support
/// emulates no instruction that clears a vector register, which is how the
/// compiler clears a structure.
static CONTEXT: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];
static RUNSTATE: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];

/// Adds a field to [`CONTEXT`], `offset` bytes into its registers.
fn put(offset: usize, value: u64) {
    let at = offset_of!(VcpuHvmContext, cpu_regs) + offset;
    CONTEXT[at / 8].fetch_or(value << (at % 8 * 8), Ordering::Relaxed);
}

fn initialise(vcpu: u32, how: How, stack: u64) -> i64 {
    let address = |symbol: *const u8| symbol as u64;
    let begin = |mode: u32| {
        CONTEXT.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        CONTEXT[0].store(mode.into(), Ordering::Relaxed);
    };
    if how == How::Flat32 {
        begin(VCPU_HVM_MODE_32B);
        put(offset_of!(VcpuHvmX86_32, eip), address(&raw const ap_enter32));
        put(offset_of!(VcpuHvmX86_32, cr0), 0x11);
        put(offset_of!(VcpuHvmX86_32, cs_limit), 0xffff_ffff);
        put(offset_of!(VcpuHvmX86_32, ds_limit), 0xffff_ffff);
        put(offset_of!(VcpuHvmX86_32, ss_limit), 0xffff_ffff);
        put(offset_of!(VcpuHvmX86_32, es_limit), 0xffff_ffff);
        put(offset_of!(VcpuHvmX86_32, tr_limit), 0x67);
        put(offset_of!(VcpuHvmX86_32, cs_ar), 0xc9b);
        put(offset_of!(VcpuHvmX86_32, ds_ar), 0xc93);
        put(offset_of!(VcpuHvmX86_32, ss_ar), 0xc93);
        put(offset_of!(VcpuHvmX86_32, es_ar), 0xc93);
        put(offset_of!(VcpuHvmX86_32, tr_ar), 0x8b);
    } else {
        let (cr0, cr3, cr4) = control_registers();
        begin(VCPU_HVM_MODE_64B);
        put(offset_of!(VcpuHvmX86_64, rip), address(&raw const ap_enter64));
        put(offset_of!(VcpuHvmX86_64, rsp), stack);
        put(offset_of!(VcpuHvmX86_64, cr0), cr0);
        put(offset_of!(VcpuHvmX86_64, cr3), cr3);
        put(offset_of!(VcpuHvmX86_64, cr4), cr4);
        put(offset_of!(VcpuHvmX86_64, efer), rdmsr(MSR_EFER) & !EFER_LMA);
    }
    on_words(VCPUOP_INITIALISE, vcpu, &CONTEXT)
}

/// A `vcpu_op` with a structure of words, which Xen may write to.
fn on_words(operation: u32, vcpu: u32, words: &'static [AtomicU64]) -> i64 {
    let arguments = [operation.into(), vcpu.into(), words.as_ptr() as u64];
    hypercall::call_plain(HYPERVISOR_VCPU_OP, arguments)
}

fn control_registers() -> (u64, u64, u64) {
    let (cr0, cr3, cr4): (u64, u64, u64);
    // SAFETY: reads registers.
    unsafe {
        asm!("mov {0}, cr0", "mov {1}, cr3", "mov {2}, cr4",
            out(reg) cr0, out(reg) cr3, out(reg) cr4, options(nomem, nostack));
    }
    (cr0, cr3, cr4)
}
