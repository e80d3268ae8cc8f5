//! Leap seconds, as the host tells of them.

use super::reading::{HostLeap, HostSync};
use super::{Tai, TaiOffset};

/// Seconds in a day of UTC without a leap second.
pub(crate) const DAY: i64 = 86_400;

/// Whether a second is inserted into UTC or left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeapKind {
    /// 23:59:60 happens.
    Positive,
    /// 23:59:59 does not.
    Negative,
}

/// One leap second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeapSecond {
    /// Whether it is inserted.
    pub kind: LeapKind,
    /// The midnight after it, in UTC seconds since 1970 (a multiple of 86 400).
    pub utc_midnight: i64,
    /// TAI − UTC before it, s.
    pub offset_before: i16,
}

impl LeapSecond {
    /// TAI − UTC after it, s.
    #[must_use]
    pub const fn offset_after(self) -> i16 {
        match self.kind {
            LeapKind::Positive => self.offset_before.saturating_add(1),
            LeapKind::Negative => self.offset_before.saturating_sub(1),
        }
    }

    /// TAI at the midnight after it.
    #[must_use]
    pub fn tai_midnight(self) -> Tai {
        Tai::new(self.utc_midnight.saturating_add(self.offset_after().into()), 0)
    }

    /// TAI at which 23:59:60 begins, or would have begun where it is left out.
    #[must_use]
    pub fn tai_start(self) -> Tai {
        match self.kind {
            LeapKind::Positive => self.tai_midnight().saturating_add_sec(-1),
            LeapKind::Negative => self.tai_midnight(),
        }
    }
}

/// VMClock's `leap_indicator`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum LeapIndicator {
    /// No leap second near.
    #[default]
    None,
    /// One will be inserted.
    BeforePositive,
    /// One will be left out.
    BeforeNegative,
    /// 23:59:60 is under way.
    During,
    /// One was inserted within the last day.
    AfterPositive,
    /// One was left out within the last day.
    AfterNegative,
}

/// Follows the host through a leap second.
///
/// Linux puts one at the end of the UTC day in which it was told so, and forgets
/// it as soon as a time daemon clears the order. The indicator stays for a day,
/// so that a guest that smears can finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LeapTracker {
    leap: Option<LeapSecond>,
}

impl LeapTracker {
    /// None known.
    #[must_use]
    pub const fn new() -> Self {
        Self { leap: None }
    }

    /// The leap second that is near, before or behind.
    #[must_use]
    pub const fn leap(&self) -> Option<LeapSecond> {
        self.leap
    }

    /// Takes one reading of the host into account and gives the indicator.
    pub fn observe(&mut self, now: Tai, sync: &HostSync) -> LeapIndicator {
        let offset = sync.tai_offset.seconds();
        let utc = now.saturating_add_sec(-i64::from(offset)).sec();
        match sync.leap {
            HostLeap::Insert => self.leap = Some(ahead(LeapKind::Positive, utc, offset)),
            HostLeap::Delete => self.leap = Some(ahead(LeapKind::Negative, utc, offset)),
            // A host may have been found only after the order.
            HostLeap::InProgress if self.leap.is_none() => {
                let before = offset.saturating_sub(1);
                let utc_midnight = utc.div_euclid(DAY).saturating_add(1).saturating_mul(DAY);
                self.leap = Some(LeapSecond {
                    kind: LeapKind::Positive,
                    utc_midnight,
                    offset_before: before,
                });
            }
            HostLeap::InProgress | HostLeap::Over => {}
            HostLeap::None => {
                // Taken back before it came, or over for a day.
                let stays = self.leap.is_some_and(|leap| {
                    happened(leap, sync.tai_offset)
                        && now < leap.tai_midnight().saturating_add_sec(DAY)
                });
                if !stays {
                    self.leap = None;
                }
            }
        }
        self.indicator(now)
    }

    /// The indicator at `now`, without a new reading.
    #[must_use]
    pub fn indicator(&self, now: Tai) -> LeapIndicator {
        let Some(leap) = self.leap else { return LeapIndicator::None };
        let after = now >= leap.tai_midnight();
        if now >= leap.tai_midnight().saturating_add_sec(DAY) {
            return LeapIndicator::None;
        }
        match leap.kind {
            LeapKind::Positive if after => LeapIndicator::AfterPositive,
            LeapKind::Positive if now >= leap.tai_start() => LeapIndicator::During,
            LeapKind::Positive => LeapIndicator::BeforePositive,
            LeapKind::Negative if after => LeapIndicator::AfterNegative,
            LeapKind::Negative => LeapIndicator::BeforeNegative,
        }
    }
}

/// The leap second at the end of the UTC day of `utc`.
fn ahead(kind: LeapKind, utc: i64, offset_before: i16) -> LeapSecond {
    let utc_midnight = utc.div_euclid(DAY).saturating_add(1).saturating_mul(DAY);
    LeapSecond { kind, utc_midnight, offset_before }
}

/// True when the host's offset is the one after the leap second.
fn happened(leap: LeapSecond, offset: TaiOffset) -> bool {
    offset.seconds() == leap.offset_after()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDNIGHT: i64 = 20_000 * DAY;

    fn sync(leap: HostLeap, offset: i16) -> HostSync {
        HostSync { leap, tai_offset: TaiOffset::Known(offset), ..HostSync::default() }
    }

    fn tai(utc: i64, offset: i64) -> Tai {
        Tai::new(utc + offset, 0)
    }

    #[test]
    fn an_inserted_second_from_order_to_the_day_after() {
        let mut tracker = LeapTracker::new();
        let mut at = |now, leap, offset| tracker.observe(now, &sync(leap, offset));
        let before = MIDNIGHT - 10_000;
        assert_eq!(at(tai(before - 1, 37), HostLeap::None, 37), LeapIndicator::None);
        assert_eq!(at(tai(before, 37), HostLeap::Insert, 37), LeapIndicator::BeforePositive);
        let last = tai(MIDNIGHT, 37).saturating_add(-1);
        assert_eq!(at(last, HostLeap::Insert, 37), LeapIndicator::BeforePositive);
        // 23:59:60: Linux has set UTC back to 23:59:59 and counts 38.
        assert_eq!(at(tai(MIDNIGHT, 37), HostLeap::InProgress, 38), LeapIndicator::During);
        assert_eq!(at(tai(MIDNIGHT, 38), HostLeap::Over, 38), LeapIndicator::AfterPositive);
        assert_eq!(at(tai(MIDNIGHT + 5, 38), HostLeap::None, 38), LeapIndicator::AfterPositive);
        let next = tai(MIDNIGHT + DAY, 38);
        assert_eq!(at(next.saturating_add(-1), HostLeap::None, 38), LeapIndicator::AfterPositive);
        assert_eq!(at(next, HostLeap::Over, 38), LeapIndicator::None);
    }

    #[test]
    fn a_deleted_second() {
        let mut tracker = LeapTracker::new();
        let mut at = |now, leap, offset| tracker.observe(now, &sync(leap, offset));
        assert_eq!(at(tai(MIDNIGHT - 9, 37), HostLeap::Delete, 37), LeapIndicator::BeforeNegative);
        // 23:59:58 is the last second, and 36 counts from then on.
        assert_eq!(at(tai(MIDNIGHT, 36), HostLeap::Over, 36), LeapIndicator::AfterNegative);
    }

    #[test]
    fn an_order_taken_back_is_forgotten() {
        let mut tracker = LeapTracker::new();
        tracker.observe(tai(MIDNIGHT - 9, 37), &sync(HostLeap::Insert, 37));
        let now = tai(MIDNIGHT - 8, 37);
        assert_eq!(tracker.observe(now, &sync(HostLeap::None, 37)), LeapIndicator::None);
        assert_eq!(tracker.leap(), None);
    }

    #[test]
    fn found_in_the_middle() {
        let mut tracker = LeapTracker::new();
        let now = tai(MIDNIGHT, 37);
        assert_eq!(tracker.observe(now, &sync(HostLeap::InProgress, 38)), LeapIndicator::During);
        let leap = tracker.leap().unwrap();
        assert_eq!((leap.utc_midnight, leap.offset_before), (MIDNIGHT, 37));
    }

    #[test]
    fn hosts_at_the_ends_of_time_do_no_harm() {
        for now in [Tai::from_units(i128::MIN), Tai::from_units(i128::MAX)] {
            for leap in [HostLeap::Insert, HostLeap::Delete, HostLeap::InProgress, HostLeap::Over] {
                let mut tracker = LeapTracker::new();
                let _ = tracker.observe(now, &sync(leap, i16::MAX));
                let _ = tracker.observe(now, &sync(leap, i16::MIN));
            }
        }
    }
}
