//! NMI callbacks of PV guests (`nmi.h`): HVM guests get ENOSYS, and their NMIs from the LAPIC.

numbers! {
    u32, Both {
        XENNMI_REGISTER_CALLBACK = 0 => "XENNMI_register_callback",
        XENNMI_UNREGISTER_CALLBACK = 1 => "XENNMI_unregister_callback",
        /// In `nmi_reason` of the shared page.
        XEN_NMIREASON_IO_ERROR = 1 << 0 => "XEN_NMIREASON_io_error",
        /// In `nmi_reason` of the shared page.
        XEN_NMIREASON_PCI_SERR = 1 << 1 => "XEN_NMIREASON_pci_serr",
        /// In `nmi_reason` of the shared page.
        XEN_NMIREASON_UNKNOWN = 1 << 2 => "XEN_NMIREASON_unknown",
    }
}

structs! {
    /// `XENNMI_REGISTER_CALLBACK`.
    XennmiCallback, "struct xennmi_callback", Only64, 16 {
        handler_address: u64 = 0,
        pad: u64 = 8,
    }
    /// [`XennmiCallback`] of a 32-bit guest.
    XennmiCallback32, "struct xennmi_callback", Only32, 8 {
        handler_address: u32 = 0,
        pad: u32 = 4,
    }
}

module!("nmi", "nmi.h");
