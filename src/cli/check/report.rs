//! The verdicts for machines: JUnit XML as CI systems read it, and JSON.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::judge::{Check, Outcome};
use super::matrix::Cell;

/// What a cell came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every check holds.
    Holds,
    /// Some do not.
    Fails,
    /// It was not run, or not as what it should have been, and why.
    Skipped(String),
}

impl Verdict {
    const fn name(&self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Fails => "fails",
            Self::Skipped(_) => "skipped",
        }
    }
}

/// A cell and what came of it.
#[derive(Clone, Debug)]
pub struct Outcomes {
    /// The cell.
    pub cell: Cell,
    /// Its verdict.
    pub verdict: Verdict,
    /// Its checks; none if it did not run.
    pub checks: Vec<Check>,
    /// How long it took.
    pub took: Duration,
    /// How many tries there were; 0 if it did not run.
    pub tries: u32,
    /// The kernel's release, if it said so.
    pub release: Option<String>,
    /// The end of its console and of its messages, if it fails.
    pub last_lines: Vec<String>,
    /// Where its whole console is, if it fails and is kept.
    pub log: Option<String>,
}

impl Outcomes {
    /// The checks that do not hold, one line each.
    pub fn faults(&self) -> impl Iterator<Item = String> {
        self.checks
            .iter()
            .filter(|check| check.outcome == Outcome::Fails)
            .map(|check| format!("{}: {}; wanted: {}", check.name, check.got, check.want))
    }
}

/// How many cells came to what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Cells that hold.
    pub hold: usize,
    /// Cells that fail.
    pub fail: usize,
    /// Cells that were skipped.
    pub skipped: usize,
}

/// Counts verdicts.
pub fn count(cells: &[Outcomes]) -> Counts {
    let mut counts = Counts::default();
    for cell in cells {
        match cell.verdict {
            Verdict::Holds => counts.hold += 1,
            Verdict::Fails => counts.fail += 1,
            Verdict::Skipped(_) => counts.skipped += 1,
        }
    }
    counts
}

/// All of it as JSON.
pub fn json(kernel: &str, cells: &[Outcomes]) -> Value {
    let counts = count(cells);
    json!({
        "kvm_xen": env!("CARGO_PKG_VERSION"),
        "kernel": kernel,
        "release": cells.iter().find_map(|cell| cell.release.as_deref()),
        "hold": counts.hold,
        "fail": counts.fail,
        "skipped": counts.skipped,
        "cells": cells.iter().map(cell_json).collect::<Vec<_>>(),
    })
}

fn cell_json(outcome: &Outcomes) -> Value {
    let settings: serde_json::Map<String, Value> = outcome
        .cell
        .settings()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Value::String(value)))
        .collect();
    let checks = outcome.checks.iter().map(|check| {
        json!({
            "name": check.name,
            "outcome": check.outcome.name(),
            "got": check.got,
            "want": check.want,
        })
    });
    json!({
        "name": outcome.cell.to_string(),
        "settings": settings,
        "verdict": outcome.verdict.name(),
        "reason": match &outcome.verdict {
            Verdict::Skipped(why) => Some(why),
            Verdict::Holds | Verdict::Fails => None,
        },
        "milliseconds": u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX),
        "tries": outcome.tries,
        "checks": checks.collect::<Vec<_>>(),
        "last_lines": outcome.last_lines,
        "log": outcome.log,
    })
}

/// All of it as JUnit XML: a test suite for the kernel, a test case for each cell.
pub fn junit(kernel: &str, cells: &[Outcomes]) -> String {
    let counts = count(cells);
    let total: Duration = cells.iter().map(|cell| cell.took).sum();
    let sums = format!(
        "tests=\"{}\" failures=\"{}\" errors=\"0\" skipped=\"{}\" time=\"{}\"",
        cells.len(),
        counts.fail,
        counts.skipped,
        seconds(total)
    );
    let mut cases = String::new();
    for cell in cells {
        cases.push_str(&case(cell));
    }
    let suites = attribute("kvm-xen check");
    let suite = attribute(kernel);
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuites name=\"{suites}\" {sums}>\n  <testsuite name=\"{suite}\" {sums}>\n\
         {cases}  </testsuite>\n</testsuites>\n"
    )
}

fn case(outcome: &Outcomes) -> String {
    let mut xml = format!(
        "    <testcase classname=\"kvm-xen.check\" name=\"{}\" time=\"{}\">\n      <properties>\n",
        attribute(&outcome.cell.to_string()),
        seconds(outcome.took)
    );
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = writeln!(xml, "      {text}");
    };
    for (name, value) in outcome.cell.settings() {
        let value = attribute(&value);
        line(format_args!("  <property name=\"{name}\" value=\"{value}\"/>"));
    }
    line(format_args!("</properties>"));
    match &outcome.verdict {
        Verdict::Holds => {}
        Verdict::Fails => {
            let faults: Vec<String> = outcome.faults().collect();
            let message = attribute(faults.first().map_or("", String::as_str));
            let all = text(&faults.join("\n"));
            line(format_args!("<failure message=\"{message}\">{all}</failure>"));
        }
        Verdict::Skipped(why) => {
            line(format_args!("<skipped message=\"{}\"/>", attribute(why)));
        }
    }
    if !outcome.last_lines.is_empty() {
        let last = text(&outcome.last_lines.join("\n"));
        line(format_args!("<system-out>{last}</system-out>"));
    }
    xml.push_str("    </testcase>\n");
    xml
}

fn seconds(time: Duration) -> String {
    format!("{}.{:03}", time.as_secs(), time.subsec_millis())
}

/// Text between tags. XML 1.0 has no word for most control characters.
fn text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\t' | '\n' => escaped.push(c),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Text of an attribute in double quotes, which has no line ends either.
fn attribute(value: &str) -> String {
    text(value).replace('"', "&quot;").replace(['\t', '\n'], " ")
}

#[cfg(test)]
mod tests;
