//! Operations on the guest's physical memory (`memory.h`).
//!
//! The upper bits of the command carry Xen's continuation, bits 5:0 the operation.

numbers! {
    u32, Both {
        XENMEM_INCREASE_RESERVATION = 0 => "XENMEM_increase_reservation",
        XENMEM_DECREASE_RESERVATION = 1 => "XENMEM_decrease_reservation",
        XENMEM_MAXIMUM_RAM_PAGE = 2 => "XENMEM_maximum_ram_page",
        XENMEM_CURRENT_RESERVATION = 3 => "XENMEM_current_reservation",
        XENMEM_MAXIMUM_RESERVATION = 4 => "XENMEM_maximum_reservation",
        XENMEM_MACHPHYS_MFN_LIST = 5 => "XENMEM_machphys_mfn_list",
        XENMEM_POPULATE_PHYSMAP = 6 => "XENMEM_populate_physmap",
        XENMEM_ADD_TO_PHYSMAP = 7 => "XENMEM_add_to_physmap",
        XENMEM_MEMORY_MAP = 9 => "XENMEM_memory_map",
        XENMEM_MACHINE_MEMORY_MAP = 10 => "XENMEM_machine_memory_map",
        XENMEM_EXCHANGE = 11 => "XENMEM_exchange",
        XENMEM_MACHPHYS_MAPPING = 12 => "XENMEM_machphys_mapping",
        XENMEM_SET_MEMORY_MAP = 13 => "XENMEM_set_memory_map",
        XENMEM_MAXIMUM_GPFN = 14 => "XENMEM_maximum_gpfn",
        XENMEM_REMOVE_FROM_PHYSMAP = 15 => "XENMEM_remove_from_physmap",
        XENMEM_SET_POD_TARGET = 16 => "XENMEM_set_pod_target",
        XENMEM_GET_POD_TARGET = 17 => "XENMEM_get_pod_target",
        XENMEM_GET_SHARING_FREED_PAGES = 18 => "XENMEM_get_sharing_freed_pages",
        XENMEM_GET_SHARING_SHARED_PAGES = 19 => "XENMEM_get_sharing_shared_pages",
        XENMEM_PAGING_OP = 20 => "XENMEM_paging_op",
        XENMEM_ACCESS_OP = 21 => "XENMEM_access_op",
        XENMEM_SHARING_OP = 22 => "XENMEM_sharing_op",
        XENMEM_ADD_TO_PHYSMAP_BATCH = 23 => "XENMEM_add_to_physmap_batch",
        XENMEM_CLAIM_PAGES = 24 => "XENMEM_claim_pages",
        XENMEM_MACHPHYS_COMPAT_MFN_LIST = 25 => "XENMEM_machphys_compat_mfn_list",
        XENMEM_GET_VNUMAINFO = 26 => "XENMEM_get_vnumainfo",
        XENMEM_RESERVED_DEVICE_MEMORY_MAP = 27 => "XENMEM_reserved_device_memory_map",
        XENMEM_ACQUIRE_RESOURCE = 28 => "XENMEM_acquire_resource",

        XENMEMF_POPULATE_ON_DEMAND = 1 << 16 => "XENMEMF_populate_on_demand",
        XENMEMF_EXACT_NODE_REQUEST = 1 << 17 => "XENMEMF_exact_node_request",
        XENMEMF_VNODE = 1 << 18 => "XENMEMF_vnode",

        XENMAPSPACE_SHARED_INFO = 0 => "XENMAPSPACE_shared_info",
        XENMAPSPACE_GRANT_TABLE = 1 => "XENMAPSPACE_grant_table",
        XENMAPSPACE_GMFN = 2 => "XENMAPSPACE_gmfn",
        XENMAPSPACE_GMFN_RANGE = 3 => "XENMAPSPACE_gmfn_range",
        XENMAPSPACE_GMFN_FOREIGN = 4 => "XENMAPSPACE_gmfn_foreign",
        XENMAPSPACE_DEV_MMIO = 5 => "XENMAPSPACE_dev_mmio",

        XENMEM_RDM_ALL = 1 => "XENMEM_RDM_ALL",
        XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED = 0 => "XENMEM_resource_grant_table_id_shared",
        XENMEM_RESOURCE_GRANT_TABLE_ID_STATUS = 1 => "XENMEM_resource_grant_table_id_status",
    }
    u16, Both {
        XENMEM_RESOURCE_IOREQ_SERVER = 0 => "XENMEM_resource_ioreq_server",
        XENMEM_RESOURCE_GRANT_TABLE = 1 => "XENMEM_resource_grant_table",
        XENMEM_RESOURCE_VMTRACE_BUF = 2 => "XENMEM_resource_vmtrace_buf",
    }
    u64, Both {
        /// The buffered ring; the synchronous one of page `n` is frame `1 + n`.
        XENMEM_RESOURCE_IOREQ_SERVER_FRAME_BUFIOREQ = 0 => "XENMEM_resource_ioreq_server_frame_bufioreq",
        /// In `idx` with `XENMAPSPACE_GRANT_TABLE`: a status frame.
        XENMAPIDX_GRANT_TABLE_STATUS = 0x8000_0000 => "XENMAPIDX_grant_table_status",
    }
    // From the E820 interface that `XENMEM_memory_map` answers in.
    u32, Unlisted {
        E820_RAM = 1 => "E820_RAM",
        E820_RESERVED = 2 => "E820_RESERVED",
        E820_ACPI = 3 => "E820_ACPI",
        E820_NVS = 4 => "E820_NVS",
        E820_UNUSABLE = 5 => "E820_UNUSABLE",
    }
}

structs! {
    /// Increase, decrease and populate.
    MemoryReservation, "struct xen_memory_reservation", Only64, 32 {
        /// Address of `nr_extents` frame numbers.
        extent_start: u64 = 0,
        nr_extents: u64 = 8,
        /// Each extent has 2^`extent_order` pages.
        extent_order: u32 = 16,
        /// `XENMEMF_*`; bits 7:0 limit the address bits.
        mem_flags: u32 = 20,
        domid: u16 = 24,
        _pad: [u8; 6] = 26,
    }
    /// [`MemoryReservation`] of a 32-bit guest.
    MemoryReservation32, "struct xen_memory_reservation", Only32, 20 {
        extent_start: u32 = 0,
        nr_extents: u32 = 4,
        extent_order: u32 = 8,
        mem_flags: u32 = 12,
        domid: u16 = 16,
        _pad: [u8; 2] = 18,
    }
    /// `XENMEM_EXCHANGE`: `nr_exchanged` in and out.
    MemoryExchange, "struct xen_memory_exchange", Only64, 72 {
        in_: MemoryReservation = 0 "in",
        out: MemoryReservation = 32,
        nr_exchanged: u64 = 64,
    }
    /// [`MemoryExchange`] of a 32-bit guest.
    MemoryExchange32, "struct xen_memory_exchange", Only32, 44 {
        in_: MemoryReservation32 = 0 "in",
        out: MemoryReservation32 = 20,
        nr_exchanged: u32 = 40,
    }
    /// Current and maximum reservation, maximum frame number.
    MemoryDomain, "struct xen_memory_domain", Both, 2 {
        domid: u16 = 0,
    }
    /// `XENMEM_MACHPHYS_MFN_LIST`.
    MachphysMfnList, "struct xen_machphys_mfn_list", Only64, 24 {
        max_extents: u32 = 0,
        _pad: [u8; 4] = 4,
        extent_start: u64 = 8,
        nr_extents: u32 = 16,
        _pad1: [u8; 4] = 20,
    }
    /// [`MachphysMfnList`] of a 32-bit guest.
    MachphysMfnList32, "struct xen_machphys_mfn_list", Only32, 12 {
        max_extents: u32 = 0,
        extent_start: u32 = 4,
        nr_extents: u32 = 8,
    }
    /// `XENMEM_MACHPHYS_MAPPING`.
    MachphysMapping, "struct xen_machphys_mapping", Only64, 24 {
        v_start: u64 = 0,
        v_end: u64 = 8,
        max_mfn: u64 = 16,
    }
    /// [`MachphysMapping`] of a 32-bit guest.
    MachphysMapping32, "struct xen_machphys_mapping", Only32, 12 {
        v_start: u32 = 0,
        v_end: u32 = 4,
        max_mfn: u32 = 8,
    }
    /// `XENMEM_ADD_TO_PHYSMAP`.
    AddToPhysmap, "struct xen_add_to_physmap", Only64, 24 {
        domid: u16 = 0,
        /// Pages, with `XENMAPSPACE_GMFN_RANGE` only.
        size: u16 = 2,
        /// `XENMAPSPACE_*`.
        space: u32 = 4,
        /// Index in the space.
        idx: u64 = 8,
        /// Guest frame number where it shall appear.
        gpfn: u64 = 16,
    }
    /// [`AddToPhysmap`] of a 32-bit guest.
    AddToPhysmap32, "struct xen_add_to_physmap", Only32, 16 {
        domid: u16 = 0,
        size: u16 = 2,
        space: u32 = 4,
        idx: u32 = 8,
        gpfn: u32 = 12,
    }
    /// `XENMEM_ADD_TO_PHYSMAP_BATCH`.
    AddToPhysmapBatch, "struct xen_add_to_physmap_batch", Only64, 32 {
        domid: u16 = 0,
        space: u16 = 2,
        /// Elements in each of the three arrays.
        size: u16 = 4,
        /// With `XENMAPSPACE_GMFN_FOREIGN`; else 0.
        foreign_domid: u16 = 6 "u.foreign_domid",
        /// Address of 64-bit indices.
        idxs: u64 = 8,
        /// Address of 64-bit frame numbers.
        gpfns: u64 = 16,
        /// Address of 32-bit results, negative error numbers.
        errs: u64 = 24,
    }
    /// [`AddToPhysmapBatch`] of a 32-bit guest, whose indices and frame numbers have 32 bits.
    AddToPhysmapBatch32, "struct xen_add_to_physmap_batch", Only32, 20 {
        domid: u16 = 0,
        space: u16 = 2,
        size: u16 = 4,
        foreign_domid: u16 = 6 "u.foreign_domid",
        idxs: u32 = 8,
        gpfns: u32 = 12,
        errs: u32 = 16,
    }
    /// `XENMEM_REMOVE_FROM_PHYSMAP`.
    RemoveFromPhysmap, "struct xen_remove_from_physmap", Only64, 16 {
        domid: u16 = 0,
        _pad: [u8; 6] = 2,
        gpfn: u64 = 8,
    }
    /// [`RemoveFromPhysmap`] of a 32-bit guest.
    RemoveFromPhysmap32, "struct xen_remove_from_physmap", Only32, 8 {
        domid: u16 = 0,
        _pad: [u8; 2] = 2,
        gpfn: u32 = 4,
    }
    /// `XENMEM_MEMORY_MAP`: `nr_entries` in is the room, out the number written.
    MemoryMap, "struct xen_memory_map", Only64, 16 {
        nr_entries: u32 = 0,
        _pad: [u8; 4] = 4,
        /// Address of [`E820Entry`] records.
        buffer: u64 = 8,
    }
    /// [`MemoryMap`] of a 32-bit guest.
    MemoryMap32, "struct xen_memory_map", Only32, 8 {
        nr_entries: u32 = 0,
        buffer: u32 = 4,
    }
    /// `XENMEM_SET_MEMORY_MAP`.
    ForeignMemoryMap, "struct xen_foreign_memory_map", Only64, 24 {
        domid: u16 = 0,
        _pad: [u8; 6] = 2,
        map: MemoryMap = 8,
    }
    /// [`ForeignMemoryMap`] of a 32-bit guest.
    ForeignMemoryMap32, "struct xen_foreign_memory_map", Only32, 12 {
        domid: u16 = 0,
        _pad: [u8; 2] = 2,
        map: MemoryMap32 = 4,
    }
    /// One range of `XENMEM_MEMORY_MAP`, as the BIOS call 0xe820 returns it.
    #[repr(packed(4))]
    E820Entry, "struct e820entry", Unlisted, 20 {
        addr: u64 = 0,
        /// In bytes.
        size: u64 = 8,
        /// `E820_*`.
        type_: u32 = 16 "type",
    }
    /// Set and get the populate-on-demand target.
    PodTarget, "struct xen_pod_target", Only64, 40 {
        target_pages: u64 = 0,
        tot_pages: u64 = 8,
        pod_cache_pages: u64 = 16,
        pod_entries: u64 = 24,
        domid: u16 = 32,
        _pad: [u8; 6] = 34,
    }
    /// [`PodTarget`] of a 32-bit guest.
    #[repr(packed(4))]
    PodTarget32, "struct xen_pod_target", Only32, 36 {
        target_pages: u64 = 0,
        tot_pages: u64 = 8,
        pod_cache_pages: u64 = 16,
        pod_entries: u64 = 24,
        domid: u16 = 32,
        _pad: [u8; 2] = 34,
    }
    /// One range of `XENMEM_RESERVED_DEVICE_MEMORY_MAP`.
    ReservedDeviceMemory, "struct xen_reserved_device_memory", Only64, 16 {
        start_pfn: u64 = 0,
        nr_pages: u64 = 8,
    }
    /// [`ReservedDeviceMemory`] of a 32-bit guest.
    ReservedDeviceMemory32, "struct xen_reserved_device_memory", Only32, 8 {
        start_pfn: u32 = 0,
        nr_pages: u32 = 4,
    }
    /// `XENMEM_RESERVED_DEVICE_MEMORY_MAP`.
    ReservedDeviceMemoryMap, "struct xen_reserved_device_memory_map", Only64, 24 {
        flags: u32 = 0,
        nr_entries: u32 = 4,
        buffer: u64 = 8,
        dev: crate::physdev::PhysdevPciDevice = 16 "dev.pci",
        _pad: [u8; 4] = 20,
    }
    /// [`ReservedDeviceMemoryMap`] of a 32-bit guest.
    ReservedDeviceMemoryMap32, "struct xen_reserved_device_memory_map", Only32, 16 {
        flags: u32 = 0,
        nr_entries: u32 = 4,
        buffer: u32 = 8,
        dev: crate::physdev::PhysdevPciDevice = 12 "dev.pci",
    }
    /// `XENMEM_ACQUIRE_RESOURCE`.
    MemAcquireResource, "struct xen_mem_acquire_resource", Only64, 32 {
        domid: u16 = 0,
        /// `XENMEM_RESOURCE_*`.
        type_: u16 = 2 "type",
        id: u32 = 4,
        nr_frames: u32 = 8,
        pad: u32 = 12,
        frame: u64 = 16,
        frame_list: u64 = 24,
    }
    /// [`MemAcquireResource`] of a 32-bit guest.
    #[repr(packed(4))]
    MemAcquireResource32, "struct xen_mem_acquire_resource", Only32, 28 {
        domid: u16 = 0,
        type_: u16 = 2 "type",
        id: u32 = 4,
        nr_frames: u32 = 8,
        pad: u32 = 12,
        frame: u64 = 16,
        frame_list: u32 = 24,
    }
    /// One range of `XENMEM_GET_VNUMAINFO`.
    Vmemrange, "struct xen_vmemrange", Both, 24 {
        start: u64 = 0,
        end: u64 = 8,
        flags: u32 = 16,
        nid: u32 = 20,
    }
    /// `XENMEM_GET_VNUMAINFO`. Addresses: a 32-bit guest may set the low 32 bits only.
    VnumaTopologyInfo, "struct xen_vnuma_topology_info", Both, 40 {
        domid: u16 = 0,
        pad: u16 = 2,
        nr_vnodes: u32 = 4,
        nr_vcpus: u32 = 8,
        nr_vmemranges: u32 = 12,
        vdistance: u64 = 16 "vdistance.pad",
        vcpu_to_vnode: u64 = 24 "vcpu_to_vnode.pad",
        vmemrange: u64 = 32 "vmemrange.pad",
    }
}

module!("memory", "memory.h");
