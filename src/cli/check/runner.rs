//! Runs a cell as a process of its own: its crash ends no other cell, its hang
//! ends when its time does, and it does not outlive the check.

#![expect(unsafe_code, reason = "a child that dies with its parent")]

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::record::{Process, Record};

/// What a guest prints beyond this is dropped.
const MOST_LINES: usize = 100_000;
const MOST_MESSAGES: u64 = 1 << 20;

/// Runs `arguments` of this program and takes in what it tells.
///
/// # Errors
/// Where no process can be made.
pub fn run(arguments: &[OsString], timeout: Duration) -> io::Result<Record> {
    let began = Instant::now();
    let mut child = spawn(arguments)?;
    let messages = child.stderr.take().map(|stderr| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            // What could be read is all there is.
            let _ = stderr.take(MOST_MESSAGES).read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect::<Vec<_>>()
        })
    });
    let (sender, lines) = mpsc::channel();
    let reader = child.stdout.take().map(|stdout| {
        thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n') {
                let Ok(line) = line else { return };
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        })
    });
    let mut record = Record::new();
    let timed_out = loop {
        match lines.recv_timeout(timeout.saturating_sub(began.elapsed())) {
            Ok(line) if record.console.len() < MOST_LINES => record.hear(&line),
            Ok(_) => {}
            Err(RecvTimeoutError::Disconnected) => break false,
            Err(RecvTimeoutError::Timeout) => break true,
        }
        if began.elapsed() >= timeout {
            break true;
        }
    };
    // Its output has ended, so it has, or is about to: unless it hangs.
    let status = if timed_out { None } else { wait_until(&mut child, began + timeout)? };
    record.process = match status {
        Some(status) if status.code() == Some(0) => Process::Exited,
        Some(status) => Process::Broke(match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, signal) => format!("signal {}", signal.unwrap_or(0)),
        }),
        None => {
            child.kill()?;
            child.wait()?;
            Process::TimedOut(timeout)
        }
    };
    drop(lines);
    if let Some(reader) = reader {
        let _ = reader.join();
    }
    if let Some(messages) = messages {
        record.messages.extend(messages.join().unwrap_or_default());
    }
    record.took = began.elapsed();
    Ok(record)
}

fn spawn(arguments: &[OsString]) -> io::Result<Child> {
    let parent = std::process::id();
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("kvm-xen")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let die_with_parent = move || {
        // SAFETY: takes numbers alone.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: takes nothing.
        let now = unsafe { libc::getppid() };
        // The parent may have gone before it was asked for.
        if u32::try_from(now) != Ok(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls that signal handlers may
    // make too; no allocation, no lock.
    unsafe { command.pre_exec(die_with_parent) };
    command.spawn()
}

fn wait_until(child: &mut Child, end: Instant) -> io::Result<Option<std::process::ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(10));
    }
}
