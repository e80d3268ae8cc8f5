use clap::Parser;

use super::record::Process;
use super::*;
use crate::cli::args::{Cli, Command};

fn args(words: &[&str]) -> CheckArgs {
    let words = ["kvm-xen", "check", "vmlinuz"].iter().chain(words);
    match Cli::try_parse_from(words).unwrap().command {
        Command::Check(args) => args,
        other => panic!("{other:?}"),
    }
}

fn names(words: &[&str]) -> Vec<String> {
    chosen(&args(words)).unwrap().iter().map(|entry| entry.cell.to_string()).collect()
}

#[test]
fn cells_are_chosen_by_pattern() {
    assert_eq!(names(&[]).len(), matrix::matrix(false).len());
    assert_eq!(names(&["--all"]).len(), matrix::matrix(true).len());
    assert_eq!(names(&["--cells", "tsc,base"]), ["base", "tsc"]);
    assert_eq!(names(&["--cells", "base", "--cells", "base"]), ["base"]);
    // Named outright, a cell need not be in the covering set.
    assert_eq!(names(&["--cells", "4-vcpus+2-level+tsc"]), ["4-vcpus+2-level+tsc"]);
    let few = names(&["--cells", "*tsc*"]);
    assert!(few.len() < names(&["--cells", "*tsc*", "--all"]).len(), "{few:?}");
    let error = chosen(&args(&["--cells", "base,bass"])).unwrap_err().to_string();
    assert!(error.contains("\"bass\"") && error.contains("--list"), "{error}");
}

#[test]
fn a_cells_process_understands_what_it_is_told() {
    let args = args(&["--initrd", "i", "--append", "-x y", "--seconds", "7"]);
    for entry in matrix::matrix(true) {
        let told = cell_args(&args, &entry.cell);
        let words = [OsString::from("kvm-xen")].into_iter().chain(arguments(&told));
        let understood = match Cli::try_parse_from(words).unwrap().command {
            Command::CheckCell(understood) => understood,
            other => panic!("{other:?}"),
        };
        assert_eq!(format!("{told:?}"), format!("{understood:?}"));
        assert!(told.cmdline.contains("agent.seconds=7") && told.cmdline.ends_with("-x y"));
        assert!(told.cmdline.contains("rdinit=/kvm-xen/agent"));
        assert_eq!(told.cmdline.contains("clocksource=tsc"), entry.cell.tsc);
    }
}

fn told(process: Process, console: &str) -> Record {
    Record {
        console: console.lines().map(str::to_owned).collect(),
        messages: vec!["kvm-xen: a message".to_owned()],
        process,
        ..Record::new()
    }
}

#[test]
fn a_row_shows_what_was_wrong_and_the_last_lines() {
    let console: String = (0..100).map(|n| format!("line {n}\n")).collect();
    let record = told(Process::TimedOut(Duration::from_secs(5)), &console);
    let outcome = judged(&args(&[]), &Cell::BASE, &record);
    assert_eq!(outcome.verdict, Verdict::Fails);
    let row = row(&outcome);
    for part in ["FAIL  base", "init: not reached", "killed after 5 s", "| line 99", "a message"] {
        assert!(row.contains(part), "{row}");
    }
    assert!(!row.contains("line 80"), "{row}");
}

#[test]
fn logs_are_kept_where_asked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let args = args(&["--logs", path]);
    let record = told(Process::Exited, "first\nsecond");
    let mut outcome = judged(&args, &Cell::BASE, &record);
    keep_log(&args, &Cell::BASE, &record, 1, &mut outcome);
    keep_log(&args, &Cell::BASE, &record, 2, &mut outcome);
    let first = fs::read_to_string(directory.path().join("base.log")).unwrap();
    assert_eq!(first, "first\nsecond\nkvm-xen: a message\n");
    assert!(outcome.log.as_deref().unwrap().ends_with("base.2.log"));
}
