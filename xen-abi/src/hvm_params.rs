//! Parameters of an HVM guest and the encoding of its event callback (`hvm/params.h`).

numbers! {
    u32, Both {
        /// How events are announced: see [`Callback`].
        HVM_PARAM_CALLBACK_IRQ = 0 => "HVM_PARAM_CALLBACK_IRQ",
        HVM_PARAM_STORE_PFN = 1 => "HVM_PARAM_STORE_PFN",
        HVM_PARAM_STORE_EVTCHN = 2 => "HVM_PARAM_STORE_EVTCHN",
        HVM_PARAM_PAE_ENABLED = 4 => "HVM_PARAM_PAE_ENABLED",
        HVM_PARAM_IOREQ_PFN = 5 => "HVM_PARAM_IOREQ_PFN",
        HVM_PARAM_BUFIOREQ_PFN = 6 => "HVM_PARAM_BUFIOREQ_PFN",
        HVM_PARAM_VIRIDIAN = 9 => "HVM_PARAM_VIRIDIAN",
        HVM_PARAM_TIMER_MODE = 10 => "HVM_PARAM_TIMER_MODE",
        HVM_PARAM_HPET_ENABLED = 11 => "HVM_PARAM_HPET_ENABLED",
        HVM_PARAM_IDENT_PT = 12 => "HVM_PARAM_IDENT_PT",
        HVM_PARAM_DM_DOMAIN = 13 => "HVM_PARAM_DM_DOMAIN",
        HVM_PARAM_ACPI_S_STATE = 14 => "HVM_PARAM_ACPI_S_STATE",
        HVM_PARAM_VM86_TSS = 15 => "HVM_PARAM_VM86_TSS",
        HVM_PARAM_VPT_ALIGN = 16 => "HVM_PARAM_VPT_ALIGN",
        HVM_PARAM_CONSOLE_PFN = 17 => "HVM_PARAM_CONSOLE_PFN",
        HVM_PARAM_CONSOLE_EVTCHN = 18 => "HVM_PARAM_CONSOLE_EVTCHN",
        HVM_PARAM_ACPI_IOPORTS_LOCATION = 19 => "HVM_PARAM_ACPI_IOPORTS_LOCATION",
        HVM_PARAM_MEMORY_EVENT_CR0 = 20 => "HVM_PARAM_MEMORY_EVENT_CR0",
        HVM_PARAM_MEMORY_EVENT_CR3 = 21 => "HVM_PARAM_MEMORY_EVENT_CR3",
        HVM_PARAM_MEMORY_EVENT_CR4 = 22 => "HVM_PARAM_MEMORY_EVENT_CR4",
        HVM_PARAM_MEMORY_EVENT_INT3 = 23 => "HVM_PARAM_MEMORY_EVENT_INT3",
        HVM_PARAM_NESTEDHVM = 24 => "HVM_PARAM_NESTEDHVM",
        HVM_PARAM_MEMORY_EVENT_SINGLE_STEP = 25 => "HVM_PARAM_MEMORY_EVENT_SINGLE_STEP",
        HVM_PARAM_BUFIOREQ_EVTCHN = 26 => "HVM_PARAM_BUFIOREQ_EVTCHN",
        HVM_PARAM_PAGING_RING_PFN = 27 => "HVM_PARAM_PAGING_RING_PFN",
        HVM_PARAM_MONITOR_RING_PFN = 28 => "HVM_PARAM_MONITOR_RING_PFN",
        HVM_PARAM_SHARING_RING_PFN = 29 => "HVM_PARAM_SHARING_RING_PFN",
        HVM_PARAM_MEMORY_EVENT_MSR = 30 => "HVM_PARAM_MEMORY_EVENT_MSR",
        HVM_PARAM_TRIPLE_FAULT_REASON = 31 => "HVM_PARAM_TRIPLE_FAULT_REASON",
        HVM_PARAM_IOREQ_SERVER_PFN = 32 => "HVM_PARAM_IOREQ_SERVER_PFN",
        HVM_PARAM_NR_IOREQ_SERVER_PAGES = 33 => "HVM_PARAM_NR_IOREQ_SERVER_PAGES",
        HVM_PARAM_VM_GENERATION_ID_ADDR = 34 => "HVM_PARAM_VM_GENERATION_ID_ADDR",
        HVM_PARAM_ALTP2M = 35 => "HVM_PARAM_ALTP2M",
        HVM_PARAM_X87_FIP_WIDTH = 36 => "HVM_PARAM_X87_FIP_WIDTH",
        HVM_PARAM_VM86_TSS_SIZED = 37 => "HVM_PARAM_VM86_TSS_SIZED",
        HVM_PARAM_MCA_CAP = 38 => "HVM_PARAM_MCA_CAP",
        HVM_NR_PARAMS = 39 => "HVM_NR_PARAMS",
    }
    u64, Both {
        HVM_PARAM_CALLBACK_IRQ_TYPE_MASK = 0xff00_0000_0000_0000 => "HVM_PARAM_CALLBACK_IRQ_TYPE_MASK",
        HVM_PARAM_CALLBACK_TYPE_GSI = 0 => "HVM_PARAM_CALLBACK_TYPE_GSI",
        HVM_PARAM_CALLBACK_TYPE_PCI_INTX = 1 => "HVM_PARAM_CALLBACK_TYPE_PCI_INTX",
        HVM_PARAM_CALLBACK_TYPE_VECTOR = 2 => "HVM_PARAM_CALLBACK_TYPE_VECTOR",

        HVMPV_BASE_FREQ = 1 << 0 => "HVMPV_base_freq",
        HVMPV_NO_FREQ = 1 << 1 => "HVMPV_no_freq",
        HVMPV_TIME_REF_COUNT = 1 << 2 => "HVMPV_time_ref_count",
        HVMPV_REFERENCE_TSC = 1 << 3 => "HVMPV_reference_tsc",
        HVMPV_HCALL_REMOTE_TLB_FLUSH = 1 << 4 => "HVMPV_hcall_remote_tlb_flush",
        HVMPV_APIC_ASSIST = 1 << 5 => "HVMPV_apic_assist",
        HVMPV_CRASH_CTL = 1 << 6 => "HVMPV_crash_ctl",
        HVMPV_SYNIC = 1 << 7 => "HVMPV_synic",
        HVMPV_STIMER = 1 << 8 => "HVMPV_stimer",
        HVMPV_HCALL_IPI = 1 << 9 => "HVMPV_hcall_ipi",
        HVMPV_EX_PROCESSOR_MASKS = 1 << 10 => "HVMPV_ex_processor_masks",
        HVMPV_NO_VP_LIMIT = 1 << 11 => "HVMPV_no_vp_limit",
        HVMPV_CPU_HOTPLUG = 1 << 12 => "HVMPV_cpu_hotplug",
        HVMPV_FEATURE_MASK = 0x1fff => "HVMPV_feature_mask",

        HVMPTM_DELAY_FOR_MISSED_TICKS = 0 => "HVMPTM_delay_for_missed_ticks",
        HVMPTM_NO_DELAY_FOR_MISSED_TICKS = 1 => "HVMPTM_no_delay_for_missed_ticks",
        HVMPTM_NO_MISSED_TICKS_PENDING = 2 => "HVMPTM_no_missed_ticks_pending",
        HVMPTM_ONE_MISSED_TICK_PENDING = 3 => "HVMPTM_one_missed_tick_pending",

        XEN_ALTP2M_DISABLED = 0 => "XEN_ALTP2M_disabled",
        XEN_ALTP2M_MIXED = 1 => "XEN_ALTP2M_mixed",
        XEN_ALTP2M_EXTERNAL = 2 => "XEN_ALTP2M_external",
        XEN_ALTP2M_LIMITED = 3 => "XEN_ALTP2M_limited",

        XEN_HVM_MCA_CAP_LMCE = 1 => "XEN_HVM_MCA_CAP_LMCE",
        XEN_HVM_MCA_CAP_MASK = 1 => "XEN_HVM_MCA_CAP_MASK",
    }
}

/// Bit of the type in the value of `HVM_PARAM_CALLBACK_IRQ`.
const TYPE_SHIFT: u32 = 56;
/// Bits of the value below the type.
const DATA_MASK: u64 = !HVM_PARAM_CALLBACK_IRQ_TYPE_MASK;

/// The value of `HVM_PARAM_CALLBACK_IRQ`, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callback {
    /// Events are not announced (value 0).
    None,
    /// A global system interrupt, below 2^56 and not 0.
    Gsi(u64),
    /// A legacy PCI interrupt.
    PciIntx {
        /// PCI segment.
        domain: u16,
        /// Bus; wider here than on PCI.
        bus: u16,
        /// Device in bits 7:3, function in bits 2:0.
        devfn: u8,
        /// 0 is INTA, 3 is INTD.
        intx: u8,
    },
    /// A vector of the local APIC, on every vCPU.
    Vector(u8),
    /// A value that this crate does not know.
    Unknown(u64),
}

impl Callback {
    /// Takes a parameter's value apart. Bits that its type does not use are ignored, as Xen does.
    #[must_use]
    pub fn from_param(value: u64) -> Self {
        if value == 0 {
            return Self::None;
        }
        let [b0, b1, b2, b3, b4, b5, ..] = value.to_le_bytes();
        match value >> TYPE_SHIFT {
            HVM_PARAM_CALLBACK_TYPE_GSI => Self::Gsi(value & DATA_MASK),
            HVM_PARAM_CALLBACK_TYPE_PCI_INTX => Self::PciIntx {
                domain: u16::from_le_bytes([b4, b5]),
                bus: u16::from_le_bytes([b2, b3]),
                devfn: b1,
                intx: b0 & 3,
            },
            HVM_PARAM_CALLBACK_TYPE_VECTOR => Self::Vector(b0),
            _ => Self::Unknown(value),
        }
    }

    /// The value that a guest sets. A GSI loses its bits above 56, an INTx those above 2.
    #[must_use]
    pub fn to_param(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Gsi(gsi) => (HVM_PARAM_CALLBACK_TYPE_GSI << TYPE_SHIFT) | (gsi & DATA_MASK),
            Self::PciIntx { domain, bus, devfn, intx } => {
                (HVM_PARAM_CALLBACK_TYPE_PCI_INTX << TYPE_SHIFT)
                    | (u64::from(domain) << 32)
                    | (u64::from(bus) << 16)
                    | (u64::from(devfn) << 8)
                    | u64::from(intx & 3)
            }
            Self::Vector(vector) => {
                (HVM_PARAM_CALLBACK_TYPE_VECTOR << TYPE_SHIFT) | u64::from(vector)
            }
            Self::Unknown(value) => value,
        }
    }
}

const STRUCTS: &[crate::layout::StructLayout] = &[];
module!("hvm_params", "hvm/params.h");

#[cfg(test)]
mod tests {
    use super::Callback;

    #[test]
    fn callback_values_round_trip() {
        let cases = [
            (0, Callback::None),
            (9, Callback::Gsi(9)),
            (0x00ff_ffff_ffff_ffff, Callback::Gsi(0x00ff_ffff_ffff_ffff)),
            (
                0x0100_0102_0304_1803,
                Callback::PciIntx { domain: 0x102, bus: 0x304, devfn: 0x18, intx: 3 },
            ),
            (0x0200_0000_0000_00f3, Callback::Vector(0xf3)),
            (0x0300_0000_0000_0001, Callback::Unknown(0x0300_0000_0000_0001)),
            (u64::MAX, Callback::Unknown(u64::MAX)),
        ];
        for (value, callback) in cases {
            assert_eq!(Callback::from_param(value), callback, "{value:#x}");
            assert_eq!(callback.to_param(), value, "{callback:?}");
        }
        // Bits that the type does not use are no reason to refuse.
        assert_eq!(Callback::from_param(0x0200_0000_dead_bef3), Callback::Vector(0xf3));
    }
}
