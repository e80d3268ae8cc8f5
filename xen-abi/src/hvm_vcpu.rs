//! The state in which `VCPUOP_INITIALISE` starts a vCPU of an HVM guest (`hvm/hvm_vcpu.h`).

numbers! {
    u32, Both {
        VCPU_HVM_MODE_32B = 0 => "VCPU_HVM_MODE_32B",
        VCPU_HVM_MODE_64B = 1 => "VCPU_HVM_MODE_64B",
    }
}

structs! {
    /// Start in 32-bit or compatibility mode. `*_ar` are segment attributes: descriptor bits 40-47
    /// in bits 0-7, bits 52-55 in bits 8-11.
    VcpuHvmX86_32, "struct vcpu_hvm_x86_32", Both, 120 {
        eax: u32 = 0,
        ecx: u32 = 4,
        edx: u32 = 8,
        ebx: u32 = 12,
        esp: u32 = 16,
        ebp: u32 = 20,
        esi: u32 = 24,
        edi: u32 = 28,
        eip: u32 = 32,
        eflags: u32 = 36,
        cr0: u32 = 40,
        cr3: u32 = 44,
        cr4: u32 = 48,
        pad1: u32 = 52,
        efer: u64 = 56,
        cs_base: u32 = 64,
        ds_base: u32 = 68,
        ss_base: u32 = 72,
        es_base: u32 = 76,
        tr_base: u32 = 80,
        cs_limit: u32 = 84,
        ds_limit: u32 = 88,
        ss_limit: u32 = 92,
        es_limit: u32 = 96,
        tr_limit: u32 = 100,
        cs_ar: u16 = 104,
        ds_ar: u16 = 106,
        ss_ar: u16 = 108,
        es_ar: u16 = 110,
        tr_ar: u16 = 112,
        pad2: [u16; 3] = 114,
    }
    /// Start in long mode with flat segments.
    VcpuHvmX86_64, "struct vcpu_hvm_x86_64", Both, 112 {
        rax: u64 = 0,
        rcx: u64 = 8,
        rdx: u64 = 16,
        rbx: u64 = 24,
        rsp: u64 = 32,
        rbp: u64 = 40,
        rsi: u64 = 48,
        rdi: u64 = 56,
        rip: u64 = 64,
        rflags: u64 = 72,
        cr0: u64 = 80,
        cr3: u64 = 88,
        cr4: u64 = 96,
        efer: u64 = 104,
    }
    /// The argument of `VCPUOP_INITIALISE`.
    VcpuHvmContext, "struct vcpu_hvm_context", Both, 128 {
        /// `VCPU_HVM_MODE_*`.
        mode: u32 = 0,
        pad: u32 = 4,
        /// The bytes of a [`VcpuHvmX86_32`], or of a [`VcpuHvmX86_64`] and 8 more.
        cpu_regs: [u8; 120] = 8,
    }
}

module!("hvm_vcpu", "hvm/hvm_vcpu.h");
