//! Grant tables (`grant_table.h`): how a guest lets others reach its pages.

numbers! {
    u32, Both {
        GNTTABOP_MAP_GRANT_REF = 0 => "GNTTABOP_map_grant_ref",
        GNTTABOP_UNMAP_GRANT_REF = 1 => "GNTTABOP_unmap_grant_ref",
        GNTTABOP_SETUP_TABLE = 2 => "GNTTABOP_setup_table",
        GNTTABOP_DUMP_TABLE = 3 => "GNTTABOP_dump_table",
        GNTTABOP_TRANSFER = 4 => "GNTTABOP_transfer",
        GNTTABOP_COPY = 5 => "GNTTABOP_copy",
        GNTTABOP_QUERY_SIZE = 6 => "GNTTABOP_query_size",
        GNTTABOP_UNMAP_AND_REPLACE = 7 => "GNTTABOP_unmap_and_replace",
        GNTTABOP_SET_VERSION = 8 => "GNTTABOP_set_version",
        GNTTABOP_GET_STATUS_FRAMES = 9 => "GNTTABOP_get_status_frames",
        GNTTABOP_GET_VERSION = 10 => "GNTTABOP_get_version",
        GNTTABOP_SWAP_GRANT_REF = 11 => "GNTTABOP_swap_grant_ref",
        GNTTABOP_CACHE_FLUSH = 12 => "GNTTABOP_cache_flush",

        GNTTAB_NR_RESERVED_ENTRIES = 8 => "GNTTAB_NR_RESERVED_ENTRIES",
        GNTTAB_RESERVED_CONSOLE = 0 => "GNTTAB_RESERVED_CONSOLE",
        GNTTAB_RESERVED_XENSTORE = 1 => "GNTTAB_RESERVED_XENSTORE",

        GNTMAP_DEVICE_MAP = 1 << 0 => "GNTMAP_device_map",
        GNTMAP_HOST_MAP = 1 << 1 => "GNTMAP_host_map",
        GNTMAP_READONLY = 1 << 2 => "GNTMAP_readonly",
        GNTMAP_APPLICATION_MAP = 1 << 3 => "GNTMAP_application_map",
        GNTMAP_CONTAINS_PTE = 1 << 4 => "GNTMAP_contains_pte",
        /// Bit number.
        GNTMAP_GUEST_AVAIL0 = 16 => "_GNTMAP_guest_avail0",
        GNTMAP_GUEST_AVAIL_MASK = 0xffff_0000 => "GNTMAP_guest_avail_mask",

        GNTTAB_CACHE_CLEAN = 1 << 0 => "GNTTAB_CACHE_CLEAN",
        GNTTAB_CACHE_INVAL = 1 << 1 => "GNTTAB_CACHE_INVAL",
        GNTTAB_CACHE_SOURCE_GREF = 1 << 31 => "GNTTAB_CACHE_SOURCE_GREF",
    }
    u16, Both {
        GTF_INVALID = 0 => "GTF_invalid",
        GTF_PERMIT_ACCESS = 1 => "GTF_permit_access",
        GTF_ACCEPT_TRANSFER = 2 => "GTF_accept_transfer",
        GTF_TRANSITIVE = 3 => "GTF_transitive",
        GTF_TYPE_MASK = 3 => "GTF_type_mask",
        GTF_READONLY = 1 << 2 => "GTF_readonly",
        GTF_READING = 1 << 3 => "GTF_reading",
        GTF_WRITING = 1 << 4 => "GTF_writing",
        GTF_PWT = 1 << 5 => "GTF_PWT",
        GTF_PCD = 1 << 6 => "GTF_PCD",
        GTF_PAT = 1 << 7 => "GTF_PAT",
        GTF_SUB_PAGE = 1 << 8 => "GTF_sub_page",
        GTF_TRANSFER_COMMITTED = 1 << 2 => "GTF_transfer_committed",
        GTF_TRANSFER_COMPLETED = 1 << 3 => "GTF_transfer_completed",

        GNTCOPY_SOURCE_GREF = 1 << 0 => "GNTCOPY_source_gref",
        GNTCOPY_DEST_GREF = 1 << 1 => "GNTCOPY_dest_gref",
    }
    i16, Both {
        GNTST_OKAY = 0 => "GNTST_okay",
        GNTST_GENERAL_ERROR = -1 => "GNTST_general_error",
        GNTST_BAD_DOMAIN = -2 => "GNTST_bad_domain",
        GNTST_BAD_GNTREF = -3 => "GNTST_bad_gntref",
        GNTST_BAD_HANDLE = -4 => "GNTST_bad_handle",
        GNTST_BAD_VIRT_ADDR = -5 => "GNTST_bad_virt_addr",
        GNTST_BAD_DEV_ADDR = -6 => "GNTST_bad_dev_addr",
        GNTST_NO_DEVICE_SPACE = -7 => "GNTST_no_device_space",
        GNTST_PERMISSION_DENIED = -8 => "GNTST_permission_denied",
        GNTST_BAD_PAGE = -9 => "GNTST_bad_page",
        GNTST_BAD_COPY_ARG = -10 => "GNTST_bad_copy_arg",
        GNTST_ADDRESS_TOO_BIG = -11 => "GNTST_address_too_big",
        GNTST_EAGAIN = -12 => "GNTST_eagain",
        GNTST_NO_SPACE = -13 => "GNTST_no_space",
    }
}

structs! {
    /// An entry of a version 1 table.
    GrantEntryV1, "struct grant_entry_v1", Both, 8 {
        /// `GTF_*`.
        flags: u16 = 0,
        domid: u16 = 2,
        frame: u32 = 4,
    }
    /// The first bytes of every version 2 entry.
    GrantEntryHeader, "struct grant_entry_header", Both, 4 {
        /// `GTF_*`.
        flags: u16 = 0,
        domid: u16 = 2,
    }
    /// A version 2 entry that grants a whole page.
    GrantEntryV2FullPage, "union grant_entry_v2", Both, 16 {
        hdr: GrantEntryHeader = 0 "full_page.hdr",
        pad0: u32 = 4 "full_page.pad0",
        frame: u64 = 8 "full_page.frame",
    }
    /// A version 2 entry that grants part of a page (`GTF_SUB_PAGE`).
    GrantEntryV2SubPage, "union grant_entry_v2", Both, 16 {
        hdr: GrantEntryHeader = 0 "sub_page.hdr",
        page_off: u16 = 4 "sub_page.page_off",
        length: u16 = 6 "sub_page.length",
        frame: u64 = 8 "sub_page.frame",
    }
    /// A version 2 entry that passes on another's grant (`GTF_TRANSITIVE`).
    GrantEntryV2Transitive, "union grant_entry_v2", Both, 16 {
        hdr: GrantEntryHeader = 0 "transitive.hdr",
        trans_domid: u16 = 4 "transitive.trans_domid",
        pad0: u16 = 6 "transitive.pad0",
        gref: u32 = 8 "transitive.gref",
        _pad: [u8; 4] = 12,
    }
    /// `GNTTABOP_MAP_GRANT_REF`: `status`, `handle` and `dev_bus_addr` out.
    GnttabMapGrantRef, "struct gnttab_map_grant_ref", Both, 32 {
        host_addr: u64 = 0,
        /// `GNTMAP_*`.
        flags: u32 = 8,
        ref_: u32 = 12 "ref",
        dom: u16 = 16,
        /// `GNTST_*`.
        status: i16 = 18,
        handle: u32 = 20,
        dev_bus_addr: u64 = 24,
    }
    /// `GNTTABOP_UNMAP_GRANT_REF`: `status` out.
    GnttabUnmapGrantRef, "struct gnttab_unmap_grant_ref", Both, 24 {
        host_addr: u64 = 0,
        dev_bus_addr: u64 = 8,
        handle: u32 = 16,
        status: i16 = 20,
        _pad: [u8; 2] = 22,
    }
    /// `GNTTABOP_SETUP_TABLE`: `status` and the frame list out.
    GnttabSetupTable, "struct gnttab_setup_table", Only64, 24 {
        dom: u16 = 0,
        _pad: [u8; 2] = 2,
        nr_frames: u32 = 4,
        status: i16 = 8,
        _pad1: [u8; 6] = 10,
        /// Address of `nr_frames` frame numbers of 64 bits.
        frame_list: u64 = 16,
    }
    /// [`GnttabSetupTable`] of a 32-bit guest, whose frame numbers have 32 bits.
    GnttabSetupTable32, "struct gnttab_setup_table", Only32, 16 {
        dom: u16 = 0,
        _pad: [u8; 2] = 2,
        nr_frames: u32 = 4,
        status: i16 = 8,
        _pad1: [u8; 2] = 10,
        frame_list: u32 = 12,
    }
    /// `GNTTABOP_DUMP_TABLE`.
    GnttabDumpTable, "struct gnttab_dump_table", Both, 4 {
        dom: u16 = 0,
        status: i16 = 2,
    }
    /// `GNTTABOP_TRANSFER`.
    GnttabTransfer, "struct gnttab_transfer", Only64, 24 {
        mfn: u64 = 0,
        domid: u16 = 8,
        _pad: [u8; 2] = 10,
        ref_: u32 = 12 "ref",
        status: i16 = 16,
        _pad1: [u8; 6] = 18,
    }
    /// [`GnttabTransfer`] of a 32-bit guest.
    GnttabTransfer32, "struct gnttab_transfer", Only32, 16 {
        mfn: u32 = 0,
        domid: u16 = 4,
        _pad: [u8; 2] = 6,
        ref_: u32 = 8 "ref",
        status: i16 = 12,
        _pad1: [u8; 2] = 14,
    }
    /// One side of a copy.
    GnttabCopyPtr, "struct gnttab_copy_ptr", Only64, 16 {
        /// A frame number, or a grant reference in the low 32 bits (the high ones are then
        /// undefined), as `GNTCOPY_*` says.
        u: u64 = 0 "u.gmfn",
        domid: u16 = 8,
        /// In bytes within the page.
        offset: u16 = 10,
        _pad: [u8; 4] = 12,
    }
    /// [`GnttabCopyPtr`] of a 32-bit guest.
    GnttabCopyPtr32, "struct gnttab_copy_ptr", Only32, 8 {
        u: u32 = 0 "u.gmfn",
        domid: u16 = 4,
        offset: u16 = 6,
    }
    /// `GNTTABOP_COPY`: `status` out.
    GnttabCopy, "struct gnttab_copy", Only64, 40 {
        source: GnttabCopyPtr = 0,
        dest: GnttabCopyPtr = 16,
        /// In bytes.
        len: u16 = 32,
        /// `GNTCOPY_*`.
        flags: u16 = 34,
        status: i16 = 36,
        _pad: [u8; 2] = 38,
    }
    /// [`GnttabCopy`] of a 32-bit guest.
    GnttabCopy32, "struct gnttab_copy", Only32, 24 {
        source: GnttabCopyPtr32 = 0,
        dest: GnttabCopyPtr32 = 8,
        len: u16 = 16,
        flags: u16 = 18,
        status: i16 = 20,
        _pad: [u8; 2] = 22,
    }
    /// `GNTTABOP_QUERY_SIZE`: all but `dom` out.
    GnttabQuerySize, "struct gnttab_query_size", Both, 16 {
        dom: u16 = 0,
        _pad: [u8; 2] = 2,
        nr_frames: u32 = 4,
        max_nr_frames: u32 = 8,
        status: i16 = 12,
        _pad1: [u8; 2] = 14,
    }
    /// `GNTTABOP_UNMAP_AND_REPLACE`.
    GnttabUnmapAndReplace, "struct gnttab_unmap_and_replace", Both, 24 {
        host_addr: u64 = 0,
        new_addr: u64 = 8,
        handle: u32 = 16,
        status: i16 = 20,
        _pad: [u8; 2] = 22,
    }
    /// `GNTTABOP_SET_VERSION`: the wanted version in, the set one out.
    GnttabSetVersion, "struct gnttab_set_version", Both, 4 {
        version: u32 = 0,
    }
    /// `GNTTABOP_GET_STATUS_FRAMES`.
    GnttabGetStatusFrames, "struct gnttab_get_status_frames", Only64, 16 {
        nr_frames: u32 = 0,
        dom: u16 = 4,
        status: i16 = 6,
        /// Address of `nr_frames` frame numbers of 64 bits.
        frame_list: u64 = 8,
    }
    /// [`GnttabGetStatusFrames`] of a 32-bit guest, whose frame numbers here have 64 bits too.
    GnttabGetStatusFrames32, "struct gnttab_get_status_frames", Only32, 12 {
        nr_frames: u32 = 0,
        dom: u16 = 4,
        status: i16 = 6,
        frame_list: u32 = 8,
    }
    /// `GNTTABOP_GET_VERSION`: `version` out.
    GnttabGetVersion, "struct gnttab_get_version", Both, 8 {
        dom: u16 = 0,
        pad: u16 = 2,
        version: u32 = 4,
    }
    /// `GNTTABOP_SWAP_GRANT_REF`.
    GnttabSwapGrantRef, "struct gnttab_swap_grant_ref", Both, 12 {
        ref_a: u32 = 0,
        ref_b: u32 = 4,
        status: i16 = 8,
        _pad: [u8; 2] = 10,
    }
    /// `GNTTABOP_CACHE_FLUSH`.
    GnttabCacheFlush, "struct gnttab_cache_flush", Both, 16 {
        /// A bus address, or a grant reference in the low 32 bits.
        a: u64 = 0 "a.dev_bus_addr",
        offset: u16 = 8,
        length: u16 = 10,
        /// `GNTTAB_CACHE_*`.
        op: u32 = 12,
    }
}

module!("grant_table", "grant_table.h");
