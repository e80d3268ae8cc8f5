//! Registration of PV callbacks (`callback.h`): HVM guests get ENOSYS or EINVAL.

numbers! {
    u32, Both {
        CALLBACKOP_REGISTER = 0 => "CALLBACKOP_register",
        CALLBACKOP_UNREGISTER = 1 => "CALLBACKOP_unregister",
    }
    u16, Both {
        CALLBACKTYPE_EVENT = 0 => "CALLBACKTYPE_event",
        CALLBACKTYPE_FAILSAFE = 1 => "CALLBACKTYPE_failsafe",
        CALLBACKTYPE_SYSCALL = 2 => "CALLBACKTYPE_syscall",
        CALLBACKTYPE_SYSENTER_DEPRECATED = 3 => "CALLBACKTYPE_sysenter_deprecated",
        CALLBACKTYPE_NMI = 4 => "CALLBACKTYPE_nmi",
        CALLBACKTYPE_SYSENTER = 5 => "CALLBACKTYPE_sysenter",
        CALLBACKTYPE_SYSCALL32 = 7 => "CALLBACKTYPE_syscall32",
        CALLBACKF_MASK_EVENTS = 1 => "CALLBACKF_mask_events",
    }
}

structs! {
    /// `CALLBACKOP_REGISTER`.
    CallbackRegister, "struct callback_register", Only64, 16 {
        type_: u16 = 0 "type",
        flags: u16 = 2,
        _pad: [u8; 4] = 4,
        address: u64 = 8,
    }
    /// A code address of a 32-bit guest.
    Callback32, "xen_callback_t", Only32, 8 {
        cs: u32 = 0,
        eip: u32 = 4,
    }
    /// [`CallbackRegister`] of a 32-bit guest.
    CallbackRegister32, "struct callback_register", Only32, 12 {
        type_: u16 = 0 "type",
        flags: u16 = 2,
        address: Callback32 = 4,
    }
    /// `CALLBACKOP_UNREGISTER`.
    CallbackUnregister, "struct callback_unregister", Both, 4 {
        type_: u16 = 0 "type",
        _unused: u16 = 2,
    }
}

module!("callback", "callback.h");
