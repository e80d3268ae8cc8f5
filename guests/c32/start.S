/* PVH entry, secondary CPUs' start, interrupt stubs. 32-bit protected mode
 * throughout; paging is switched on later, by C. */
#define NOTE_PHYS32_ENTRY 18
#define CODE 0x08
#define DATA 0x10

        .section .note.Xen, "a", @note
        .p2align 2
        .long 4, 4, NOTE_PHYS32_ENTRY
        .asciz "Xen"
        .long start

        .section .text.start, "ax"
        .code32
        .global start
start:
        cli
        cld
        mov %ebx, %esi
        mov $bss_start, %edi
        mov $bss_end, %ecx
        sub %edi, %ecx
        shr $2, %ecx
        xor %eax, %eax
        rep stosl
        mov $stacks + 16384, %esp
        lgdt gdt_pointer
        ljmp $CODE, $1f
1:      mov $DATA, %eax
        mov %eax, %ds
        mov %eax, %es
        mov %eax, %ss
        xor %eax, %eax
        mov %eax, %fs
        mov %eax, %gs
        push %esi
        call boot_main
        ud2

ap_start32:
        mov $DATA, %eax
        mov %eax, %ds
        mov %eax, %es
        mov %eax, %ss
        mov $stacks + 2 * 16384, %esp
        call ap_main
        ud2

        /* Copied to a page below 1 MiB; runs there in real mode with IP = 0. */
        .code16
        .global ap_trampoline, ap_trampoline_end
ap_trampoline:
        cli
        cld
        mov %cs, %ax
        mov %ax, %ds
        lgdtl ap_gdt_pointer - ap_trampoline
        mov %cr0, %eax
        or $1, %al
        mov %eax, %cr0
        ljmpl $CODE, $ap_start32
        .p2align 2
ap_gdt_pointer:
        .word 23
        .long gdt
ap_trampoline_end:
        .code32

/* One stub per vector: error code (or 0), vector, then the common part. */
        .macro stub vector
        .p2align 4
        .if (\vector == 8) || (\vector >= 10 && \vector <= 14) || (\vector == 17)
        .else
        push $0
        .endif
        push $\vector
        jmp common
        .endm
        .p2align 4
        .global stubs
stubs:
        .set i, 0
        .rept 256
        stub i
        .set i, i + 1
        .endr
common:
        pusha
        cld
        push %esp
        call interrupt
        add $4, %esp
        popa
        add $8, %esp
        /* IRET within one ring, by instructions that a software KVM knows too:
         * flags and address moved together, then popped. */
        push %eax
        mov 12(%esp), %eax
        xchg 4(%esp), %eax
        mov %eax, 12(%esp)
        mov 4(%esp), %eax
        mov %eax, 8(%esp)
        pop %eax
        add $4, %esp
        popf
        ret

        .section .rodata
        .p2align 3
        .global gdt
gdt:    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
        .word 23
        .long gdt
        .section .note.GNU-stack, "", @progbits
