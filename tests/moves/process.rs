//! A kvm-xen in a process of its own, and what it says.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The one that was built for this test, or in the nested host the one in PATH.
fn kvm_xen() -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_kvm-xen"));
    if built.exists() { built.to_owned() } else { PathBuf::from("kvm-xen") }
}

/// Waits for what has to come, on a machine that may be slow.
pub fn eventually(what: &str, happens: impl FnMut() -> bool) {
    wait(|| what.to_owned(), happens);
}

fn wait(what: impl Fn() -> String, mut happens: impl FnMut() -> bool) {
    let began = Instant::now();
    while !happens() {
        assert!(began.elapsed() < Duration::from_secs(60), "not within 60 s: {}", what());
        thread::sleep(Duration::from_millis(5));
    }
}

/// Killed when it is dropped.
pub struct Process {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Its output lies in `directory`, by its `name`.
    pub fn start(directory: &Path, name: &str, arguments: &[&str]) -> Self {
        let [stdout, stderr] = ["out", "err"].map(|kind| directory.join(format!("{name}.{kind}")));
        let child = Command::new(kvm_xen())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(File::create(&stdout).expect("a file"))
            .stderr(File::create(&stderr).expect("a file"))
            .spawn()
            .expect("the binary runs");
        Self { name: name.to_owned(), child, stdout, stderr }
    }

    /// What it has printed.
    pub fn out(&self) -> String {
        std::fs::read_to_string(&self.stdout).expect("text")
    }

    /// What it has said to standard error.
    pub fn err(&self) -> String {
        std::fs::read_to_string(&self.stderr).expect("text")
    }

    /// Waits until it has printed `text`.
    pub fn says(&self, text: &str) {
        wait(|| format!("{text:?}: {}", self.all()), || self.out().contains(text));
    }

    /// Waits for its end, which has this status; how long that took.
    pub fn ends(&mut self, status: i32) -> Duration {
        let began = Instant::now();
        while self.child.try_wait().expect("a child").is_none() {
            assert!(began.elapsed() < Duration::from_secs(60), "no end: {}", self.all());
            thread::sleep(Duration::from_millis(5));
        }
        let ended = self.child.wait().expect("a child");
        assert_eq!(ended.code(), Some(status), "{}", self.all());
        began.elapsed()
    }

    /// The same, and it has said one line to standard error, with `text` in it.
    pub fn ends_with_a_line(&mut self, status: i32, text: &str) -> Duration {
        let took = self.ends(status);
        let said = self.err();
        assert!(said.lines().count() == 1 && said.contains(text), "{text:?}: {}", self.all());
        took
    }

    /// By SIGKILL; it has ended when this is back.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child");
        self.child.wait().expect("a child");
    }

    /// Everything that it said, for people.
    pub fn all(&self) -> String {
        format!("{}:\n{}{}", self.name, self.out(), self.err())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
