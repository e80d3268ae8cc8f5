//! From a guest's line and its host's state to the page.

use vm_memory::GuestAddress;
use xen_abi::vmclock::{self as abi, VmclockAbi};

use super::ClockStatus;
use crate::clock::tai::{LeapIndicator, TaiLine, TaiOffset, smear::Smear};
use crate::pages::{GuestRam, PageError, Published, VMCLOCK_PAGE_SIZE, publish_vmclock};

/// What the page counts. Constant for the life of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum TimeType {
    /// TAI: leap seconds are told beside it, and change nothing.
    #[default]
    Tai,
    /// UTC, for a host that never learned TAI − UTC. Linux reads no time from a
    /// TAI page without the offset. Ambiguous around a leap second.
    Utc,
}

impl TimeType {
    /// TAI where the offset is known when the guest is made.
    #[must_use]
    pub const fn for_host(offset: TaiOffset) -> Self {
        if offset.is_known() { Self::Tai } else { Self::Utc }
    }
}

/// A maintenance that will disrupt the clock, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Notice {
    /// None.
    #[default]
    None,
    /// Within about a day.
    Soon,
    /// Within about an hour.
    Imminent,
}

/// What a guest's page says all its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmClockConfig {
    /// Where the page lies: 4 KiB of reserved guest memory.
    pub gpa: GuestAddress,
    /// What it counts.
    pub time_type: TimeType,
    /// Which smear a guest may use, if it wants one.
    pub smearing: Smear,
    /// Whether the guest gets an ACPI notification.
    pub notifies: bool,
}

/// What changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// The guest's line; `None` says that there is none (the counter is
    /// invalid), as before the first reading.
    pub line: Option<TaiLine>,
    /// How far to trust it.
    pub status: ClockStatus,
    /// TAI − UTC.
    pub tai_offset: TaiOffset,
    /// The leap second that is near.
    pub leap: LeapIndicator,
    /// Maintenance ahead.
    pub notice: Notice,
}

impl Default for Update {
    fn default() -> Self {
        Self {
            line: None,
            status: ClockStatus::Initializing,
            tai_offset: TaiOffset::Unknown,
            leap: LeapIndicator::None,
            notice: Notice::None,
        }
    }
}

/// One guest's VMClock. The caller serialises its use: one writer.
#[derive(Clone, Debug)]
pub struct VmClock {
    config: VmClockConfig,
    disruption_marker: u64,
    generation: u64,
    /// What the guest's moves add to the bound, ns.
    moves_error_ns: u64,
    told: Option<Told>,
}

/// What a guest has seen of its VMClock before it was restored or moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The disruption marker.
    pub disruption_marker: u64,
    /// The generation counter.
    pub generation: u64,
    /// What its moves so far add to the bound, ns.
    pub moves_error_ns: u64,
}

/// What a guest was last told that is worth a notification when it changes.
type Told = (u64, u64, ClockStatus, TaiOffset, LeapIndicator, Notice);

impl VmClock {
    /// A device of a new guest, for which any numbers do as marker and generation.
    #[must_use]
    pub const fn new(config: VmClockConfig, disruption_marker: u64, generation: u64) -> Self {
        Self { config, disruption_marker, generation, moves_error_ns: 0, told: None }
    }

    /// The guest was restored or moved: the next page tells of it, a disruption of
    /// what it has `seen`. The bound is wider from then on by what the move may have
    /// put its counter off, `error_ns`, for whoever compares times from before and
    /// after.
    pub const fn go_on(&mut self, seen: Seen, error_ns: u64) {
        self.disruption_marker = seen.disruption_marker;
        self.generation = seen.generation;
        self.moves_error_ns = seen.moves_error_ns.saturating_add(error_ns);
        self.disrupt();
    }

    /// What the guest has seen: save it with the guest.
    #[must_use]
    pub const fn seen(&self) -> Seen {
        Seen {
            disruption_marker: self.disruption_marker,
            generation: self.generation,
            moves_error_ns: self.moves_error_ns,
        }
    }

    /// The configuration.
    #[must_use]
    pub const fn config(&self) -> &VmClockConfig {
        &self.config
    }

    /// The disruption marker.
    #[must_use]
    pub const fn disruption_marker(&self) -> u64 {
        self.disruption_marker
    }

    /// The next page tells of a disruption: a migration, a stepped host clock,
    /// a bound that was broken.
    pub const fn disrupt(&mut self) {
        // Wraps after 2^64 disruptions.
        self.disruption_marker = self.disruption_marker.wrapping_add(1);
    }

    /// The next page tells that this is another copy of the machine, which is a
    /// disruption too.
    pub const fn new_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.disrupt();
    }

    /// Publishes the page. Answers whether the guest should be notified: when
    /// something else than the line moved on. `ptp_vmclock` wakes its pollers
    /// then.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn publish(&mut self, mem: &GuestRam, update: &Update) -> Result<bool, PageError> {
        let page = self.page(update);
        let published = publish_vmclock(mem, self.config.gpa, &page)?;
        let told = Some((
            self.disruption_marker,
            self.generation,
            update.status,
            update.tai_offset,
            update.leap,
            update.notice,
        ));
        let news = self.told.is_some() && self.told != told;
        self.told = told;
        Ok(news && self.config.notifies && published == Published::Rewritten)
    }

    /// The page itself. Its `seq_count` is the writer's matter.
    #[must_use]
    pub fn page(&self, update: &Update) -> VmclockAbi {
        let mut page = VmclockAbi {
            magic: abi::VMCLOCK_MAGIC,
            size: u32::try_from(VMCLOCK_PAGE_SIZE).unwrap_or(0),
            version: abi::VMCLOCK_VERSION,
            counter_id: abi::VMCLOCK_COUNTER_X86_TSC,
            time_type: match self.config.time_type {
                TimeType::Tai => abi::VMCLOCK_TIME_TAI,
                TimeType::Utc => abi::VMCLOCK_TIME_UTC,
            },
            disruption_marker: self.disruption_marker,
            flags: self.flags(update),
            clock_status: update.status.number(),
            leap_second_smearing_hint: match self.config.smearing {
                Smear::Strict => abi::VMCLOCK_SMEARING_STRICT,
                Smear::NoonLinear => abi::VMCLOCK_SMEARING_NOON_LINEAR,
                Smear::UtcSls => abi::VMCLOCK_SMEARING_UTC_SLS,
            },
            // The page states UTC − TAI.
            tai_offset_sec: update.tai_offset.seconds().saturating_neg(),
            leap_indicator: match update.leap {
                LeapIndicator::None => abi::VMCLOCK_LEAP_NONE,
                LeapIndicator::BeforePositive => abi::VMCLOCK_LEAP_PRE_POS,
                LeapIndicator::BeforeNegative => abi::VMCLOCK_LEAP_PRE_NEG,
                LeapIndicator::During => abi::VMCLOCK_LEAP_POS,
                LeapIndicator::AfterPositive => abi::VMCLOCK_LEAP_POST_POS,
                LeapIndicator::AfterNegative => abi::VMCLOCK_LEAP_POST_NEG,
            },
            vm_generation_counter: self.generation,
            ..VmclockAbi::default()
        };
        match update.line {
            Some(line) => self.put_line(&mut page, &line, update.tai_offset),
            // Constant to the driver: it registers its clock once. A guest
            // without a line is told by the status instead.
            None => page.clock_status = no_line(update.status).number(),
        }
        page
    }

    fn put_line(&self, page: &mut VmclockAbi, line: &TaiLine, offset: TaiOffset) {
        let period = line.period();
        let errors = line.errors();
        let time = match self.config.time_type {
            TimeType::Tai => line.time(),
            TimeType::Utc => line.time().saturating_add_sec(-i64::from(offset.seconds())),
        };
        page.counter_value = line.base();
        page.counter_period_shift = period.shift();
        page.counter_period_frac_sec = period.frac();
        page.counter_period_esterror_rate_frac_sec = period.rate_units(errors.rate_est_attos);
        page.counter_period_maxerror_rate_frac_sec =
            period.rate_units(errors.rate_attos.saturating_add(errors.host_rate_attos));
        page.time_sec = u64::try_from(time.sec()).unwrap_or(0); // `flags` refused those before 1970
        page.time_frac_sec = time.frac();
        let moves_ns = self.moves_error_ns;
        page.time_esterror_nanosec =
            errors.pair_est_ns.saturating_add(errors.host_est_ns).saturating_add(moves_ns);
        page.time_maxerror_nanosec =
            errors.pair_ns.saturating_add(errors.host_ns).saturating_add(moves_ns);
        if time.sec() < 0 {
            page.clock_status = abi::VMCLOCK_STATUS_UNRELIABLE;
        }
    }

    fn flags(&self, update: &Update) -> u64 {
        let mut flags = abi::VMCLOCK_FLAG_VM_GEN_COUNTER_PRESENT;
        if update.tai_offset.is_known() {
            flags |= abi::VMCLOCK_FLAG_TAI_OFFSET_VALID;
        }
        if self.config.notifies {
            flags |= abi::VMCLOCK_FLAG_NOTIFICATION_PRESENT;
        }
        if update.line.is_some_and(|line| line.time().sec() >= i64::from(i16::MAX)) {
            flags |= abi::VMCLOCK_FLAG_PERIOD_ESTERROR_VALID
                | abi::VMCLOCK_FLAG_PERIOD_MAXERROR_VALID
                | abi::VMCLOCK_FLAG_TIME_ESTERROR_VALID
                | abi::VMCLOCK_FLAG_TIME_MAXERROR_VALID;
        }
        // TIME_MONOTONIC is not promised: a new line may lie within the old
        // one's error before it.
        flags
            | match update.notice {
                Notice::None => 0,
                Notice::Soon => abi::VMCLOCK_FLAG_DISRUPTION_SOON,
                Notice::Imminent => abi::VMCLOCK_FLAG_DISRUPTION_IMMINENT,
            }
    }
}

/// Without a line nothing better than "not yet" can be said.
const fn no_line(status: ClockStatus) -> ClockStatus {
    match status {
        ClockStatus::Unreliable | ClockStatus::Initializing => ClockStatus::Unreliable,
        _ => ClockStatus::Unknown,
    }
}

#[cfg(test)]
mod tests;
