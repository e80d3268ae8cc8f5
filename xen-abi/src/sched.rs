//! Scheduler operations and the reasons of a shutdown (`sched.h`).

numbers! {
    u32, Both {
        SCHEDOP_YIELD = 0 => "SCHEDOP_yield",
        SCHEDOP_BLOCK = 1 => "SCHEDOP_block",
        SCHEDOP_SHUTDOWN = 2 => "SCHEDOP_shutdown",
        SCHEDOP_POLL = 3 => "SCHEDOP_poll",
        SCHEDOP_REMOTE_SHUTDOWN = 4 => "SCHEDOP_remote_shutdown",
        SCHEDOP_SHUTDOWN_CODE = 5 => "SCHEDOP_shutdown_code",
        SCHEDOP_WATCHDOG = 6 => "SCHEDOP_watchdog",
        SCHEDOP_PIN_OVERRIDE = 7 => "SCHEDOP_pin_override",

        SHUTDOWN_POWEROFF = 0 => "SHUTDOWN_poweroff",
        SHUTDOWN_REBOOT = 1 => "SHUTDOWN_reboot",
        SHUTDOWN_SUSPEND = 2 => "SHUTDOWN_suspend",
        SHUTDOWN_CRASH = 3 => "SHUTDOWN_crash",
        SHUTDOWN_WATCHDOG = 4 => "SHUTDOWN_watchdog",
        SHUTDOWN_SOFT_RESET = 5 => "SHUTDOWN_soft_reset",
        SHUTDOWN_MAX = 5 => "SHUTDOWN_MAX",
    }
}

structs! {
    /// `SCHEDOP_SHUTDOWN` and `SCHEDOP_SHUTDOWN_CODE`.
    SchedShutdown, "struct sched_shutdown", Both, 4 {
        reason: u32 = 0,
    }
    /// `SCHEDOP_POLL`.
    SchedPoll, "struct sched_poll", Only64, 24 {
        /// Address of `nr_ports` 32-bit port numbers.
        ports: u64 = 0,
        nr_ports: u32 = 8,
        _pad: [u8; 4] = 12,
        /// Absolute system time in nanoseconds; 0 waits for ever.
        timeout: u64 = 16,
    }
    /// [`SchedPoll`] of a 32-bit guest.
    SchedPoll32, "struct sched_poll", Only32, 16 {
        ports: u32 = 0,
        nr_ports: u32 = 4,
        timeout: u64 = 8,
    }
    /// `SCHEDOP_REMOTE_SHUTDOWN`.
    SchedRemoteShutdown, "struct sched_remote_shutdown", Both, 8 {
        domain_id: u16 = 0,
        _pad: [u8; 2] = 2,
        reason: u32 = 4,
    }
    /// `SCHEDOP_WATCHDOG`.
    SchedWatchdog, "struct sched_watchdog", Both, 8 {
        /// 0 asks for a new watchdog.
        id: u32 = 0,
        /// In seconds from now; 0 stops it.
        timeout: u32 = 4,
    }
    /// `SCHEDOP_PIN_OVERRIDE`.
    SchedPinOverride, "struct sched_pin_override", Both, 4 {
        /// Negative takes the pin away.
        pcpu: i32 = 0,
    }
}

module!("sched", "sched.h");
