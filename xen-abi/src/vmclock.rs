//! VMClock 1.1: the page in which a host gives its guest a clock with error bounds.
//!
//! The host makes `seq_count` odd, writes, makes it even again; a reader takes the fields when it
//! saw the same even number before and after. Time at a counter value is the stored time plus
//! (counter − `counter_value`) × `counter_period_frac_sec` × 2^-(64 + `counter_period_shift`) s.

numbers! {
    u32, Unlisted {
        /// "VCLK" in memory order.
        VMCLOCK_MAGIC = u32::from_le_bytes(*b"VCLK") => "VMCLOCK_MAGIC",
    }
    u16, Unlisted {
        VMCLOCK_VERSION = 1 => "version",
    }
    u8, Unlisted {
        VMCLOCK_COUNTER_ARM_VCNT = 0 => "VMCLOCK_COUNTER_ARM_VCNT",
        VMCLOCK_COUNTER_X86_TSC = 1 => "VMCLOCK_COUNTER_X86_TSC",
        VMCLOCK_COUNTER_INVALID = 0xff => "VMCLOCK_COUNTER_INVALID",

        /// Ambiguous around a leap second.
        VMCLOCK_TIME_UTC = 0 => "VMCLOCK_TIME_UTC",
        VMCLOCK_TIME_TAI = 1 => "VMCLOCK_TIME_TAI",
        VMCLOCK_TIME_MONOTONIC = 2 => "VMCLOCK_TIME_MONOTONIC",
        VMCLOCK_TIME_INVALID_SMEARED = 3 => "VMCLOCK_TIME_INVALID_SMEARED",
        VMCLOCK_TIME_INVALID_MAYBE_SMEARED = 4 => "VMCLOCK_TIME_INVALID_MAYBE_SMEARED",

        VMCLOCK_STATUS_UNKNOWN = 0 => "VMCLOCK_STATUS_UNKNOWN",
        VMCLOCK_STATUS_INITIALIZING = 1 => "VMCLOCK_STATUS_INITIALIZING",
        VMCLOCK_STATUS_SYNCHRONIZED = 2 => "VMCLOCK_STATUS_SYNCHRONIZED",
        VMCLOCK_STATUS_FREERUNNING = 3 => "VMCLOCK_STATUS_FREERUNNING",
        VMCLOCK_STATUS_UNRELIABLE = 4 => "VMCLOCK_STATUS_UNRELIABLE",

        VMCLOCK_SMEARING_STRICT = 0 => "VMCLOCK_SMEARING_STRICT",
        VMCLOCK_SMEARING_NOON_LINEAR = 1 => "VMCLOCK_SMEARING_NOON_LINEAR",
        VMCLOCK_SMEARING_UTC_SLS = 2 => "VMCLOCK_SMEARING_UTC_SLS",

        VMCLOCK_LEAP_NONE = 0 => "VMCLOCK_LEAP_NONE",
        VMCLOCK_LEAP_PRE_POS = 1 => "VMCLOCK_LEAP_PRE_POS",
        VMCLOCK_LEAP_PRE_NEG = 2 => "VMCLOCK_LEAP_PRE_NEG",
        VMCLOCK_LEAP_POS = 3 => "VMCLOCK_LEAP_POS",
        VMCLOCK_LEAP_POST_POS = 4 => "VMCLOCK_LEAP_POST_POS",
        VMCLOCK_LEAP_POST_NEG = 5 => "VMCLOCK_LEAP_POST_NEG",
    }
    u64, Unlisted {
        VMCLOCK_FLAG_TAI_OFFSET_VALID = 1 << 0 => "VMCLOCK_FLAG_TAI_OFFSET_VALID",
        /// Within about a day.
        VMCLOCK_FLAG_DISRUPTION_SOON = 1 << 1 => "VMCLOCK_FLAG_DISRUPTION_SOON",
        /// Within about an hour.
        VMCLOCK_FLAG_DISRUPTION_IMMINENT = 1 << 2 => "VMCLOCK_FLAG_DISRUPTION_IMMINENT",
        VMCLOCK_FLAG_PERIOD_ESTERROR_VALID = 1 << 3 => "VMCLOCK_FLAG_PERIOD_ESTERROR_VALID",
        VMCLOCK_FLAG_PERIOD_MAXERROR_VALID = 1 << 4 => "VMCLOCK_FLAG_PERIOD_MAXERROR_VALID",
        VMCLOCK_FLAG_TIME_ESTERROR_VALID = 1 << 5 => "VMCLOCK_FLAG_TIME_ESTERROR_VALID",
        VMCLOCK_FLAG_TIME_MAXERROR_VALID = 1 << 6 => "VMCLOCK_FLAG_TIME_MAXERROR_VALID",
        /// Time computed from this page never goes back, except where the marker changes.
        VMCLOCK_FLAG_TIME_MONOTONIC = 1 << 7 => "VMCLOCK_FLAG_TIME_MONOTONIC",
        VMCLOCK_FLAG_VM_GEN_COUNTER_PRESENT = 1 << 8 => "VMCLOCK_FLAG_VM_GEN_COUNTER_PRESENT",
        VMCLOCK_FLAG_NOTIFICATION_PRESENT = 1 << 9 => "VMCLOCK_FLAG_NOTIFICATION_PRESENT",
    }
}

structs! {
    /// The start of the page.
    VmclockAbi, "struct vmclock_abi", Unlisted, 0x70 {
        magic: u32 = 0x00,
        /// Bytes of the region that holds the structure.
        size: u32 = 0x04,
        version: u16 = 0x08,
        counter_id: u8 = 0x0a,
        time_type: u8 = 0x0b,
        /// Odd during an update.
        seq_count: u32 = 0x0c,
        /// Another value means: the counter was disrupted, such as by a migration.
        disruption_marker: u64 = 0x10,
        flags: u64 = 0x18,
        pad: [u8; 2] = 0x20,
        clock_status: u8 = 0x22,
        leap_second_smearing_hint: u8 = 0x23,
        /// UTC − TAI in seconds.
        tai_offset_sec: i16 = 0x24,
        leap_indicator: u8 = 0x26,
        counter_period_shift: u8 = 0x27,
        counter_value: u64 = 0x28,
        /// In units of 2^-(64 + `counter_period_shift`) s.
        counter_period_frac_sec: u64 = 0x30,
        /// In the unit of `counter_period_frac_sec`.
        counter_period_esterror_rate_frac_sec: u64 = 0x38,
        /// In the unit of `counter_period_frac_sec`.
        counter_period_maxerror_rate_frac_sec: u64 = 0x40,
        /// Since 1970-01-01 00:00:00 of the page's time type.
        time_sec: u64 = 0x48,
        /// In units of 2^-64 s.
        time_frac_sec: u64 = 0x50,
        time_esterror_nanosec: u64 = 0x58,
        time_maxerror_nanosec: u64 = 0x60,
        /// Another value means: this is another copy of the machine.
        vm_generation_counter: u64 = 0x68,
    }
}

module!("vmclock", "");
