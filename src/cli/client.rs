//! A client of the control socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

/// Why the machine did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("{path}: {error}; give the socket of a running kvm-xen run --api-socket")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the host said.
        error: io::Error,
    },
    /// The connection broke: the machine ended, most likely.
    #[error("{path}: the machine is gone: {error}")]
    Gone {
        /// The socket.
        path: PathBuf,
        /// What the host said.
        error: io::Error,
    },
    /// The machine says why it did not do it.
    #[error("{path}: {what}")]
    Refused {
        /// The socket.
        path: PathBuf,
        /// Its words.
        what: String,
    },
    /// An answer, but not the one.
    #[error("{path}: {what}; is it the socket of a kvm-xen of this version?")]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// No answer of ours is longer.
const MOST_ANSWER: usize = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(10);

/// One connection, used again and again.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
    buffer: Vec<u8>,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path)
            .and_then(|stream| {
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                Ok(stream)
            })
            .map_err(|error| ClientError::Connect { path: path.to_owned(), error })?;
        Ok(Self { stream, path: path.to_owned(), buffer: Vec::new() })
    }

    /// What the machine answers to `GET target`.
    ///
    /// # Errors
    /// [`ClientError`]: it is gone, or answers something else.
    pub fn get<T: DeserializeOwned>(&mut self, target: &str) -> Result<T, ClientError> {
        self.ask(target, &format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    }

    /// What the machine answers to `PUT target` within `timeout`.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Refused`] where it says why not.
    pub fn put<T: DeserializeOwned>(
        &mut self,
        target: &str,
        body: &str,
        timeout: Duration,
    ) -> Result<T, ClientError> {
        let set = self.stream.set_read_timeout(Some(timeout));
        set.map_err(|error| ClientError::Gone { path: self.path.clone(), error })?;
        let length = body.len();
        let head = format!("PUT {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}");
        self.ask(target, &format!("{head}\r\n\r\n{body}"))
    }

    fn ask<T: DeserializeOwned>(&mut self, target: &str, request: &str) -> Result<T, ClientError> {
        let gone = |path: &Path, error| ClientError::Gone { path: path.to_owned(), error };
        if let Err(error) = self.stream.write_all(request.as_bytes()) {
            return Err(gone(&self.path, error));
        }
        loop {
            if let Some((status, body)) = self.response()? {
                return self.read(target, status, &body);
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(gone(&self.path, io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => {
                    self.buffer.extend_from_slice(bytes.get(..count).unwrap_or_default());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(gone(&self.path, error)),
            }
        }
    }

    fn read<T: DeserializeOwned>(
        &self,
        target: &str,
        status: u16,
        body: &[u8],
    ) -> Result<T, ClientError> {
        let told = || serde_json::from_slice::<serde_json::Value>(body).ok();
        if status != 200
            && let Some(what) = told().and_then(|told| told["error"].as_str().map(str::to_owned))
        {
            return Err(ClientError::Refused { path: self.path.clone(), what });
        }
        if status != 200 {
            return Err(self.strange(format!("status {status} for {target}")));
        }
        serde_json::from_slice(body).map_err(|error| self.strange(format!("{target}: {error}")))
    }

    fn strange(&self, what: String) -> ClientError {
        ClientError::Answer { path: self.path.clone(), what }
    }

    /// A whole response out of the buffer.
    fn response(&mut self) -> Result<Option<(u16, Vec<u8>)>, ClientError> {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        let head = match response.parse(&self.buffer) {
            Ok(httparse::Status::Complete(head)) => head,
            Ok(httparse::Status::Partial) if self.buffer.len() < MOST_ANSWER => return Ok(None),
            Ok(httparse::Status::Partial) => return Err(self.strange("no end".to_owned())),
            Err(error) => return Err(self.strange(format!("no HTTP: {error}"))),
        };
        let status = response.code.unwrap_or(0);
        let length = response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case("content-length"))
            .and_then(|header| std::str::from_utf8(header.value).ok()?.trim().parse().ok())
            .filter(|length: &usize| *length <= MOST_ANSWER);
        let Some(length) = length else {
            return Err(self.strange("no sensible Content-Length".to_owned()));
        };
        if self.buffer.len() < head + length {
            return Ok(None);
        }
        let rest = self.buffer.split_off(head + length);
        let whole = std::mem::replace(&mut self.buffer, rest);
        Ok(Some((status, whole.get(head..).unwrap_or_default().to_vec())))
    }
}
