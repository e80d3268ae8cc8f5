//! TAI − UTC from the table of leap seconds that distributions ship, for a
//! kernel that nobody told.

/// Where Debian's package `tzdata` puts it.
pub const LEAP_TABLE: &str = "/usr/share/zoneinfo/leap-seconds.list";

/// Seconds from 1900, which the table counts from, to 1970.
const NTP_TO_UNIX: i64 = 2_208_988_800;

/// TAI − UTC at a moment, and whether the table vouches for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableOffset {
    /// TAI − UTC, s.
    pub offset: i16,
    /// The moment lies before the table's end of validity.
    pub valid: bool,
}

/// Looks `utc_sec` (since 1970) up in the text of a `leap-seconds.list`: lines
/// of "NTP seconds, offset", `#@` and the end of validity, comments. `None`
/// where no line applies; lines that are none are passed over.
#[must_use]
pub fn table_offset(text: &str, utc_sec: i64) -> Option<TableOffset> {
    let mut offset = None;
    let mut valid = false;
    for line in text.lines() {
        if let Some(expiry) = line.strip_prefix("#@") {
            let expiry = expiry.trim().parse::<i64>().ok();
            valid = expiry.is_some_and(|expiry| utc_sec < expiry.saturating_sub(NTP_TO_UNIX));
            continue;
        }
        let mut fields = line.split('#').next().unwrap_or("").split_whitespace();
        let (Some(from), Some(seconds)) = (fields.next(), fields.next()) else { continue };
        let (Ok(from), Ok(seconds)) = (from.parse::<i64>(), seconds.parse::<i16>()) else {
            continue;
        };
        if utc_sec >= from.saturating_sub(NTP_TO_UNIX) {
            offset = Some(seconds);
        }
    }
    offset.map(|offset| TableOffset { offset, valid })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "#\tcomment\n#$\t 3929093563\n#@\t3991593600\n\
        2272060800\t10\t# 1 Jan 1972\n3644697600 36 # 1 Jul 2015\nrubbish\n3692217600\t37\t# 1 Jan 2017\n";

    #[test]
    fn looks_up() {
        let at = |utc| table_offset(TABLE, utc);
        assert_eq!(at(0), None);
        assert_eq!(at(1_483_228_799), Some(TableOffset { offset: 36, valid: true }));
        assert_eq!(at(1_483_228_800), Some(TableOffset { offset: 37, valid: true }));
        assert_eq!(at(1_782_604_800), Some(TableOffset { offset: 37, valid: false }));
        assert_eq!(table_offset("", 5), None);
        assert_eq!(table_offset("#@ x\n1 x\n-9223372036854775808 3", 5).map(|o| o.offset), Some(3));
    }
}
