//! Where a guest is received: `unix:PATH`, or `tcp:HOST:PORT` with TLS.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustls::pki_types::ServerName;

/// Where a guest is received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MoveAddress {
    /// A Unix socket, on one host.
    Unix(PathBuf),
    /// A port, over a network.
    Tcp(TcpAddress),
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpAddress {
    host: String,
    name: ServerName<'static>,
    port: u16,
}

/// Why an address is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Begins as one over a network.
    #[error(
        "{0}: no address; give tcp:HOST:PORT with a port from 1 to 65535, and an IPv6 address in brackets, such as tcp:[fd00::2]:7000"
    )]
    Tcp(String),
    /// Without encryption.
    #[error(
        "{0}: guests move over TCP with TLS alone; give --tls-dir DIR, which holds ca.pem, cert.pem and key.pem"
    )]
    Plain(String),
    /// Certificates for nothing.
    #[error("{0}: --tls-dir is for tcp: addresses; leave it out")]
    NeedsNone(String),
    /// Anything else.
    #[error("{0}: no address; give unix:PATH, such as unix:/run/guest.socket, or tcp:HOST:PORT")]
    Unknown(String),
}

impl TcpAddress {
    fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port != 0)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let name = match bracketed {
            Some(host) => ServerName::from(IpAddr::from(host.parse::<Ipv6Addr>().ok()?)),
            None if host.contains(':') => return None,
            None => ServerName::try_from(host.to_owned()).ok()?,
        };
        Some(Self { host: bracketed.unwrap_or(host).to_owned(), name, port })
    }

    /// What its certificate has to be for.
    pub fn name(&self) -> &ServerName<'static> {
        &self.name
    }

    /// Host, an IPv6 address without brackets, and port, as the standard library
    /// resolves them.
    pub fn host_and_port(&self) -> (&str, u16) {
        (&self.host, self.port)
    }
}

impl MoveAddress {
    /// The socket's path; empty for a port.
    pub fn path(&self) -> &Path {
        match self {
            Self::Unix(path) => path,
            Self::Tcp(_) => Path::new(""),
        }
    }
}

impl fmt::Display for TcpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "tcp:[{}]:{}", self.host, self.port),
            false => write!(f, "tcp:{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for MoveAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

impl FromStr for MoveAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(PathBuf::from(path))),
            Some(("tcp", address)) => TcpAddress::parse(address)
                .map(Self::Tcp)
                .ok_or_else(|| AddressError::Tcp(text.to_owned())),
            _ => Err(AddressError::Unknown(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_were() {
        for text in [
            "unix:/run/a:b",
            "tcp:10.0.0.2:7000",
            "tcp:[fd00::2]:1",
            "tcp:host.example:65535",
            "tcp:localhost:7000",
        ] {
            assert_eq!(text.parse::<MoveAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_none_is_told() {
        for text in [
            "tcp:",
            "tcp:7000",
            "tcp::7000",
            "tcp:host:",
            "tcp:host:0",
            "tcp:host:65536",
            "tcp:host:-1",
            "tcp:fd00::2:7000",
            "tcp:[fd00::2]",
            "tcp:[10.0.0.2]:7000",
            "tcp:[]:7000",
            "tcp:a b:7000",
            "tcp:host:7000/",
        ] {
            let error = text.parse::<MoveAddress>().unwrap_err();
            assert_eq!(error, AddressError::Tcp(text.to_owned()));
        }
        for text in ["", "unix:", "unix", "/run/a", "tls:host:7000", "TCP:host:7000"] {
            let error = text.parse::<MoveAddress>().unwrap_err();
            assert_eq!(error, AddressError::Unknown(text.to_owned()));
        }
    }
}
