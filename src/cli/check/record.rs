//! What a cell's process tells of its guest: one JSON object for each line of its
//! standard output, so that no guest can write what only the machine may say.

use std::time::Duration;

use serde_json::{Value, json};

/// What the machine knew after the guest's end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Whether the guest powered off.
    pub powered_off: bool,
    /// How it ended, in words.
    pub text: String,
    /// Whether KVM wrote the clock pages in the end.
    pub guarded: bool,
    /// Clock pages that were written again by us.
    pub rewrites: u64,
    /// How far KVM's pages stand from the line, in nanoseconds.
    pub deviation_ns: u64,
    /// The wallclock page less the host's UTC, in nanoseconds.
    pub wallclock_error_ns: Option<i64>,
    /// The guest's clock against the line.
    pub agreement: Option<Strayed>,
    /// The guest's CLOCK_REALTIME less the host's, in nanoseconds.
    pub realtime_error_ns: Option<i64>,
}

/// How far a guest's clock strayed from the line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strayed {
    /// Samples that were held against it.
    pub samples: u64,
    /// At least so far, in nanoseconds.
    pub strayed_ns: u64,
    /// What the samples could tell apart, in nanoseconds.
    pub resolution_ns: u64,
}

impl End {
    /// As one line of a cell's output.
    pub fn to_json(&self) -> Value {
        json!({ "end": {
            "powered_off": self.powered_off,
            "text": self.text,
            "guarded": self.guarded,
            "rewrites": self.rewrites,
            "deviation_ns": self.deviation_ns,
            "wallclock_error_ns": self.wallclock_error_ns,
            "agreement": self.agreement.map(|found| json!({
                "samples": found.samples,
                "strayed_ns": found.strayed_ns,
                "resolution_ns": found.resolution_ns,
            })),
            "realtime_error_ns": self.realtime_error_ns,
        }})
    }

    fn from_json(value: &Value) -> Option<Self> {
        let strayed = |found: &Value| {
            Some(Strayed {
                samples: found["samples"].as_u64()?,
                strayed_ns: found["strayed_ns"].as_u64()?,
                resolution_ns: found["resolution_ns"].as_u64()?,
            })
        };
        Some(Self {
            powered_off: value["powered_off"].as_bool()?,
            text: value["text"].as_str()?.to_owned(),
            guarded: value["guarded"].as_bool()?,
            rewrites: value["rewrites"].as_u64()?,
            deviation_ns: value["deviation_ns"].as_u64()?,
            wallclock_error_ns: value["wallclock_error_ns"].as_i64(),
            agreement: strayed(&value["agreement"]),
            realtime_error_ns: value["realtime_error_ns"].as_i64(),
        })
    }
}

/// A console line as a cell's output has it.
pub fn line_to_json(line: &str) -> Value {
    json!({ "line": line })
}

/// How the process of a cell ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Process {
    /// By itself.
    Exited,
    /// With a status that no cell has, or by a signal; in words.
    Broke(String),
    /// It was killed when its time ran out.
    TimedOut(Duration),
}

/// All that is known of a cell that ran.
#[derive(Clone, Debug)]
pub struct Record {
    /// The guest's console.
    pub console: Vec<String>,
    /// What the process wrote to standard error.
    pub messages: Vec<String>,
    /// What the machine said at the end, if it came to that.
    pub end: Option<End>,
    /// How the process ended.
    pub process: Process,
    /// How long it took.
    pub took: Duration,
}

impl Record {
    /// A cell of which nothing is known yet.
    pub const fn new() -> Self {
        Self {
            console: Vec::new(),
            messages: Vec::new(),
            end: None,
            process: Process::Exited,
            took: Duration::ZERO,
        }
    }

    /// Takes in one line of a cell's standard output.
    pub fn hear(&mut self, line: &str) {
        let Ok(value) = serde_json::from_str::<Value>(line) else {
            self.messages.push(line.to_owned());
            return;
        };
        if let Some(line) = value["line"].as_str() {
            self.console.push(line.to_owned());
        } else if let Some(end) = End::from_json(&value["end"]) {
            self.end = Some(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_heard() {
        let end = End {
            powered_off: true,
            text: "the guest powered off".to_owned(),
            guarded: true,
            rewrites: 1,
            deviation_ns: 2,
            wallclock_error_ns: Some(-3),
            agreement: Some(Strayed { samples: 4, strayed_ns: 5, resolution_ns: 6 }),
            realtime_error_ns: Some(7),
        };
        let less = End { wallclock_error_ns: None, agreement: None, ..end.clone() };
        for end in [end, less] {
            let mut record = Record::new();
            record.hear(&end.to_json().to_string());
            assert_eq!(record.end, Some(end));
        }
    }

    #[test]
    fn a_guest_can_not_speak_for_the_machine() {
        let mut record = Record::new();
        let forged = End { powered_off: true, ..End::default() }.to_json().to_string();
        record.hear(&line_to_json(&forged).to_string());
        record.hear("not JSON");
        record.hear("{\"end\": 5}");
        assert_eq!(record.end, None);
        assert_eq!(record.console, [forged]);
        assert_eq!(record.messages, ["not JSON"]);
    }
}
