//! A Unix socket that only its owner may open, and that leaves no file behind.

#![expect(unsafe_code, reason = "socket, fchmod, bind, listen and flock are C calls")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody serves there.
    #[error("--api-socket {0}: another process listens there; give another path")]
    InUse(PathBuf),
    /// Something else lies there.
    #[error("--api-socket {0}: a file that is no socket is there; give another path, or remove it")]
    NotASocket(PathBuf),
    /// The kernel's limit.
    #[error(
        "--api-socket {path}: {length} bytes; a socket's path has 1 to {MOST_PATH}, without NUL"
    )]
    Path {
        /// As given.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// The host refused.
    #[error("--api-socket {path}: {what}: {error}")]
    Host {
        /// As given.
        path: PathBuf,
        /// What was done.
        what: &'static str,
        /// What the host said.
        error: io::Error,
    },
}

/// `sun_path` less its NUL.
const MOST_PATH: usize = 107;
const BACKLOG: libc::c_int = 16;

/// A listening socket; its file goes when it is dropped.
#[derive(Debug)]
pub struct ApiSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, which is ours to remove.
    file: Option<(u64, u64)>,
}

impl ApiSocket {
    /// Binds `path` with mode 0600, whatever the umask: the socket has its mode
    /// before it has a name. A socket file at which nobody listens is replaced.
    ///
    /// # Errors
    /// [`SocketError`], with the path and what to do.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.is_empty() || bytes.len() > MOST_PATH || bytes.contains(&0) {
            return Err(SocketError::Path { path: path.to_owned(), length: bytes.len() });
        }
        let failed = |what| move |error| SocketError::Host { path: path.to_owned(), what, error };
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // Between the look at a stale file and the new one nobody else may look.
        let _lock = lock_directory(directory).map_err(failed("its directory"))?;
        remove_stale(path)?;
        let socket = new_socket().map_err(failed("cannot make a socket"))?;
        bind_to(&socket, bytes).map_err(failed("cannot bind"))?;
        let listener = UnixListener::from(socket);
        let file = std::fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()));
        Ok(Self { listener, path: path.to_owned(), file })
    }

    /// Ends every `accept`, now and later: it fails.
    pub fn close(&self) {
        // SAFETY: the descriptor is open; the rest are integers.
        let ret = unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        debug_assert_eq!(ret, 0, "a listening socket can be shut down");
    }

    /// To accept connections.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        let now = std::fs::symlink_metadata(&self.path).ok().map(|file| (file.dev(), file.ino()));
        // Another file of this name is somebody else's.
        if now.is_some() && now == self.file && std::fs::remove_file(&self.path).is_err() {
            tracing::warn!(path = %self.path.display(), "the socket's file stays behind");
        }
    }
}

/// An exclusive lock on the directory, until the file is closed. Others that
/// start here hold it for a moment only.
fn lock_directory(directory: &Path) -> io::Result<File> {
    let file = File::open(directory)?;
    for _ in 0..200 {
        // SAFETY: the descriptor is open as long as `file` lives.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(file);
        }
        thread::sleep(Duration::from_millis(10));
    }
    Err(io::Error::other("locked by another process for 2 s"))
}

/// Removes a socket at which nobody listens.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |what| move |error| SocketError::Host { path: path.to_owned(), what, error };
    let there = match std::fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("cannot look")(error)),
    };
    if !there.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed("cannot remove the stale socket"))
        }
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
            Err(failed("cannot tell whether somebody listens there")(error))
        }
        _ => Err(SocketError::InUse(path.to_owned())),
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above opened it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets the mode, binds and listens, in this order: Linux gives a bound socket's
/// file the mode of the socket, less the umask.
fn bind_to(socket: &OwnedFd, path: &[u8]) -> io::Result<()> {
    let done = |ret: libc::c_int| if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: the descriptor is open; the mode is an integer.
    done(unsafe { libc::fchmod(socket.as_raw_fd(), 0o600) })?;
    let mut address = libc::sockaddr_un {
        sun_family: libc::sa_family_t::try_from(libc::AF_UNIX).unwrap_or_default(),
        sun_path: [0; 108],
    };
    let name = CString::new(path).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    for (to, from) in address.sun_path.iter_mut().zip(name.as_bytes()) {
        *to = from.cast_signed();
    }
    let size = libc::socklen_t::try_from(size_of::<libc::sockaddr_un>()).unwrap_or_default();
    // SAFETY: `address` is a sockaddr_un of `size` bytes, ends in NUL because
    // `bind` above checked the length, and lives across the call.
    done(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) })?;
    // SAFETY: the descriptor is open; the backlog is an integer.
    done(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_the_owner_alone_and_gone_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api");
        let socket = ApiSocket::bind(&path).unwrap();
        let file = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!(file.mode() & 0o7777, 0o600);
        assert!(UnixStream::connect(&path).is_ok());
        assert!(matches!(ApiSocket::bind(&path), Err(SocketError::InUse(_))));
        assert!(path.exists());
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = ApiSocket::bind(&path).unwrap();
        // Somebody takes the name away: it is not ours to remove any more.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "mine").unwrap();
        drop(socket);
        assert!(path.exists());
        assert!(matches!(ApiSocket::bind(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }

    #[test]
    fn paths_that_can_not_be() {
        let long = "x".repeat(108);
        for path in ["", long.as_str(), "/nonexistent/api", "/"] {
            let error = ApiSocket::bind(Path::new(path)).unwrap_err();
            assert!(error.to_string().starts_with("--api-socket"), "{error}");
        }
    }
}
