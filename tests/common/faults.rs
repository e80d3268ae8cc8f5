//! Counts cases in which something was broken on purpose, across test programs.

use std::fs;
use std::path::Path;

/// `cases` of a test are through. `scripts/test` adds up what all of them leave.
pub fn counted(test: &str, cases: usize) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults");
    fs::create_dir_all(&directory).expect("a directory for the counts");
    fs::write(directory.join(test), format!("{cases}\n")).expect("a count is written");
    println!("fault cases: {test} {cases}");
}
