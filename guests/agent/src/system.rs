//! What the agent asks of the kernel: file systems, the console, CPUs, the log,
//! and the end.

#![expect(unsafe_code, reason = "system calls that std has no word for")]

use std::ffi::CStr;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Kernel messages up to this level are complaints (KERN_WARNING).
const WARNING: u32 = 4;

/// Where the report goes.
#[derive(Debug)]
pub struct Console(File);

impl From<Console> for Stdio {
    fn from(console: Console) -> Self {
        console.0.into()
    }
}

impl Console {
    /// The console of process 1. The kernel has opened it if the initial
    /// ramdisk holds a node for it; else the device file system is mounted first.
    pub fn open() -> Self {
        // SAFETY: only asks about a descriptor.
        if unsafe { libc::fcntl(1, libc::F_GETFD) } >= 0 {
            return Self::stdout();
        }
        let _ = mount(c"dev", c"/dev", c"devtmpfs");
        OpenOptions::new().write(true).open("/dev/console").map_or_else(|_| Self::stdout(), Self)
    }

    /// Standard output.
    pub fn stdout() -> Self {
        // SAFETY: lives as long as the process; nothing else writes to it.
        Self(unsafe { File::from_raw_fd(1) })
    }

    /// The same one for another thread or program, where there is a descriptor left for it.
    pub fn again(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Writes one line of the report at once, so that the kernel's own messages
    /// do not cut it. A console that fails leaves nobody to tell.
    pub fn line(&mut self, text: fmt::Arguments<'_>) {
        let _ = self.0.write_all(format!("KVMXEN {text}\n").as_bytes());
    }
}

/// Mounts what the report reads. Returns what failed.
pub fn mount_all() -> Vec<String> {
    [(c"dev", c"/dev", c"devtmpfs"), (c"proc", c"/proc", c"proc"), (c"sys", c"/sys", c"sysfs")]
        .into_iter()
        .filter_map(|(source, target, kind)| {
            let error = mount(source, target, kind).err()?;
            // The device file system may have been needed for the console.
            (error.raw_os_error() != Some(libc::EBUSY))
                .then(|| format!("mount {}: {error}", target.to_string_lossy()))
        })
        .collect()
}

fn mount(source: &CStr, target: &CStr, kind: &CStr) -> io::Result<()> {
    if let Ok(path) = target.to_str() {
        // There already, or the mount will say what is wrong.
        let _ = fs::create_dir(path);
    }
    // SAFETY: strings that outlive the call, and no data.
    let result = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A small file's text without its last newline, or `none`.
pub fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "none".to_owned(), |text| text.trim().to_owned())
}

/// CPUs that run, at least 1.
pub fn online_cpus() -> usize {
    // SAFETY: no arguments in memory.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1).max(1)
}

/// Keeps this thread on one CPU; without effect for one that there is not.
pub fn pin_to(cpu: usize) {
    // SAFETY: a set of CPUs is plain bits, all zero is the empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if cpu >= size_of_val(&set) * 8 {
        return;
    }
    // SAFETY: inside the set, checked above.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: reads the set that it borrows; 0 is this thread.
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
}

/// One message of the kernel's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// 0 (emergency) to 7 (debug).
    pub level: u32,
    /// Its first line.
    pub text: String,
}

impl Message {
    /// Whether its level is warning or worse.
    pub const fn is_complaint(&self) -> bool {
        self.level <= WARNING
    }

    /// Reads a log record, `priority,sequence,time,flags;text`; `None` for one
    /// that the kernel did not write itself.
    fn parse(record: &str) -> Option<Self> {
        let (head, text) = record.split_once(';')?;
        let priority: u32 = head.split(',').next()?.parse().ok()?;
        let (facility, level) = (priority >> 3, priority & 7);
        let text = text.lines().next().unwrap_or("").to_owned();
        (facility == 0).then_some(Self { level, text })
    }
}

/// The kernel's own messages since boot, as many as its buffer still holds.
pub fn kernel_log() -> io::Result<Vec<Message>> {
    let mut log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
    let mut record = vec![0; 8192];
    let mut messages = Vec::new();
    loop {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(length) => {
                let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default());
                messages.extend(Message::parse(&text));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // EPIPE: a record was overwritten before it was read; go on with the next.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(messages)
}

/// Loads the modules that an initial ramdisk put into `directory`, in the order
/// of their names. Returns what failed.
pub fn load_modules(directory: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let failed = |path: &std::path::Path| {
        let error = load_module(path).err()?;
        Some(format!("module {}: {error}", path.display()))
    };
    paths.iter().filter_map(|path| failed(path)).collect()
}

fn load_module(path: &std::path::Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: an open descriptor, a string that outlives the call, no flags.
    let status =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How the guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndMode {
    /// Orderly power-off.
    PowerOff,
    /// Orderly reboot.
    Reboot,
    /// A kernel panic.
    Crash,
    /// `/bin/sh` in the agent's place.
    Shell,
}

impl EndMode {
    /// By the parameter's value; anything unknown powers off.
    pub fn from_name(name: &str) -> Self {
        match name {
            "reboot" => Self::Reboot,
            "crash" => Self::Crash,
            "shell" => Self::Shell,
            _ => Self::PowerOff,
        }
    }
}

/// Ends the guest; returns only if that failed.
pub fn end(mode: EndMode) -> io::Error {
    let command = match mode {
        EndMode::PowerOff => libc::RB_POWER_OFF,
        EndMode::Reboot => libc::RB_AUTOBOOT,
        EndMode::Crash => {
            return match fs::write("/proc/sysrq-trigger", "c") {
                Ok(()) => io::Error::other("the kernel ignored sysrq c"),
                Err(error) => error,
            };
        }
        EndMode::Shell => return Command::new("/bin/sh").arg("-i").exec(),
    };
    // The kernel's last words go to the port at once, past what the terminal still holds,
    // and would come in the middle of it.
    for descriptor in 0..3 {
        // SAFETY: takes a number; one that is no terminal's is refused.
        unsafe { libc::tcdrain(descriptor) };
    }
    // SAFETY: nothing is mounted that would have to be written back.
    unsafe { libc::reboot(command) };
    io::Error::last_os_error()
}

#[cfg(test)]
mod tests {
    use super::{EndMode, Message};

    #[test]
    fn only_the_kernels_messages_count() {
        let message = |level, text: &str| Some(Message { level, text: text.to_owned() });
        let cases = [
            ("4,339,140900,-;ACPI: warning\n SUBSYSTEM=acpi\n", message(4, "ACPI: warning")),
            ("3,1,0,-;an error", message(3, "an error")),
            ("6,2,0,-;information", message(6, "information")),
            // Facility 1: a user process, level 2.
            ("10,3,0,-;critical, says init", None),
            ("no record", None),
            ("x,1,0,-;no priority", None),
        ];
        for (record, expected) in cases {
            let parsed = Message::parse(record);
            assert_eq!(parsed, expected, "{record}");
            if let Some(message) = parsed {
                assert_eq!(message.is_complaint(), message.level <= 4, "{record}");
            }
        }
    }

    #[test]
    fn an_unknown_end_powers_off() {
        assert_eq!(EndMode::from_name("shell"), EndMode::Shell);
        assert_eq!(EndMode::from_name("explode"), EndMode::PowerOff);
    }
}
