//! A machine with the built-in guest, in a process of its own.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::request;

/// The binary: the one that was built for this test, or in the nested host the
/// one in PATH.
pub fn kvm_xen() -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_kvm-xen"));
    if built.exists() { built.to_owned() } else { PathBuf::from("kvm-xen") }
}

/// A running machine; it is killed if the test does not wait for its end.
pub struct Machine {
    child: Child,
    directory: tempfile::TempDir,
    /// Its control socket.
    pub socket: PathBuf,
}

impl Machine {
    /// The guest reads its clocks for `seconds` on `cpus`, and powers off.
    pub fn start(cpus: u32, seconds: u32) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("api");
        let kernel = directory.path().join("clock");
        std::fs::write(&kernel, kvm_xen::vmm::demo_guest::CLOCK).expect("the guest");
        let child =
            Self::command(&kernel, &socket, cpus, seconds).spawn().expect("the binary runs");
        let mut machine = Self { child, directory, socket };
        machine
            .wait_for("the socket answers", |machine| UnixStream::connect(&machine.socket).is_ok());
        machine
    }

    fn command(kernel: &Path, socket: &Path, cpus: u32, seconds: u32) -> Command {
        let mut command = Command::new(kvm_xen());
        command
            .args(["run", "--memory", "64M", "--cpus", &cpus.to_string(), "--kernel"])
            .arg(kernel)
            .args(["--cmdline", &format!("seconds={seconds}"), "--api-socket"])
            .arg(socket)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn wait_for(&mut self, what: &str, ready: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !ready(self) {
            if let Some(status) = self.child.try_wait().expect("a child") {
                let mut error = String::new();
                let _ = self.child.stderr.take().map(|mut from| from.read_to_string(&mut error));
                panic!("{what}: the machine ended with {status}: {error}");
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "{what}: not in 60 s");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// A second machine that wants this one's socket.
    pub fn other_on_the_same_socket(&self) -> Output {
        let kernel = self.directory.path().join("clock");
        Self::command(&kernel, &self.socket, 1, 1).output().expect("the binary runs")
    }

    /// Kills this machine, and runs another one on its socket to its end.
    pub fn killed_and_another_on_its_socket(mut self) -> (PathBuf, Output) {
        self.child.kill().expect("a child");
        self.child.wait().expect("a child");
        assert!(self.socket.exists());
        (self.socket.clone(), self.other_on_the_same_socket())
    }

    /// A client that says nothing.
    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).expect("a connection")
    }

    /// The JSON at `path`.
    pub fn get(&self, path: &str) -> Value {
        let answer = request(&self.socket, "GET", path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        assert!(answer.head.contains("Content-Type: application/json"), "{}", answer.head);
        serde_json::from_str(&answer.body).expect("JSON")
    }

    /// What the host has counted of each vCPU thread's CPU time, ns.
    pub fn vcpu_work_ns(&self) -> Vec<u64> {
        let tasks = format!("/proc/{}/task", self.child.id());
        let mut spent: Vec<(String, u64)> = std::fs::read_dir(tasks)
            .expect("threads")
            .filter_map(|task| {
                let task = task.ok()?.path();
                let name = std::fs::read_to_string(task.join("comm")).ok()?;
                let spent = std::fs::read_to_string(task.join("schedstat")).ok()?;
                let spent = spent.split_whitespace().next()?.parse().ok()?;
                name.starts_with("vcpu").then_some((name, spent))
            })
            .collect();
        spent.sort();
        spent.into_iter().map(|(_, spent)| spent).collect()
    }

    /// Waits until a vCPU works.
    pub fn await_work(&self) {
        let begin = Instant::now();
        // The threads may not be there yet.
        let mut before = self.vcpu_work_ns();
        loop {
            assert!(begin.elapsed() < Duration::from_secs(30), "no vCPU works");
            thread::sleep(Duration::from_millis(5));
            let now = self.vcpu_work_ns();
            if now.len() > before.len() {
                before = now;
            } else if now.iter().zip(&before).any(|(now, then)| now > then) {
                return;
            }
        }
    }

    /// Waits for an orderly end: what the guest printed.
    pub fn ends_well(mut self) -> String {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(begin.elapsed() < Duration::from_secs(120), "no end");
            thread::sleep(Duration::from_millis(10));
        };
        let read = |from: Option<&mut dyn Read>| {
            let mut text = String::new();
            if let Some(from) = from {
                from.read_to_string(&mut text).expect("text");
            }
            text
        };
        let console = read(self.child.stdout.as_mut().map(|from| from as &mut dyn Read));
        let error = read(self.child.stderr.as_mut().map(|from| from as &mut dyn Read));
        assert_eq!(status.code(), Some(0), "{console}{error}");
        console
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
