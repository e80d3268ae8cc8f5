//! Physical devices and interrupts (`physdev.h`).

numbers! {
    u32, Both {
        PHYSDEVOP_IRQ_UNMASK_NOTIFY = 4 => "PHYSDEVOP_IRQ_UNMASK_NOTIFY",
        PHYSDEVOP_IRQ_STATUS_QUERY = 5 => "PHYSDEVOP_irq_status_query",
        PHYSDEVOP_SET_IOPL = 6 => "PHYSDEVOP_set_iopl",
        PHYSDEVOP_SET_IOBITMAP = 7 => "PHYSDEVOP_set_iobitmap",
        PHYSDEVOP_APIC_READ = 8 => "PHYSDEVOP_apic_read",
        PHYSDEVOP_APIC_WRITE = 9 => "PHYSDEVOP_apic_write",
        PHYSDEVOP_ALLOC_IRQ_VECTOR = 10 => "PHYSDEVOP_alloc_irq_vector",
        PHYSDEVOP_FREE_IRQ_VECTOR = 11 => "PHYSDEVOP_free_irq_vector",
        PHYSDEVOP_EOI = 12 => "PHYSDEVOP_eoi",
        PHYSDEVOP_MAP_PIRQ = 13 => "PHYSDEVOP_map_pirq",
        PHYSDEVOP_UNMAP_PIRQ = 14 => "PHYSDEVOP_unmap_pirq",
        PHYSDEVOP_MANAGE_PCI_ADD = 15 => "PHYSDEVOP_manage_pci_add",
        PHYSDEVOP_MANAGE_PCI_REMOVE = 16 => "PHYSDEVOP_manage_pci_remove",
        PHYSDEVOP_PIRQ_EOI_GMFN_V1 = 17 => "PHYSDEVOP_pirq_eoi_gmfn_v1",
        PHYSDEVOP_RESTORE_MSI = 19 => "PHYSDEVOP_restore_msi",
        PHYSDEVOP_MANAGE_PCI_ADD_EXT = 20 => "PHYSDEVOP_manage_pci_add_ext",
        PHYSDEVOP_SETUP_GSI = 21 => "PHYSDEVOP_setup_gsi",
        PHYSDEVOP_GET_FREE_PIRQ = 23 => "PHYSDEVOP_get_free_pirq",
        PHYSDEVOP_PCI_MMCFG_RESERVED = 24 => "PHYSDEVOP_pci_mmcfg_reserved",
        PHYSDEVOP_PCI_DEVICE_ADD = 25 => "PHYSDEVOP_pci_device_add",
        PHYSDEVOP_PCI_DEVICE_REMOVE = 26 => "PHYSDEVOP_pci_device_remove",
        PHYSDEVOP_RESTORE_MSI_EXT = 27 => "PHYSDEVOP_restore_msi_ext",
        PHYSDEVOP_PIRQ_EOI_GMFN_V2 = 28 => "PHYSDEVOP_pirq_eoi_gmfn_v2",
        /// The meaning of the plain name since Xen 4.2.
        PHYSDEVOP_PIRQ_EOI_GMFN = 28 => "PHYSDEVOP_pirq_eoi_gmfn",
        PHYSDEVOP_DBGP_OP = 29 => "PHYSDEVOP_dbgp_op",
        PHYSDEVOP_PREPARE_MSIX = 30 => "PHYSDEVOP_prepare_msix",
        PHYSDEVOP_RELEASE_MSIX = 31 => "PHYSDEVOP_release_msix",

        XENIRQSTAT_NEEDS_EOI = 1 << 0 => "XENIRQSTAT_needs_eoi",
        XENIRQSTAT_SHARED = 1 << 1 => "XENIRQSTAT_shared",

        XEN_PCI_MMCFG_RESERVED = 1 => "XEN_PCI_MMCFG_RESERVED",
        XEN_PCI_DEV_EXTFN = 1 => "XEN_PCI_DEV_EXTFN",
        XEN_PCI_DEV_VIRTFN = 2 => "XEN_PCI_DEV_VIRTFN",
        XEN_PCI_DEV_PXM = 4 => "XEN_PCI_DEV_PXM",
    }
    i32, Both {
        MAP_PIRQ_TYPE_MSI = 0 => "MAP_PIRQ_TYPE_MSI",
        MAP_PIRQ_TYPE_GSI = 1 => "MAP_PIRQ_TYPE_GSI",
        MAP_PIRQ_TYPE_UNKNOWN = 2 => "MAP_PIRQ_TYPE_UNKNOWN",
        MAP_PIRQ_TYPE_MSI_SEG = 3 => "MAP_PIRQ_TYPE_MSI_SEG",
        MAP_PIRQ_TYPE_MULTI_MSI = 4 => "MAP_PIRQ_TYPE_MULTI_MSI",
    }
    u8, Both {
        PHYSDEVOP_DBGP_RESET_PREPARE = 1 => "PHYSDEVOP_DBGP_RESET_PREPARE",
        PHYSDEVOP_DBGP_RESET_DONE = 2 => "PHYSDEVOP_DBGP_RESET_DONE",
        PHYSDEVOP_DBGP_BUS_UNKNOWN = 0 => "PHYSDEVOP_DBGP_BUS_UNKNOWN",
        PHYSDEVOP_DBGP_BUS_PCI = 1 => "PHYSDEVOP_DBGP_BUS_PCI",
    }
}

structs! {
    /// `PHYSDEVOP_EOI`.
    PhysdevEoi, "struct physdev_eoi", Both, 4 {
        irq: u32 = 0,
    }
    /// `PHYSDEVOP_PIRQ_EOI_GMFN_V1` and `_V2`.
    PhysdevPirqEoiGmfn, "struct physdev_pirq_eoi_gmfn", Only64, 8 {
        gmfn: u64 = 0,
    }
    /// [`PhysdevPirqEoiGmfn`] of a 32-bit guest.
    PhysdevPirqEoiGmfn32, "struct physdev_pirq_eoi_gmfn", Only32, 4 {
        gmfn: u32 = 0,
    }
    /// `PHYSDEVOP_IRQ_STATUS_QUERY`: `flags` out.
    PhysdevIrqStatusQuery, "struct physdev_irq_status_query", Both, 8 {
        irq: u32 = 0,
        /// `XENIRQSTAT_*`.
        flags: u32 = 4,
    }
    /// `PHYSDEVOP_SET_IOPL`.
    PhysdevSetIopl, "struct physdev_set_iopl", Both, 4 {
        iopl: u32 = 0,
    }
    /// `PHYSDEVOP_SET_IOBITMAP`.
    PhysdevSetIobitmap, "struct physdev_set_iobitmap", Only64, 16 {
        bitmap: u64 = 0,
        nr_ports: u32 = 8,
        _pad: [u8; 4] = 12,
    }
    /// [`PhysdevSetIobitmap`] of a 32-bit guest.
    PhysdevSetIobitmap32, "struct physdev_set_iobitmap", Only32, 8 {
        bitmap: u32 = 0,
        nr_ports: u32 = 4,
    }
    /// `PHYSDEVOP_APIC_READ` and `PHYSDEVOP_APIC_WRITE`.
    PhysdevApic, "struct physdev_apic", Only64, 16 {
        apic_physbase: u64 = 0,
        reg: u32 = 8,
        value: u32 = 12,
    }
    /// [`PhysdevApic`] of a 32-bit guest.
    PhysdevApic32, "struct physdev_apic", Only32, 12 {
        apic_physbase: u32 = 0,
        reg: u32 = 4,
        value: u32 = 8,
    }
    /// `PHYSDEVOP_ALLOC_IRQ_VECTOR` and `PHYSDEVOP_FREE_IRQ_VECTOR`.
    PhysdevIrq, "struct physdev_irq", Both, 8 {
        irq: u32 = 0,
        vector: u32 = 4,
    }
    /// `PHYSDEVOP_MAP_PIRQ`: `pirq` in (negative: any) and out.
    PhysdevMapPirq, "struct physdev_map_pirq", Only64, 40 {
        domid: u16 = 0,
        _pad: [u8; 2] = 2,
        /// `MAP_PIRQ_TYPE_*`.
        type_: i32 = 4 "type",
        index: i32 = 8,
        pirq: i32 = 12,
        /// Segment in the high 16 bits for `MAP_PIRQ_TYPE_MSI_SEG` and `…_MULTI_MSI`.
        bus: i32 = 16,
        devfn: i32 = 20,
        entry_nr: i32 = 24,
        _pad1: [u8; 4] = 28,
        table_base: u64 = 32,
    }
    /// [`PhysdevMapPirq`] of a 32-bit guest.
    #[repr(packed(4))]
    PhysdevMapPirq32, "struct physdev_map_pirq", Only32, 36 {
        domid: u16 = 0,
        _pad: [u8; 2] = 2,
        type_: i32 = 4 "type",
        index: i32 = 8,
        pirq: i32 = 12,
        bus: i32 = 16,
        devfn: i32 = 20,
        entry_nr: i32 = 24,
        table_base: u64 = 28,
    }
    /// `PHYSDEVOP_UNMAP_PIRQ`.
    PhysdevUnmapPirq, "struct physdev_unmap_pirq", Both, 8 {
        domid: u16 = 0,
        _pad: [u8; 2] = 2,
        pirq: i32 = 4,
    }
    /// `PHYSDEVOP_MANAGE_PCI_ADD` and `PHYSDEVOP_MANAGE_PCI_REMOVE`.
    PhysdevManagePci, "struct physdev_manage_pci", Both, 2 {
        bus: u8 = 0,
        devfn: u8 = 1,
    }
    /// `PHYSDEVOP_RESTORE_MSI`.
    PhysdevRestoreMsi, "struct physdev_restore_msi", Both, 2 {
        bus: u8 = 0,
        devfn: u8 = 1,
    }
    /// `PHYSDEVOP_MANAGE_PCI_ADD_EXT`.
    PhysdevManagePciExt, "struct physdev_manage_pci_ext", Both, 16 {
        bus: u8 = 0,
        devfn: u8 = 1,
        _pad: [u8; 2] = 2,
        is_extfn: u32 = 4,
        is_virtfn: u32 = 8,
        physfn_bus: u8 = 12 "physfn.bus",
        physfn_devfn: u8 = 13 "physfn.devfn",
        _pad1: [u8; 2] = 14,
    }
    /// Argument of the old hypercall `HYPERVISOR_PHYSDEV_OP_COMPAT`.
    PhysdevOp, "struct physdev_op", Only64, 24 {
        cmd: u32 = 0,
        _pad: [u8; 4] = 4,
        /// The bytes of the operation's own structure.
        u: [u8; 16] = 8,
    }
    /// [`PhysdevOp`] of a 32-bit guest.
    PhysdevOp32, "struct physdev_op", Only32, 16 {
        cmd: u32 = 0,
        u: [u8; 12] = 4,
    }
    /// `PHYSDEVOP_SETUP_GSI`.
    PhysdevSetupGsi, "struct physdev_setup_gsi", Both, 8 {
        gsi: i32 = 0,
        triggering: u8 = 4,
        polarity: u8 = 5,
        _pad: [u8; 2] = 6,
    }
    /// `PHYSDEVOP_GET_FREE_PIRQ`: `pirq` out.
    PhysdevGetFreePirq, "struct physdev_get_free_pirq", Both, 8 {
        /// `MAP_PIRQ_TYPE_*`.
        type_: i32 = 0 "type",
        pirq: u32 = 4,
    }
    /// `PHYSDEVOP_PCI_MMCFG_RESERVED`.
    PhysdevPciMmcfgReserved, "struct physdev_pci_mmcfg_reserved", Both, 16 {
        address: u64 = 0,
        segment: u16 = 8,
        start_bus: u8 = 10,
        end_bus: u8 = 11,
        flags: u32 = 12,
    }
    /// `PHYSDEVOP_PCI_DEVICE_ADD`; optional words follow (`XEN_PCI_DEV_PXM`).
    PhysdevPciDeviceAdd, "struct physdev_pci_device_add", Both, 12 {
        seg: u16 = 0,
        bus: u8 = 2,
        devfn: u8 = 3,
        flags: u32 = 4,
        physfn_bus: u8 = 8 "physfn.bus",
        physfn_devfn: u8 = 9 "physfn.devfn",
        _pad: [u8; 2] = 10,
    }
    /// A PCI function.
    PhysdevPciDevice, "struct physdev_pci_device", Both, 4 {
        seg: u16 = 0,
        bus: u8 = 2,
        devfn: u8 = 3,
    }
    /// `PHYSDEVOP_DBGP_OP`.
    PhysdevDbgpOp, "struct physdev_dbgp_op", Both, 6 {
        op: u8 = 0,
        bus: u8 = 1,
        pci: PhysdevPciDevice = 2 "u.pci",
    }
}

module!("physdev", "physdev.h");
