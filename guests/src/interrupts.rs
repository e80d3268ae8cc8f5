//! Descriptor tables and interrupts of each CPU.
//!
//! Every vector enters on a stack of the interrupt stack table: the prebuilt
//! `core` keeps data in the red zone below RSP, which an interrupt on the
//! current stack would overwrite. Exceptions have a second stack, so that a
//! fault in a handler still prints. All SSE registers are saved, since handlers
//! are plain Rust.

#![expect(unsafe_code, reason = "descriptor tables, naked entry points, per-CPU data")]

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use crate::boot::{CODE64, DESCRIPTORS, TSS};
use crate::cpu::wrmsr;
use crate::lapic;
use crate::smp::MAX_CPUS;

const MSR_GS_BASE: u32 = 0xc000_0101;
const INTERRUPT_STACK_BYTES: usize = 8192;
const EXCEPTIONS: usize = 32;
const STUB_BYTES: u64 = 16;

/// The registers at an interrupt, as the entry code leaves them on the stack.
#[repr(C)]
#[derive(Debug)]
pub struct Frame {
    /// R15 to R8, RDI, RSI, RBP, RBX, RDX, RCX, RAX.
    pub registers: [u64; 15],
    /// Vector number, 0 to 255.
    pub vector: u64,
    /// Error code, or 0 where the vector has none.
    pub error: u64,
    /// Interrupted instruction.
    pub rip: u64,
    /// Interrupted code segment.
    pub cs: u64,
    /// Interrupted flags.
    pub rflags: u64,
    /// Interrupted stack.
    pub rsp: u64,
    /// Interrupted stack segment.
    pub ss: u64,
}

#[repr(C, align(64))]
struct PerCpu {
    index: usize,
    gdt: [u64; 6],
    tss: [u32; 26],
}

#[repr(C, align(16))]
struct Stacks([[u8; INTERRUPT_STACK_BYTES]; 2]);

struct Shared<T>(UnsafeCell<T>);
// SAFETY: element n is written only by CPU n while it starts (the IDT by the
// boot CPU before any other CPU runs) and read by hardware afterwards.
unsafe impl<T> Sync for Shared<T> {}

static PER_CPU: Shared<[PerCpu; MAX_CPUS]> =
    Shared(UnsafeCell::new([const { PerCpu { index: 0, gdt: [0; 6], tss: [0; 26] } }; MAX_CPUS]));
#[unsafe(link_section = ".bss.noinit")]
static STACKS: Shared<[Stacks; MAX_CPUS]> =
    Shared(UnsafeCell::new([const { Stacks([[0; INTERRUPT_STACK_BYTES]; 2]) }; MAX_CPUS]));
static IDT: Shared<[[u64; 2]; 256]> = Shared(UnsafeCell::new([[0; 2]; 256]));
static HANDLERS: [AtomicPtr<()>; 256] = [const { AtomicPtr::new(core::ptr::null_mut()) }; 256];
static PAST_LAPIC: [AtomicBool; 256] = [const { AtomicBool::new(false) }; 256];

// SAFETY: a byte of code that the assembly below defines; its address alone is used.
unsafe extern "C" {
    safe static interrupt_stubs: u8;
}

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// Makes `handler` run on every interrupt of `vector` (32 to 255), on any CPU.
/// It runs with interrupts off and must not print.
pub fn set_handler(vector: u8, handler: fn()) {
    if let Some(slot) = HANDLERS.get(usize::from(vector)) {
        slot.store(handler as *mut (), Ordering::Release);
    }
}

/// As [`set_handler`], for a vector that the hypervisor injects past the local
/// APIC: nothing is in service there, and no end of interrupt is told.
pub fn set_handler_past_lapic(vector: u8, handler: fn()) {
    if let Some(slot) = PAST_LAPIC.get(usize::from(vector)) {
        slot.store(true, Ordering::Release);
    }
    set_handler(vector, handler);
}

/// Number of the CPU that runs this, from 0; valid after [`load`].
#[must_use]
pub fn cpu_index() -> usize {
    let index: usize;
    // SAFETY: `load` pointed GS at this CPU's `PerCpu`, which starts with it.
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) index, options(nostack, readonly, preserves_flags));
    }
    index
}

/// Fills the interrupt descriptor table; once, by the boot CPU, before `load`.
pub fn init() {
    let stubs = &raw const interrupt_stubs as u64;
    for vector in 0..256 {
        let entry = stubs + vector as u64 * STUB_BYTES;
        let stack: u64 = if vector < EXCEPTIONS { 2 } else { 1 };
        let low = (entry & 0xffff)
            | u64::from(CODE64) << 16
            | stack << 32
            | 0x8e << 40 // present, 64-bit interrupt gate
            | (entry >> 16 & 0xffff) << 48;
        // SAFETY: only the boot CPU runs; `vector` is below 256.
        unsafe { (*IDT.0.get())[vector] = [low, entry >> 32] };
    }
}

/// Loads this CPU's tables; `index` is below [`MAX_CPUS`] and used once.
pub fn load(index: usize) {
    // SAFETY: in bounds of the static array, checked by the index.
    let stacks = unsafe { &raw mut (*STACKS.0.get())[index] };
    let interrupt_top = stacks as u64 + INTERRUPT_STACK_BYTES as u64;
    let exception_top = interrupt_top + INTERRUPT_STACK_BYTES as u64;

    // SAFETY: this CPU's own element, see `Shared`.
    let cpu = unsafe { &mut (*PER_CPU.0.get())[index] };
    cpu.index = index;
    // IST 1 and 2 lie at bytes 0x24 and 0x2c; no I/O permission map.
    (cpu.tss[9], cpu.tss[10]) = halves(interrupt_top);
    (cpu.tss[11], cpu.tss[12]) = halves(exception_top);
    cpu.tss[25] = 104 << 16;
    let tss = &raw const cpu.tss as u64;
    cpu.gdt[..4].copy_from_slice(&DESCRIPTORS);
    cpu.gdt[4] = 103 | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56;
    cpu.gdt[5] = tss >> 32;

    let gdt = TablePointer { limit: 47, base: &raw const cpu.gdt as u64 };
    let idt = TablePointer { limit: 4095, base: IDT.0.get() as u64 };
    // SAFETY: the new table has the same code and data descriptors at the same
    // selectors, so that loaded segments stay valid; TSS and IDT are static.
    unsafe {
        asm!(
            "lgdt [{gdt}]", "lidt [{idt}]", "ltr {tss:x}",
            gdt = in(reg) &raw const gdt, idt = in(reg) &raw const idt, tss = in(reg) TSS,
            options(nostack)
        );
    }
    // SAFETY: GS was null until now; nothing uses it but `cpu_index`.
    unsafe { wrmsr(MSR_GS_BASE, &raw const *cpu as u64) };
}

fn halves(value: u64) -> (u32, u32) {
    ((value & 0xffff_ffff) as u32, (value >> 32) as u32)
}

extern "C" fn dispatch(frame: &Frame) {
    let vector = usize::try_from(frame.vector).unwrap_or(usize::MAX);
    let handler = HANDLERS.get(vector).map(|slot| slot.load(Ordering::Acquire));
    match handler {
        Some(pointer) if vector >= EXCEPTIONS => {
            if !pointer.is_null() {
                // SAFETY: only `set_handler` stores here, and it stores a `fn()`.
                let handler = unsafe { core::mem::transmute::<*mut (), fn()>(pointer) };
                handler();
            }
            if !PAST_LAPIC.get(vector).is_some_and(|slot| slot.load(Ordering::Acquire)) {
                lapic::end_of_interrupt();
            }
        }
        _ => panic!(
            "exception {} error {:#x} at {:#x} rsp {:#x} cpu {}",
            frame.vector,
            frame.error,
            frame.rip,
            frame.rsp,
            cpu_index()
        ),
    }
}

global_asm!(
    r#"
    .section .text.interrupts, "ax"
    .p2align 4
    .global interrupt_stubs
interrupt_stubs:
    .set vector, 0
    .rept 256
    .p2align 4
    /* Vectors 8, 10-14, 17, 21, 29, 30 push an error code of their own. */
    .if !((0x60227d00 >> vector) & (vector < 32) & 1)
    .byte 0x6a, 0               /* push 0 */
    .endif
    .byte 0x68                  /* push the vector */
    .long vector
    jmp interrupt_common
    .set vector, vector + 1
    .endr

interrupt_common:
    push rax
    push rcx
    push rdx
    push rbx
    push rbp
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    sub rsp, 256
    movups [rsp], xmm0
    movups [rsp + 16], xmm1
    movups [rsp + 32], xmm2
    movups [rsp + 48], xmm3
    movups [rsp + 64], xmm4
    movups [rsp + 80], xmm5
    movups [rsp + 96], xmm6
    movups [rsp + 112], xmm7
    movups [rsp + 128], xmm8
    movups [rsp + 144], xmm9
    movups [rsp + 160], xmm10
    movups [rsp + 176], xmm11
    movups [rsp + 192], xmm12
    movups [rsp + 208], xmm13
    movups [rsp + 224], xmm14
    movups [rsp + 240], xmm15
    call {dispatch}
    movups xmm0, [rsp]
    movups xmm1, [rsp + 16]
    movups xmm2, [rsp + 32]
    movups xmm3, [rsp + 48]
    movups xmm4, [rsp + 64]
    movups xmm5, [rsp + 80]
    movups xmm6, [rsp + 96]
    movups xmm7, [rsp + 112]
    movups xmm8, [rsp + 128]
    movups xmm9, [rsp + 144]
    movups xmm10, [rsp + 160]
    movups xmm11, [rsp + 176]
    movups xmm12, [rsp + 192]
    movups xmm13, [rsp + 208]
    movups xmm14, [rsp + 224]
    movups xmm15, [rsp + 240]
    add rsp, 256
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rbp
    pop rbx
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq
    "#,
    dispatch = sym dispatch,
);
