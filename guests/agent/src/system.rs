//! What the agent asks of the kernel: file systems, the console, CPUs, the log,
//! and the end.

#![expect(unsafe_code, reason = "system calls that std has no word for")]

use std::ffi::CStr;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Kernel messages up to this level are complaints (KERN_WARNING).
const WARNING: u32 = 4;

/// Where the report goes.
#[derive(Debug)]
pub struct Console(File);

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

/// The kernel's own messages of level warning and worse, since boot.
pub fn kernel_warnings() -> io::Result<Vec<String>> {
    let mut log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
    let mut record = vec![0; 8192];
    let mut warnings = Vec::new();
    loop {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(length) => {
                let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default());
                warnings.extend(complaint(&text));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // EPIPE: a record was overwritten before it was read; go on with the next.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(warnings)
}

/// The text of a log record, `priority,sequence,time,flags;text`, if the kernel
/// wrote it and its level is a complaint.
fn complaint(record: &str) -> Option<String> {
    let (head, text) = record.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    let (facility, level) = (priority >> 3, priority & 7);
    (facility == 0 && level <= WARNING)
        .then(|| format!("level={level} {}", text.lines().next().unwrap_or("")))
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
    // SAFETY: nothing is mounted that would have to be written back.
    unsafe { libc::reboot(command) };
    io::Error::last_os_error()
}

#[cfg(test)]
mod tests {
    use super::{EndMode, complaint};

    #[test]
    fn only_the_kernels_complaints_count() {
        let cases = [
            ("4,339,140900,-;ACPI: warning\n SUBSYSTEM=acpi\n", Some("level=4 ACPI: warning")),
            ("3,1,0,-;an error", Some("level=3 an error")),
            ("6,2,0,-;information", None),
            // Facility 1: a user process, level 2.
            ("10,3,0,-;critical, says init", None),
            ("no record", None),
            ("x,1,0,-;no priority", None),
        ];
        for (record, expected) in cases {
            assert_eq!(complaint(record).as_deref(), expected, "{record}");
        }
    }

    #[test]
    fn an_unknown_end_powers_off() {
        assert_eq!(EndMode::from_name("shell"), EndMode::Shell);
        assert_eq!(EndMode::from_name("explode"), EndMode::PowerOff);
    }
}
