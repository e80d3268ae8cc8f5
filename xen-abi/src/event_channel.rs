//! Event channel operations and the two ABIs of pending events (`event_channel.h`).
//!
//! 2-level: bitmaps in `shared_info`. FIFO: one [`EvtchnFifoControlBlock`] per vCPU and an array of
//! 32-bit event words.

numbers! {
    u32, Both {
        EVTCHNOP_BIND_INTERDOMAIN = 0 => "EVTCHNOP_bind_interdomain",
        EVTCHNOP_BIND_VIRQ = 1 => "EVTCHNOP_bind_virq",
        EVTCHNOP_BIND_PIRQ = 2 => "EVTCHNOP_bind_pirq",
        EVTCHNOP_CLOSE = 3 => "EVTCHNOP_close",
        EVTCHNOP_SEND = 4 => "EVTCHNOP_send",
        EVTCHNOP_STATUS = 5 => "EVTCHNOP_status",
        EVTCHNOP_ALLOC_UNBOUND = 6 => "EVTCHNOP_alloc_unbound",
        EVTCHNOP_BIND_IPI = 7 => "EVTCHNOP_bind_ipi",
        EVTCHNOP_BIND_VCPU = 8 => "EVTCHNOP_bind_vcpu",
        EVTCHNOP_UNMASK = 9 => "EVTCHNOP_unmask",
        EVTCHNOP_RESET = 10 => "EVTCHNOP_reset",
        EVTCHNOP_INIT_CONTROL = 11 => "EVTCHNOP_init_control",
        EVTCHNOP_EXPAND_ARRAY = 12 => "EVTCHNOP_expand_array",
        EVTCHNOP_SET_PRIORITY = 13 => "EVTCHNOP_set_priority",

        BIND_PIRQ__WILL_SHARE = 1 => "BIND_PIRQ__WILL_SHARE",

        EVTCHNSTAT_CLOSED = 0 => "EVTCHNSTAT_closed",
        EVTCHNSTAT_UNBOUND = 1 => "EVTCHNSTAT_unbound",
        EVTCHNSTAT_INTERDOMAIN = 2 => "EVTCHNSTAT_interdomain",
        EVTCHNSTAT_PIRQ = 3 => "EVTCHNSTAT_pirq",
        EVTCHNSTAT_VIRQ = 4 => "EVTCHNSTAT_virq",
        EVTCHNSTAT_IPI = 5 => "EVTCHNSTAT_ipi",

        /// The most urgent priority: the smallest number.
        EVTCHN_FIFO_PRIORITY_MAX = 0 => "EVTCHN_FIFO_PRIORITY_MAX",
        EVTCHN_FIFO_PRIORITY_DEFAULT = 7 => "EVTCHN_FIFO_PRIORITY_DEFAULT",
        /// The least urgent priority: the largest number.
        EVTCHN_FIFO_PRIORITY_MIN = 15 => "EVTCHN_FIFO_PRIORITY_MIN",
        EVTCHN_FIFO_MAX_QUEUES = 16 => "EVTCHN_FIFO_MAX_QUEUES",
        /// Bit number in an event word.
        EVTCHN_FIFO_PENDING = 31 => "EVTCHN_FIFO_PENDING",
        /// Bit number in an event word.
        EVTCHN_FIFO_MASKED = 30 => "EVTCHN_FIFO_MASKED",
        /// Bit number in an event word.
        EVTCHN_FIFO_LINKED = 29 => "EVTCHN_FIFO_LINKED",
        /// Bit number in an event word.
        EVTCHN_FIFO_BUSY = 28 => "EVTCHN_FIFO_BUSY",
        EVTCHN_FIFO_LINK_BITS = 17 => "EVTCHN_FIFO_LINK_BITS",
        EVTCHN_FIFO_LINK_MASK = (1 << EVTCHN_FIFO_LINK_BITS) - 1 => "EVTCHN_FIFO_LINK_MASK",
        EVTCHN_FIFO_NR_CHANNELS = 1 << EVTCHN_FIFO_LINK_BITS => "EVTCHN_FIFO_NR_CHANNELS",
    }
    u32, Only64 {
        EVTCHN_2L_NR_CHANNELS = 4096 => "EVTCHN_2L_NR_CHANNELS",
    }
    u32, Only32 {
        EVTCHN_2L_NR_CHANNELS32 = 1024 => "EVTCHN_2L_NR_CHANNELS",
    }
    u32, Unlisted {
        /// Xen's own continuation of a reset; a guest that calls it gets ENOSYS.
        EVTCHNOP_RESET_CONT = 14 => "EVTCHNOP_reset_cont",
    }
}

structs! {
    /// `EVTCHNOP_ALLOC_UNBOUND`: `dom` and `remote_dom` in, `port` out.
    EvtchnAllocUnbound, "struct evtchn_alloc_unbound", Both, 8 {
        dom: u16 = 0,
        remote_dom: u16 = 2,
        port: u32 = 4,
    }
    /// `EVTCHNOP_BIND_INTERDOMAIN`: the remote end in, `local_port` out.
    EvtchnBindInterdomain, "struct evtchn_bind_interdomain", Both, 12 {
        remote_dom: u16 = 0,
        _pad: [u8; 2] = 2,
        remote_port: u32 = 4,
        local_port: u32 = 8,
    }
    /// `EVTCHNOP_BIND_VIRQ`: `virq` and `vcpu` in, `port` out.
    EvtchnBindVirq, "struct evtchn_bind_virq", Both, 12 {
        virq: u32 = 0,
        vcpu: u32 = 4,
        port: u32 = 8,
    }
    /// `EVTCHNOP_BIND_PIRQ`: `pirq` and `flags` in, `port` out.
    EvtchnBindPirq, "struct evtchn_bind_pirq", Both, 12 {
        pirq: u32 = 0,
        flags: u32 = 4,
        port: u32 = 8,
    }
    /// `EVTCHNOP_BIND_IPI`: `vcpu` in, `port` out.
    EvtchnBindIpi, "struct evtchn_bind_ipi", Both, 8 {
        vcpu: u32 = 0,
        port: u32 = 4,
    }
    /// `EVTCHNOP_CLOSE`.
    EvtchnClose, "struct evtchn_close", Both, 4 {
        port: u32 = 0,
    }
    /// `EVTCHNOP_SEND`.
    EvtchnSend, "struct evtchn_send", Both, 4 {
        port: u32 = 0,
    }
    /// `EVTCHNOP_STATUS`: `dom` and `port` in, the rest out.
    EvtchnStatus, "struct evtchn_status", Both, 24 {
        dom: u16 = 0,
        _pad: [u8; 2] = 2,
        port: u32 = 4,
        status: u32 = 8,
        vcpu: u32 = 12,
        /// The union's first word: the PIRQ, the VIRQ, or in its low 16 bits the remote domain of an
        /// unbound or interdomain port.
        u: u32 = 16 "u.virq",
        /// The remote port of an interdomain port.
        u_port: u32 = 20 "u.interdomain.port",
    }
    /// `EVTCHNOP_BIND_VCPU`.
    EvtchnBindVcpu, "struct evtchn_bind_vcpu", Both, 8 {
        port: u32 = 0,
        vcpu: u32 = 4,
    }
    /// `EVTCHNOP_UNMASK`.
    EvtchnUnmask, "struct evtchn_unmask", Both, 4 {
        port: u32 = 0,
    }
    /// `EVTCHNOP_RESET`.
    EvtchnReset, "struct evtchn_reset", Both, 2 {
        dom: u16 = 0,
    }
    /// `EVTCHNOP_INIT_CONTROL`: `link_bits` out.
    EvtchnInitControl, "struct evtchn_init_control", Both, 24 {
        control_gfn: u64 = 0,
        /// In bytes within the page, a multiple of 8.
        offset: u32 = 8,
        vcpu: u32 = 12,
        link_bits: u8 = 16,
        _pad: [u8; 7] = 17,
    }
    /// `EVTCHNOP_EXPAND_ARRAY`.
    EvtchnExpandArray, "struct evtchn_expand_array", Both, 8 {
        array_gfn: u64 = 0,
    }
    /// `EVTCHNOP_SET_PRIORITY`.
    EvtchnSetPriority, "struct evtchn_set_priority", Both, 8 {
        port: u32 = 0,
        priority: u32 = 4,
    }
    /// Argument of the old hypercall `HYPERVISOR_EVENT_CHANNEL_OP_COMPAT`.
    EvtchnOp, "struct evtchn_op", Both, 28 {
        cmd: u32 = 0,
        /// The bytes of the operation's own structure.
        u: [u8; 24] = 4,
    }
    /// FIFO ABI: one per vCPU, shared with the guest.
    EvtchnFifoControlBlock, "struct evtchn_fifo_control_block", Both, 72 {
        /// One bit for each priority with a non-empty queue.
        ready: u32 = 0,
        _rsvd: u32 = 4,
        /// First port of each queue.
        head: [u32; 16] = 8,
    }
}

module!("event_channel", "event_channel.h");
