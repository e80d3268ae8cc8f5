//! One turn of the service: a reading in, pages out. No thread, no clock of its
//! own, so that a simulated host drives it in tests.

use crate::clock::WallclockEpoch;
use crate::clock::tai::{Observation, TaiOffset, wallclock};
use crate::host::{PairError, PairSource, SourceKind};
use crate::kvm::UtcLine;
use crate::pages::{GuestRamHandle, PageError, publish_generation_id};
use crate::vmclock::{ClockStatus, Notice, Seen, TaiFeed, Update, VmClock};
use vm_memory::{GuestAddress, GuestAddressSpace};

/// How good the clocks are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockSettings {
    /// By how much the bound may grow before the next reading, ns. At 1 510 ppm
    /// 100 µs are 66 ms.
    pub growth_ns: u64,
    /// The page is called unreliable while the bound against the host's clock
    /// exceeds this, ns.
    pub limit_ns: u64,
    /// How far the Xen wallclock may be from the line, ns.
    pub wallclock_bound_ns: u64,
}

impl Default for ClockSettings {
    fn default() -> Self {
        Self { growth_ns: 100_000, limit_ns: 1_000_000, wallclock_bound_ns: 900 }
    }
}

/// The guest's side of a turn.
pub(super) trait ClockedGuest: Send + Sync {
    /// The host's TSC now.
    fn host_tsc(&self) -> u64;
    /// The guest's TSC at a host TSC.
    fn guest_tsc(&self, host_tsc: u64) -> u64;
    /// The host's TSC was reset: the guest's follows from it in another way, which
    /// is to be found out.
    fn lose_counter(&self);
    /// What to add to the host's TSC, scaled, since then; `None` while nobody knows.
    fn counter_offset(&self) -> Option<u64>;
    /// The guest's line to system time.
    fn system_line(&self) -> crate::clock::SystemTimeLine;
    /// The wallclock is to follow this line from now on.
    fn follow(&self, utc: Option<UtcLine>);
    /// The wallclock as the guest finds it, if it has mapped it.
    fn wallclock(&self) -> Option<WallclockEpoch>;
    /// Writes the wallclock again.
    fn rewrite_wallclock(&self);
    /// Asks each vCPU to publish its clock pages again before its next entry.
    fn request_clock_updates(&self) {}
    /// Looks whether KVM has moved a clock of its own that the guest reads.
    fn check_kvm_clock(&self) {}
    /// vCPU clock pages that were written again.
    fn clock_page_rewrites(&self) -> u64 {
        0
    }
    /// Notifies the guest of a new VMClock page.
    fn notify(&self);
    /// Notifies the guest that it is another copy.
    fn notify_generation(&self);
}

/// A guest's VMClock page, and where its generation identifier lies.
pub(super) struct Page {
    pub clock: VmClock,
    pub memory: GuestRamHandle,
    pub generation_gpa: GuestAddress,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub page_updates: u64,
    pub readings: u64,
    pub missed_readings: u64,
    pub host_steps: u64,
    pub disruptions: u64,
    pub longest_step_to_page_ns: u64,
    pub wallclock_updates: u64,
}

/// What the guest's page says, beside what the guest can read there itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Published {
    pub update: Update,
    pub disruption_marker: u64,
    pub host_maxerror_ns: u64,
    /// The host's TSC when the page was written.
    pub host_tsc: u64,
}

/// Why a turn is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The bound, or somebody wants it.
    Due,
    /// The host's clock was set.
    Set,
    /// The host slept.
    Slept,
}

/// Keeps one guest's clocks.
pub(super) struct Engine {
    settings: ClockSettings,
    feed: TaiFeed,
    page: Option<Page>,
    source: Box<dyn PairSource>,
    /// Asked when `source` has nothing.
    second: Option<Box<dyn PairSource>>,
    asked: SourceKind,
    counts: Counts,
    published: Published,
    /// The counter itself was lost: the guest's offset from it is not known yet.
    counter_lost: bool,
    /// The host's clock was set, and nothing has told yet to what: the line is wrong.
    line_lost: bool,
    reading_due: u64,
    wallclock_due: u64,
}

/// Nothing can be read: the next try, and the least and the most between two, in ns.
const RETRY_NS: u64 = 5_000_000;
const LEAST_NS: u64 = 1_000_000;
const MOST_NS: u64 = 1_000_000_000;

impl Engine {
    pub(super) fn new(
        settings: ClockSettings,
        feed: TaiFeed,
        page: Option<Page>,
        source: Box<dyn PairSource>,
        second: Option<Box<dyn PairSource>>,
    ) -> Self {
        let asked = source.kind();
        let marker = page.as_ref().map_or(0, |page| page.clock.disruption_marker());
        Self {
            settings,
            feed,
            page,
            source,
            second,
            asked,
            counts: Counts::default(),
            published: Published {
                update: Update::default(),
                disruption_marker: marker,
                host_maxerror_ns: 0,
                host_tsc: 0,
            },
            counter_lost: false,
            line_lost: false,
            reading_due: 0,
            wallclock_due: u64::MAX,
        }
    }

    pub(super) const fn counts(&self) -> Counts {
        self.counts
    }

    pub(super) const fn source(&self) -> SourceKind {
        self.asked
    }

    pub(super) const fn published(&self) -> Published {
        self.published
    }

    pub(super) fn page(&self) -> Option<&Page> {
        self.page.as_ref()
    }

    /// Maintenance ahead, from the next page on.
    pub(super) const fn set_notice(&mut self, notice: Notice) {
        self.feed.set_notice(notice);
    }

    /// How long it took from a step's notice to the new page.
    pub(super) fn step_took(&mut self, ns: u64) {
        let longest = &mut self.counts.longest_step_to_page_ns;
        *longest = ns.max(*longest);
    }

    /// Takes a reading, publishes what follows, and notifies the guest of news.
    /// True where that was a disruption.
    pub(super) fn refresh(&mut self, guest: &dyn ClockedGuest, cause: Cause) -> bool {
        let mut disrupted = cause == Cause::Slept;
        if self.counter_lost
            && let Some(offset) = guest.counter_offset()
        {
            tracing::info!("the guest's TSC is known again");
            self.feed.rescale(self.feed.scaling().with_offset(offset));
            self.counter_lost = false;
            disrupted = true;
        }
        let known_lost = self.counter_lost;
        let mut stepped_by_ns = None;
        let update = match self.read() {
            Ok(reading) => {
                self.counts.readings += 1;
                self.line_lost = false;
                let fed = self.feed.observe(&reading);
                match fed.observation {
                    Observation::Stepped { by_ns } => {
                        stepped_by_ns = Some(by_ns);
                        self.counts.host_steps += 1;
                        disrupted = true;
                    }
                    Observation::CounterJumped { ticks } => {
                        tracing::warn!(ticks, "the host's TSC went back: guests lose their clock");
                        self.counter_lost = true;
                        disrupted = true;
                    }
                    _ => {}
                }
                fed.update
            }
            Err(error) => {
                tracing::debug!(%error, "no reading of the host's clock");
                self.line_lost |= cause == Cause::Set;
                self.feed.missed(guest.host_tsc())
            }
        };
        if cause == Cause::Slept {
            // The TSC may have been reset and be beyond its last reading again.
            self.counter_lost = true;
            guest.request_clock_updates();
        }
        if self.counter_lost && !known_lost {
            guest.lose_counter();
        }
        let update = if self.counter_lost || self.line_lost {
            Update { line: None, status: ClockStatus::Unreliable, ..update }
        } else {
            update
        };
        if disrupted {
            self.disrupt();
        }
        self.publish(guest, &update);
        // Not before: whoever reads the log may be slow.
        if let Some(by_ns) = stepped_by_ns {
            tracing::info!(by_ns, "the host's clock was stepped");
        }
        guest.check_kvm_clock();
        self.reading_due = self.next_reading(guest.host_tsc());
        self.keep_wallclock(guest, update.tai_offset);
        disrupted
    }

    /// Does what is due at `host_tsc`: a reading, or the wallclock alone.
    pub(super) fn turn(&mut self, guest: &dyn ClockedGuest) {
        let now = guest.host_tsc();
        if reached(self.reading_due, now) {
            self.refresh(guest, Cause::Due);
        } else if reached(self.wallclock_due, now) {
            self.keep_wallclock(guest, self.published.update.tai_offset);
        }
    }

    /// Host ticks from `host_tsc` until something is due.
    pub(super) fn ticks_to_turn(&self, host_tsc: u64) -> u64 {
        let until = |due: u64| {
            if reached(due, host_tsc) { 0 } else { due.wrapping_sub(host_tsc) }
        };
        until(self.reading_due).min(until(self.wallclock_due))
    }

    /// The guest was moved, and has seen that much before. With `id`, its new
    /// generation identifier, it is another copy of itself.
    pub(super) fn go_on(
        &mut self,
        guest: &dyn ClockedGuest,
        seen: Seen,
        error_ns: u64,
        id: Option<[u8; 16]>,
    ) -> Result<(), PageError> {
        if let Some(page) = &mut self.page {
            page.clock.go_on(seen, error_ns);
            self.counts.disruptions += 1;
            if let Some(id) = id {
                publish_generation_id(&page.memory.memory(), page.generation_gpa, id)?;
                page.clock.new_generation();
                guest.notify_generation();
            }
        }
        self.refresh(guest, Cause::Due);
        Ok(())
    }

    /// The next page tells of a disruption.
    pub(super) fn disrupt(&mut self) {
        self.counts.disruptions += 1;
        if let Some(page) = &mut self.page {
            page.clock.disrupt();
        }
    }

    fn read(&mut self) -> Result<crate::clock::tai::HostReading, PairError> {
        self.asked = self.source.kind();
        let first = self.source.read();
        let Err(error) = first else { return first };
        self.counts.missed_readings += 1;
        let Some(second) = &mut self.second else { return Err(error) };
        tracing::debug!(%error, "asking the second source");
        let reading = second.read();
        if reading.is_ok() {
            self.asked = second.kind();
        }
        reading
    }

    fn publish(&mut self, guest: &dyn ClockedGuest, update: &Update) {
        if let Some(page) = &mut self.page {
            match page.clock.publish(&page.memory.memory(), update) {
                Ok(news) => {
                    self.published.host_tsc = guest.host_tsc();
                    self.counts.page_updates += 1;
                    if news {
                        guest.notify();
                    }
                }
                // Reserved memory of the machine's own: it is there.
                Err(error) => tracing::error!(%error, "the VMClock page is not written"),
            }
            self.published.disruption_marker = page.clock.disruption_marker();
        }
        self.published.update = *update;
        self.published.host_maxerror_ns = self.feed.sync().maxerror_ns;
    }

    fn next_reading(&self, now: u64) -> u64 {
        let Some(line) = self.feed.host_line() else {
            return now.wrapping_add(RETRY_NS); // at least 1 GHz or not, it is soon
        };
        if self.counter_lost || self.line_lost {
            return now.wrapping_add(RETRY_NS);
        }
        let ticks = |ns: u64| line.period().ticks_to_reach((u128::from(ns) << 64) / 1_000_000_000);
        let (least, most) = (ticks(LEAST_NS), ticks(MOST_NS));
        let grown = self.feed.ticks_to_refresh(self.settings.growth_ns).unwrap_or(least);
        let due = line.base().wrapping_add(grown);
        // A line that was not renewed is due already: its source is tried again soon.
        let wait = if reached(due, now) { ticks(RETRY_NS) } else { due.wrapping_sub(now) };
        now.wrapping_add(wait.clamp(least, most))
    }

    /// Lets the wallclock follow the line, and writes it where it is off.
    fn keep_wallclock(&mut self, guest: &dyn ClockedGuest, offset: TaiOffset) {
        self.wallclock_due = self.reading_due;
        let Some(tai) = self.published.update.line else {
            guest.follow(None);
            return;
        };
        let bound_ns = self.settings.wallclock_bound_ns;
        let system = guest.system_line();
        let host_now = guest.host_tsc();
        let now = guest.guest_tsc(host_now);
        let lead_ticks = wallclock::lead_ticks(&tai, &system, now, bound_ns);
        guest.follow(Some(UtcLine { tai, offset, lead_ticks }));
        let Some(page) = guest.wallclock() else { return };
        let due = |page| wallclock::ticks_to_rewrite(page, &tai, offset, &system, now, bound_ns);
        // What would be due within the least pause is due now.
        let least = tai.period().ticks_to_reach((u128::from(LEAST_NS) << 64) / 1_000_000_000);
        let mut ticks = due(page);
        if ticks <= least {
            guest.rewrite_wallclock();
            self.counts.wallclock_updates += 1;
            ticks = guest.wallclock().map_or(u64::MAX, due);
        }
        // A page that can not be right, as before 1970, is not tried without end.
        self.wallclock_due = host_now.wrapping_add(ticks.clamp(least, u64::MAX >> 2));
    }
}

/// Whether counter value `due` lies at or before `now`, the nearer way round.
const fn reached(due: u64, now: u64) -> bool {
    now.wrapping_sub(due).cast_signed() >= 0
}
