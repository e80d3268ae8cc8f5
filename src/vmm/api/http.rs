//! HTTP/1.1 requests and responses on a stream, within limits of size and time.
//!
//! The parsing of a request's head is `httparse`'s. A body has a Content-Length;
//! chunked ones are refused, nobody here needs them.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The most bytes of a request's line and headers.
pub const MOST_HEAD: usize = 8 << 10;
/// The most bytes of a body.
pub const MOST_BODY: usize = 64 << 10;
const MOST_HEADERS: usize = 64;

/// How long a request may take to come in, a response to go out, and a
/// connection to lie idle.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the first byte of a request to its last.
    pub request: Duration,
    /// A response.
    pub response: Duration,
    /// Between two requests.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(5),
            response: Duration::from_secs(5),
            idle: Duration::from_secs(60),
        }
    }
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `PUT`…
    pub method: String,
    /// Without a query.
    pub path: String,
    /// As many bytes as its Content-Length says.
    pub body: Vec<u8>,
    /// Whether the client may send another one.
    pub keep_alive: bool,
}

/// A response. A length and `Connection` are added when it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// HTTP's number.
    pub status: u16,
    /// MIME type of the body.
    pub content_type: &'static str,
    /// What the client gets.
    pub body: Vec<u8>,
    /// Methods that the path has, with status 405.
    pub allow: Option<String>,
}

/// JSON's MIME type.
pub const JSON: &str = "application/json";

impl Response {
    /// `value` as JSON.
    pub fn json(value: &impl serde::Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self { status: 200, content_type: JSON, body, allow: None },
            Err(error) => Self::error(500, &error.to_string()),
        }
    }

    /// `{"error": what}`.
    pub fn error(status: u16, what: &str) -> Self {
        let body = serde_json::json!({ "error": what }).to_string().into_bytes();
        Self { status, content_type: JSON, body, allow: None }
    }
}

/// Why no request came.
#[derive(Debug, PartialEq, Eq)]
pub enum NoRequest {
    /// The client is gone, or said nothing for too long.
    Gone,
    /// It gets this, and the connection ends.
    Refused(Response),
}

fn refused(status: u16, what: &str) -> NoRequest {
    NoRequest::Refused(Response::error(status, what))
}

/// One client.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    limits: Limits,
    /// What came of the next request already.
    buffer: Vec<u8>,
}

/// The head of a request, parsed.
struct Head {
    method: String,
    path: String,
    length: usize,
    body: usize,
    keep_alive: bool,
    wants_continue: bool,
}

impl Connection {
    /// A client on `stream`.
    pub fn new(stream: UnixStream, limits: Limits) -> Self {
        Self { stream, limits, buffer: Vec::new() }
    }

    /// The next request.
    ///
    /// # Errors
    /// [`NoRequest`]: the end, or what to answer to a request that is none.
    pub fn receive(&mut self) -> Result<Request, NoRequest> {
        if self.buffer.is_empty() {
            self.fill(Instant::now() + self.limits.idle, true)?;
        }
        let end = Instant::now() + self.limits.request;
        let head = loop {
            if let Some(head) = parse(&self.buffer)? {
                break head;
            }
            if self.buffer.len() > MOST_HEAD {
                return Err(refused(431, "the request's head is longer than 8192 bytes"));
            }
            self.fill(end, false)?;
        };
        if head.wants_continue && self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").is_err() {
            return Err(NoRequest::Gone);
        }
        while self.buffer.len() < head.length + head.body {
            self.fill(end, false)?;
        }
        let rest = self.buffer.split_off(head.length + head.body);
        let body = std::mem::replace(&mut self.buffer, rest).split_off(head.length);
        Ok(Request { method: head.method, path: head.path, body, keep_alive: head.keep_alive })
    }

    /// Reads what is there, and waits for it until `end`.
    fn fill(&mut self, end: Instant, idle: bool) -> Result<(), NoRequest> {
        let left = end.saturating_duration_since(Instant::now());
        let late = || {
            if idle { NoRequest::Gone } else { refused(408, "the request did not come in 5 s") }
        };
        if left.is_zero() {
            return Err(late());
        }
        if self.stream.set_read_timeout(Some(left)).is_err() {
            return Err(NoRequest::Gone);
        }
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(NoRequest::Gone),
            Ok(count) => {
                self.buffer.extend_from_slice(bytes.get(..count).unwrap_or_default());
                Ok(())
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Err(late()),
                io::ErrorKind::Interrupted => Ok(()),
                _ => Err(NoRequest::Gone),
            },
        }
    }

    /// Sends `response`, without its body in answer to `HEAD`.
    ///
    /// # Errors
    /// Where the client does not take it in time.
    pub fn send(&mut self, response: &Response, head: bool, keep_alive: bool) -> io::Result<()> {
        let mut text = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n",
            response.status,
            reason(response.status),
            response.content_type,
            response.body.len()
        );
        if let Some(allow) = &response.allow {
            text.push_str(&format!("Allow: {allow}\r\n"));
        }
        text.push_str(if keep_alive { "\r\n" } else { "Connection: close\r\n\r\n" });
        let mut bytes = text.into_bytes();
        if !head {
            bytes.extend_from_slice(&response.body);
        }
        // Responses are short: they fit in the socket's buffer, and one timeout
        // for each write is as good as one for all.
        self.stream.set_write_timeout(Some(self.limits.response))?;
        self.stream.write_all(&bytes)
    }

    /// Reads on for a moment before the end: what a client has sent and nobody
    /// has read would make its kernel throw our answer away.
    pub fn linger(&mut self) {
        let end = Instant::now() + Duration::from_millis(500);
        drop(self.stream.shutdown(Shutdown::Write));
        for _ in 0..256 {
            self.buffer.clear();
            if self.fill(end, true).is_err() {
                return;
            }
        }
    }
}

/// `None` while there is more to come.
fn parse(bytes: &[u8]) -> Result<Option<Head>, NoRequest> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(refused(431, "more than 64 headers")),
        Err(httparse::Error::Version) => {
            return Err(refused(505, "speak HTTP/1.1"));
        }
        Err(error) => return Err(refused(400, &format!("not HTTP: {error}"))),
    };
    if length > MOST_HEAD {
        return Err(refused(431, "the request's head is longer than 8192 bytes"));
    }
    let mut head = Head {
        method: request.method.unwrap_or_default().to_owned(),
        path: request.path.unwrap_or_default().split('?').next().unwrap_or_default().to_owned(),
        length,
        body: 0,
        keep_alive: request.version == Some(1),
        wants_continue: false,
    };
    let mut stated = None;
    for header in request.headers.iter() {
        let value = std::str::from_utf8(header.value).unwrap_or("").trim();
        if header.name.eq_ignore_ascii_case("content-length") {
            // Digits alone: a sign, or two that differ, are how requests are smuggled.
            let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            if !digits || stated.is_some_and(|stated| stated != value) {
                return Err(refused(400, "Content-Length is not one whole number"));
            }
            stated = Some(value);
            head.body = value.parse().unwrap_or(usize::MAX);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(refused(501, "give the body a Content-Length; nothing else is read here"));
        } else if header.name.eq_ignore_ascii_case("connection") {
            let says = |word| value.split(',').any(|token| token.trim().eq_ignore_ascii_case(word));
            head.keep_alive = !says("close") && (head.keep_alive || says("keep-alive"));
        } else if header.name.eq_ignore_ascii_case("expect") {
            head.wants_continue = value.eq_ignore_ascii_case("100-continue");
        }
    }
    if head.body > MOST_BODY {
        return Err(refused(413, "the request's body is longer than 65536 bytes"));
    }
    Ok(Some(head))
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests;
