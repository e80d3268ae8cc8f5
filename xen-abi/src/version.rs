//! Sub-operations of `xen_version` and what they fill (`version.h`).

numbers! {
    u32, Both {
        /// Returns `major << 16 | minor`, no argument.
        XENVER_VERSION = 0 => "XENVER_version",
        XENVER_EXTRAVERSION = 1 => "XENVER_extraversion",
        XENVER_COMPILE_INFO = 2 => "XENVER_compile_info",
        XENVER_CAPABILITIES = 3 => "XENVER_capabilities",
        XENVER_CHANGESET = 4 => "XENVER_changeset",
        XENVER_PLATFORM_PARAMETERS = 5 => "XENVER_platform_parameters",
        XENVER_GET_FEATURES = 6 => "XENVER_get_features",
        /// Returns the page size in bytes, no argument.
        XENVER_PAGESIZE = 7 => "XENVER_pagesize",
        XENVER_GUEST_HANDLE = 8 => "XENVER_guest_handle",
        XENVER_COMMANDLINE = 9 => "XENVER_commandline",
        XENVER_BUILD_ID = 10 => "XENVER_build_id",
    }
    usize, Both {
        XEN_EXTRAVERSION_LEN = 16 => "XEN_EXTRAVERSION_LEN",
        XEN_CAPABILITIES_INFO_LEN = 1024 => "XEN_CAPABILITIES_INFO_LEN",
        XEN_CHANGESET_INFO_LEN = 64 => "XEN_CHANGESET_INFO_LEN",
        XEN_COMMANDLINE_LEN = 1024 => "sizeof(xen_commandline_t)",
        XEN_DOMAIN_HANDLE_LEN = 16 => "sizeof(xen_domain_handle_t)",
    }
}

structs! {
    /// `XENVER_COMPILE_INFO`: strings ending in NUL.
    CompileInfo, "struct xen_compile_info", Both, 144 {
        compiler: [u8; 64] = 0,
        compile_by: [u8; 16] = 64,
        compile_domain: [u8; 32] = 80,
        compile_date: [u8; 32] = 112,
    }
    /// `XENVER_PLATFORM_PARAMETERS`.
    PlatformParameters, "struct xen_platform_parameters", Only64, 8 {
        virt_start: u64 = 0,
    }
    /// [`PlatformParameters`] of a 32-bit guest.
    PlatformParameters32, "struct xen_platform_parameters", Only32, 4 {
        virt_start: u32 = 0,
    }
    /// `XENVER_GET_FEATURES`: `submap_idx` in, `submap` out.
    FeatureInfo, "struct xen_feature_info", Both, 8 {
        submap_idx: u32 = 0,
        /// Bits `XENFEAT_*`.
        submap: u32 = 4,
    }
    /// `XENVER_BUILD_ID`: the header before `len` bytes.
    BuildId, "struct xen_build_id", Both, 4 {
        len: u32 = 0,
    }
}

module!("version", "version.h");
