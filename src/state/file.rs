//! A file that is there whole or not at all.
//!
//! The new one is written beside the old one under no name (`O_TMPFILE`), so
//! that nothing is left of it whatever ends the process; then synced, given a
//! name of its own, and put over the old one by one `rename`. File systems that
//! cannot do without a name give it one from the start.

#![expect(unsafe_code, reason = "linkat has no wrapper in the standard library")]

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::StateError;

/// A guest's memory is its owner's alone.
const MODE: u32 = 0o600;

/// A file on its way to its place.
pub struct AtomicFile {
    file: File,
    target: PathBuf,
    directory: PathBuf,
    /// Its name until it is in place.
    temporary: PathBuf,
    named: bool,
}

impl AtomicFile {
    /// Begins a file that is to stand at `target`, whether one is there or not.
    ///
    /// # Errors
    /// [`StateError::File`]: no such directory, no right to write there.
    pub fn create(target: &Path) -> Result<Self, StateError> {
        let failed =
            |error| StateError::File { what: "cannot begin", path: target.to_owned(), error };
        let name = target.file_name().ok_or_else(|| failed(io::ErrorKind::IsADirectory.into()))?;
        if target.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = parent.unwrap_or(Path::new(".")).to_owned();
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.new", std::process::id()));
        let temporary = directory.join(hidden);
        let unnamed = OpenOptions::new()
            .write(true)
            .mode(MODE)
            .custom_flags(libc::O_TMPFILE)
            .open(&directory);
        let (file, named) = match unnamed {
            Ok(file) => (file, false),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL | libc::ENOENT)
                ) =>
            {
                let mut options = OpenOptions::new();
                let file = options.write(true).create_new(true).mode(MODE).open(&temporary);
                (file.map_err(failed)?, true)
            }
            Err(error) => return Err(failed(error)),
        };
        Ok(Self { file, target: target.to_owned(), directory, temporary, named })
    }

    /// Puts the file in its place, in one step, and waits until the disk has it.
    ///
    /// # Errors
    /// [`StateError::File`]: what was at the target before is still there.
    pub fn commit(mut self) -> Result<(), StateError> {
        let target = self.target.clone();
        let failed = |what| move |error| StateError::File { what, path: target.clone(), error };
        self.file.sync_all().map_err(failed.clone()("cannot write"))?;
        if !self.named {
            self.give_name().map_err(failed.clone()("cannot name"))?;
            self.named = true;
        }
        fs::rename(&self.temporary, &self.target).map_err(failed.clone()("cannot put in place"))?;
        self.named = false;
        let directory = File::open(&self.directory).and_then(|directory| directory.sync_all());
        directory.map_err(failed("cannot sync the directory of"))
    }

    fn give_name(&self) -> io::Result<()> {
        let from = CString::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        let to = CString::new(self.temporary.as_os_str().as_bytes())?;
        // Left by a process of the same number that was killed right here.
        match fs::remove_file(&self.temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let (here, flags) = (libc::AT_FDCWD, libc::AT_SYMLINK_FOLLOW);
        // SAFETY: both are strings that end in a zero and live across the call.
        match unsafe { libc::linkat(here, from.as_ptr(), here, to.as_ptr(), flags) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.named
            && let Err(error) = fs::remove_file(&self.temporary)
        {
            tracing::warn!(path = %self.temporary.display(), %error, "an unfinished file is left");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_old_file_stays_until_the_new_one_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("state");
        for round in 0..3u8 {
            let mut file = AtomicFile::create(&target).unwrap();
            file.write_all(&[round; 100_000]).unwrap();
            if round > 0 {
                assert_eq!(fs::read(&target).unwrap(), [round - 1; 100_000]);
            }
            file.commit().unwrap();
            assert_eq!(fs::read(&target).unwrap(), [round; 100_000]);
            assert_eq!(names(directory.path()), ["state"]);
        }
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read(&target).unwrap(), [2; 100_000]);
        assert_eq!(names(directory.path()), ["state"]);
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&target).unwrap().permissions());
        assert_eq!(mode & 0o777, MODE);
    }

    #[test]
    fn places_where_no_file_can_be() {
        let directory = tempfile::tempdir().unwrap();
        for place in [directory.path().to_owned(), directory.path().join("no/where"), "/".into()] {
            let error = AtomicFile::create(&place).map(drop).unwrap_err();
            assert!(error.to_string().contains("as it was"), "{error}");
        }
    }
}
