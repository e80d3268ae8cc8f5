//! How far off samples were, for as many as come: a histogram of fixed size.

/// Values below this have a bucket each.
const EXACT: u64 = 64;
/// Buckets for each power of two from there on.
const STEPS: u64 = 32;
/// 58 powers of two follow.
const BUCKETS: usize = 64 + 58 * 32;

/// Counts of values, each known to one part in 32, rounded up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    counts: Vec<u64>,
    total: u64,
    largest: u64,
}

impl Default for Spread {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, largest: 0 }
    }
}

impl Spread {
    /// One more value.
    pub fn add(&mut self, value: u64) {
        if let Some(count) = self.counts.get_mut(bucket(value)) {
            *count += 1;
        }
        self.total += 1;
        self.largest = self.largest.max(value);
    }

    /// The largest value.
    pub const fn largest(&self) -> u64 {
        self.largest
    }

    /// What `percent` of the values do not exceed; 0 where there are none.
    pub fn percentile(&self, percent: u64) -> u64 {
        let wanted = (u128::from(self.total) * u128::from(percent)).div_ceil(100);
        let mut seen = 0u128;
        for (index, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= wanted && *count > 0 {
                return greatest_of(index).min(self.largest);
            }
        }
        self.largest
    }
}

fn bucket(value: u64) -> usize {
    if value < EXACT {
        return usize::try_from(value).unwrap_or(0);
    }
    let power = u64::from(value.ilog2());
    let step = (value >> (power - 5)) - STEPS;
    usize::try_from(EXACT + (power - 6) * STEPS + step).unwrap_or(BUCKETS)
}

/// The greatest value of a bucket.
fn greatest_of(index: usize) -> u64 {
    let index = u64::try_from(index).unwrap_or(u64::MAX);
    let Some(beyond) = index.checked_sub(EXACT) else { return index };
    let (power, step) = (beyond / STEPS + 6, beyond % STEPS);
    u64::try_from(((u128::from(STEPS + step) + 1) << (power - 5)) - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_lies_in_its_bucket() {
        for power in 0..64u32 {
            for value in
                [1u64 << power, (1 << power) + (1 << power) / 3, ((1 << power) - 1) * 2 + 1]
            {
                let index = bucket(value);
                assert!(index < BUCKETS, "{value}");
                let most = greatest_of(index);
                assert!(most >= value && most - value <= value / 32, "{value} {most}");
                assert!(index == 0 || greatest_of(index - 1) < value, "{value}");
            }
        }
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BUCKETS - 1));
    }

    #[test]
    fn percentiles_are_no_less_than_the_truth() {
        let mut spread = Spread::default();
        assert_eq!((spread.percentile(99), spread.largest()), (0, 0));
        for value in 1..=1_000u64 {
            spread.add(value);
        }
        for (percent, truth) in [(0, 1), (1, 10), (50, 500), (99, 990), (100, 1_000)] {
            let found = spread.percentile(percent);
            assert!(found >= truth && found <= truth + truth / 32, "{percent} {found}");
        }
        spread.add(u64::MAX);
        assert_eq!((spread.percentile(100), spread.largest()), (u64::MAX, u64::MAX));
    }
}
