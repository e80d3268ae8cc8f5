//! What a PVH guest finds at its entry point (`arch-x86/hvm/start_info.h`): EBX holds the physical
//! address of an [`HvmStartInfo`].

numbers! {
    u32, Both {
        /// "xEn3" with bit 7 of the E set.
        XEN_HVM_START_MAGIC_VALUE = 0x336e_c578 => "XEN_HVM_START_MAGIC_VALUE",
        XEN_HVM_MEMMAP_TYPE_RAM = 1 => "XEN_HVM_MEMMAP_TYPE_RAM",
        XEN_HVM_MEMMAP_TYPE_RESERVED = 2 => "XEN_HVM_MEMMAP_TYPE_RESERVED",
        XEN_HVM_MEMMAP_TYPE_ACPI = 3 => "XEN_HVM_MEMMAP_TYPE_ACPI",
        XEN_HVM_MEMMAP_TYPE_NVS = 4 => "XEN_HVM_MEMMAP_TYPE_NVS",
        XEN_HVM_MEMMAP_TYPE_UNUSABLE = 5 => "XEN_HVM_MEMMAP_TYPE_UNUSABLE",
        XEN_HVM_MEMMAP_TYPE_DISABLED = 6 => "XEN_HVM_MEMMAP_TYPE_DISABLED",
        XEN_HVM_MEMMAP_TYPE_PMEM = 7 => "XEN_HVM_MEMMAP_TYPE_PMEM",
    }
}

structs! {
    /// Version 1; version 0 ends before `memmap_paddr`.
    HvmStartInfo, "struct hvm_start_info", Both, 56 {
        magic: u32 = 0,
        version: u32 = 4,
        /// `SIF_*`.
        flags: u32 = 8,
        nr_modules: u32 = 12,
        /// Physical address of `nr_modules` [`HvmModlistEntry`].
        modlist_paddr: u64 = 16,
        /// Physical address of the command line, ending in NUL; 0 for none.
        cmdline_paddr: u64 = 24,
        rsdp_paddr: u64 = 32,
        /// Physical address of `memmap_entries` [`HvmMemmapTableEntry`].
        memmap_paddr: u64 = 40,
        memmap_entries: u32 = 48,
        /// Must be 0.
        reserved: u32 = 52,
    }
    /// One module; the first is the initial RAM disk.
    HvmModlistEntry, "struct hvm_modlist_entry", Both, 32 {
        paddr: u64 = 0,
        /// In bytes.
        size: u64 = 8,
        cmdline_paddr: u64 = 16,
        /// Must be 0.
        reserved: u64 = 24,
    }
    /// One range of the memory map.
    HvmMemmapTableEntry, "struct hvm_memmap_table_entry", Both, 24 {
        addr: u64 = 0,
        /// In bytes.
        size: u64 = 8,
        /// `XEN_HVM_MEMMAP_TYPE_*`.
        type_: u32 = 16 "type",
        /// Must be 0.
        reserved: u32 = 20,
    }
}

module!("hvm_start_info", "arch-x86/hvm/start_info.h");
