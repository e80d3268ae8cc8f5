//! `/proc/interrupts`, as far as Xen's events show there.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;

/// How often each kind of event has come to each CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Kind (`hyp`, `timer`, `resched`, `callfunc`, `callfuncsingle`, …), then
    /// one number for each CPU of the table's heading.
    kinds: BTreeMap<String, Vec<u64>>,
}

impl Counts {
    /// As they stand now.
    pub fn read() -> io::Result<Self> {
        fs::read_to_string("/proc/interrupts").map(|text| Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        let cpus = lines.next().unwrap_or("").split_whitespace().count();
        let mut counts = Self::default();
        for line in lines {
            let Some((label, rest)) = line.split_once(':') else { continue };
            let mut words = rest.split_whitespace();
            let numbers: Vec<u64> =
                words.by_ref().take(cpus).map_while(|word| word.parse().ok()).collect();
            let Some(kind) = kind(label.trim(), rest) else { continue };
            let sums = counts.kinds.entry(kind).or_insert_with(|| vec![0; cpus]);
            sums.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number);
        }
        counts
    }

    /// What came since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let kinds = self.kinds.iter().map(|(kind, now)| {
            let before = earlier.kinds.get(kind);
            let before = before.into_iter().flatten().copied().chain(std::iter::repeat(0));
            let grown = now.iter().zip(before).map(|(now, before)| now.saturating_sub(before));
            (kind.clone(), grown.collect())
        });
        Self { kinds: kinds.collect() }
    }

    /// One kind's sum over the CPUs; `None` if the kernel shows no such row.
    pub fn total(&self, kind: &str) -> Option<u64> {
        self.kinds.get(kind).map(|counts| counts.iter().sum())
    }
}

/// `hyp` for the upcalls' own row; for an event channel that belongs to a CPU
/// the name of its handler without the CPU's number.
fn kind(label: &str, rest: &str) -> Option<String> {
    if label == "HYP" {
        return Some("hyp".to_owned());
    }
    if !rest.split_whitespace().any(|word| word.starts_with("xen-percpu")) {
        return None;
    }
    let name = rest.split_whitespace().last()?.trim_end_matches(|c: char| c.is_ascii_digit());
    let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    plain.then(|| name.to_owned())
}

impl fmt::Display for Counts {
    /// `kind=CPU0,CPU1,…` for each kind.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (kind, counts)) in self.kinds.iter().enumerate() {
            let counts: Vec<String> = counts.iter().map(u64::to_string).collect();
            write!(f, "{}{kind}={}", if at == 0 { "" } else { " " }, counts.join(","))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "           CPU0       CPU1
   4:        300          0  IO-APIC   4-edge      ttyS0
  24:       1000          0  xen-percpu  -virq     timer0
  25:         10          1  xen-percpu  -ipi      resched0
  31:          0       2000  xen-percpu    -virq     timer1
  32:          0         20  xen-percpu    -ipi      resched1
  40:          7          0  xen-dyn    -event     xenbus
 NMI:          0          0  Non-maskable interrupts
 HYP:       1100       2100  Hypervisor callback interrupts
 ERR:          0
";

    #[test]
    fn rows_of_all_cpus_are_added_up() {
        let counts = Counts::parse(TABLE);
        assert_eq!(counts.to_string(), "hyp=1100,2100 resched=10,21 timer=1000,2000");
        assert_eq!(counts.total("timer"), Some(3000));
        assert_eq!(counts.total("callfunc"), None);
    }

    #[test]
    fn differences_are_by_cpu() {
        let earlier = Counts::parse(TABLE);
        let later = Counts::parse(&TABLE.replace("2100", "2150").replace("1000", "1005"));
        assert_eq!(later.since(&earlier).to_string(), "hyp=0,50 resched=0,0 timer=5,0");
        assert_eq!(Counts::parse("").since(&earlier).to_string(), "");
    }
}
