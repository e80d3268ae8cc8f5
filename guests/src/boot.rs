//! From the PVH entry (32-bit protected mode, no paging) to 64-bit Rust code,
//! and the same way for a secondary CPU from its real-mode start.
//!
//! The state at entry is the one that Xen's `docs/misc/pvh.pandoc` and
//! `public/arch-x86/hvm/start_info.h` give: EBX = address of the start info,
//! flat segments, interrupts off. Page tables map the first 4 GiB one to one
//! with 2 MiB pages; the last GiB, where the local APIC lies, is uncached.

#![expect(unsafe_code, reason = "the entry is assembly")]

use core::arch::global_asm;

/// Selector of the 64-bit code segment in every descriptor table used here.
pub const CODE64: u16 = 0x08;
/// Selector of the flat data segment.
pub const DATA: u16 = 0x10;
/// Selector of the task state segment (only in the per-CPU tables).
pub const TSS: u16 = 0x20;

/// The first four descriptors: null, 64-bit code, data, 32-bit code. Accessed
/// bits are set, so that the CPU never writes to a table in read-only memory.
pub const DESCRIPTORS: [u64; 4] =
    [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_9b00_0000_ffff];

// SAFETY: bytes that the assembly below defines and nothing writes.
unsafe extern "C" {
    /// First byte of the secondary CPUs' real-mode code; position independent.
    pub safe static ap_trampoline: u8;
    /// End of that code.
    pub safe static ap_trampoline_end: u8;
    /// Where a secondary CPU enters in 32-bit mode with flat segments, no paging.
    pub safe static ap_enter32: u8;
    /// Where one enters in 64-bit mode with its stack and our page tables.
    pub safe static ap_enter64: u8;
}

global_asm!(
    r#"
    .section .note.Xen, "a", @note
    .p2align 2
    .long 4                     /* length of the name */
    .long 8                     /* length of the value */
    .long 18                    /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad pvh_start

    .section .text.pvh, "ax"
    .code32
    .global pvh_start
pvh_start:
    cld
    cli
    mov esi, ebx
    /* A loader must zero what the file leaves out; do not depend on it. */
    mov edi, offset __bss_start
    mov ecx, offset __bss_end
    sub ecx, edi
    shr ecx, 2
    xor eax, eax
    rep stosd
    mov esp, offset {boot_stack} + {boot_stack_size}
    lgdt [boot_gdt_pointer]

    mov eax, offset boot_pdpt + 3
    mov [boot_pml4], eax
    mov edi, offset boot_pdpt
    mov eax, offset boot_pd + 3
    mov ecx, 4
2:  mov [edi], eax
    add eax, 4096
    add edi, 8
    loop 2b

    mov edi, offset boot_pd
    mov eax, 0x83               /* present, writable, 2 MiB */
    mov ecx, 2048
3:  mov [edi], eax
    cmp eax, 0xc0000000
    jb 4f
    or dword ptr [edi], 0x18    /* uncached */
4:  add eax, 0x200000
    add edi, 8
    loop 3b

    xor edi, edi                /* the boot CPU */
    jmp enter_long_mode

    .global ap_enter32
ap_enter32:
    lgdt [boot_gdt_pointer]
    .byte 0xea                  /* far jump, 32-bit offset */
    .long ap_start32
    .word 0x18

    /* A secondary CPU, still with flat 32-bit segments to load. */
ap_start32:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, [{ap_stack}]
    mov edi, 1

enter_long_mode:
    mov eax, cr4
    or eax, 0x620               /* PAE, OSFXSR, OSXMMEXCPT */
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov ecx, 0xc0000080         /* EFER */
    rdmsr
    or eax, 0x100               /* LME */
    wrmsr
    mov eax, cr0
    and eax, 0x9ffffff3         /* not CD, NW, TS, EM */
    or eax, 0x80000003          /* PG, MP, PE */
    mov cr0, eax
    .byte 0xea                  /* far jump, 32-bit offset */
    .long long_mode
    .word 0x08

    .code64
long_mode:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    and rsp, -16
    xor ebp, ebp
    test edi, edi
    jnz 5f
    mov edi, esi
    call {bsp_main}
    ud2
5:  call {ap_main}
    ud2

    /* Its hidden code segment has no descriptor until this: an interrupt could
     * not return. */
    .global ap_enter64
ap_enter64:
    lgdt [rip + boot_gdt_pointer64]
    push 0x08
    lea rax, [rip + 6f]
    push rax
    .byte 0x48, 0xcb            /* far return, 64-bit */
6:  mov edi, 1
    jmp long_mode

    .section .rodata.pvh, "a"
    .p2align 4
    /* Copied to a page below 1 MiB; runs there with CS = page >> 4, IP = 0. */
    .code16
    .global ap_trampoline
ap_trampoline:
    cli
    cld
    mov ax, cs
    mov ds, ax
    .byte 0x66, 0x0f, 0x01, 0x16            /* lgdt with a 32-bit base */
    .word ap_gdt_pointer - ap_trampoline
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea                        /* far jump, 32-bit offset */
    .long ap_start32
    .word 0x18
    .p2align 2
ap_gdt_pointer:
    .word 31
    .long boot_gdt
    .global ap_trampoline_end
ap_trampoline_end:
    .code64

    .p2align 3
boot_gdt:
    .quad {gdt0}, {gdt1}, {gdt2}, {gdt3}
boot_gdt_pointer:
    .word 31
    .long boot_gdt
    .p2align 3
boot_gdt_pointer64:
    .word 31
    .quad boot_gdt

    .section .bss.pvh, "aw", @nobits
    .p2align 12
boot_pml4:
    .skip 4096
boot_pdpt:
    .skip 4096
boot_pd:
    .skip 16384
    "#,
    boot_stack = sym crate::smp::BOOT_STACK,
    boot_stack_size = const crate::smp::STACK_BYTES,
    ap_stack = sym crate::smp::AP_STACK_TOP,
    bsp_main = sym crate::rt::bsp_main,
    ap_main = sym crate::smp::ap_main,
    gdt0 = const DESCRIPTORS[0],
    gdt1 = const DESCRIPTORS[1],
    gdt2 = const DESCRIPTORS[2],
    gdt3 = const DESCRIPTORS[3],
);
