//! Who has the guest: the messages around the stream of its state.
//!
//! ```text
//! source                      destination
//! HELO version       ->
//!                    <-       HELO version
//! state, to its end  ->
//!                    <-       REDY             the machine is made
//! GOGO               ->
//!                    <-       RUNS             its vCPUs are let go
//! ```
//!
//! Instead of any of its messages the destination may say `FAIL` and why.
//!
//! Both ends are processes of one host, on a Unix socket, and hold it until they
//! are through or dead. So the end of the connection is the other's end, and what
//! it has written before can still be read. Two rules follow:
//!
//! - The source goes on with its guest unless it has read `RUNS`. While it waits
//!   for `REDY` it may give up; it shuts its receiving side first, after which no
//!   `REDY` can be written, and looks once more whether one was.
//! - The destination lets the guest run once it has written `REDY` and has then
//!   read `GOGO` or the end of the connection: a source that is alive has sent
//!   `GOGO`, so one that has not is dead.

//!
//! [`network`] has the rules for two hosts, where neither holds.

mod message;
pub mod network;

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use message::{Inbox, MOST_TEXT, Message};

/// Version of these messages.
pub const VERSION: u32 = 1;

/// A connection to the other end.
pub trait Channel: Read + Write {
    /// How long a read may take.
    ///
    /// # Errors
    /// The host's.
    fn read_within(&self, within: Option<Duration>) -> io::Result<()>;
}

/// One whose end is the end of the other process.
pub trait LocalChannel: Channel {
    /// From now on nothing that the other end writes arrives, and it is told so.
    /// What has arrived can still be read.
    ///
    /// # Errors
    /// The host's.
    fn refuse_more(&self) -> io::Result<()>;
}

impl Channel for UnixStream {
    fn read_within(&self, within: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(within)
    }
}

impl LocalChannel for UnixStream {
    fn refuse_more(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Read)
    }
}

/// Why the guest was not handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The connection.
    #[error("{what} failed: {error}")]
    Io {
        /// What was done.
        what: &'static str,
        /// What the host said.
        error: io::Error,
    },
    /// The other end is gone.
    #[error("the other side is gone {before}")]
    Gone {
        /// When.
        before: &'static str,
    },
    /// It said nothing.
    #[error("the destination was not ready within {} s", .0.as_secs())]
    Late(Duration),
    /// It can not.
    #[error("the destination says: {0}")]
    Refused(String),
    /// A message was lost, and the destination says that it does not have the guest.
    #[error("the connection to the destination broke before the guest was let go there")]
    Kept,
    /// By order.
    #[error("it was taken back by order, while nobody could say whether it ran there")]
    TakenBack,
    /// The source goes on with it.
    #[error("the source keeps its guest")]
    SourceKeeps,
    /// It is something else.
    #[error("the other side is no kvm-xen that moves guests: it said {0:?}")]
    Strange(String),
    /// It speaks otherwise.
    #[error(
        "the other side speaks version {found} of the migration protocol, this one {VERSION}; use the same kvm-xen on both"
    )]
    Version {
        /// Its version.
        found: u32,
    },
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> HandoverError {
    move |error| HandoverError::Io { what, error }
}

pub(super) fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// The next message, which has to come.
fn expect(channel: &mut impl Channel, before: &'static str) -> Result<Message, HandoverError> {
    match Inbox::default().next(channel) {
        Ok(Some(Ok(Message::Fail(why)))) => Err(HandoverError::Refused(why)),
        Ok(Some(message)) => message,
        Ok(None) => Err(HandoverError::Gone { before }),
        Err(error) => Err(HandoverError::Io { what: "reading from the other side", error }),
    }
}

fn strange<T>(message: &Message) -> Result<T, HandoverError> {
    Err(HandoverError::Strange(format!("{message:?}")))
}

/// The source greets, and is greeted.
///
/// # Errors
/// [`HandoverError`]: the other side is not what it should be.
pub fn greet(channel: &mut impl Channel, within: Duration) -> Result<(), HandoverError> {
    channel.read_within(Some(within)).map_err(io_error("setting a time limit"))?;
    Message::Hello(VERSION).send(channel).map_err(io_error("greeting the destination"))?;
    match expect(channel, "before it greeted")? {
        Message::Hello(VERSION) => Ok(()),
        Message::Hello(found) => Err(HandoverError::Version { found }),
        other => strange(&other),
    }
}

/// Why the destination broke off, if it said so.
pub fn reason(channel: &mut impl Channel) -> Option<HandoverError> {
    channel.read_within(Some(Duration::from_millis(200))).ok()?;
    expect(channel, "").err().filter(|error| matches!(error, HandoverError::Refused(_)))
}

/// The source has sent everything and stands still. Back without an error only
/// when the guest runs at the destination; with one it does not and never will.
///
/// # Errors
/// [`HandoverError`]: the guest goes on here.
pub fn hand_over(channel: &mut impl LocalChannel, within: Duration) -> Result<(), HandoverError> {
    let mut inbox = Inbox::default();
    channel.read_within(Some(within)).map_err(io_error("setting a time limit"))?;
    let mut first = inbox.next(channel);
    let mut late = false;
    if first.as_ref().is_err_and(is_late) {
        // A REDY that is not there now can not come any more.
        late = true;
        channel.refuse_more().map_err(io_error("giving up"))?;
        first = inbox.next(channel);
    }
    match first {
        Ok(Some(Ok(Message::Ready))) => {}
        Ok(Some(Ok(Message::Fail(why)))) => return Err(HandoverError::Refused(why)),
        Ok(Some(Ok(other))) => return strange(&other),
        Ok(Some(Err(error))) => return Err(error),
        Ok(None) if late => return Err(HandoverError::Late(within)),
        Ok(None) => return Err(HandoverError::Gone { before: "before it was ready" }),
        Err(error) => {
            return Err(HandoverError::Io { what: "waiting for the destination", error });
        }
    }
    // From here on only the destination decides, and its life ends the wait.
    if late {
        // It was ready, but no RUNS can come back: it runs when it reads this.
        return match Message::Go.send(channel) {
            Ok(()) => Ok(()),
            Err(_) => Err(HandoverError::Gone { before: "before the guest was let go" }),
        };
    }
    // An error here must not end it: the destination would take this side for dead.
    if let Err(error) = channel.read_within(None) {
        tracing::debug!(%error, "the time limit stays");
    }
    if let Err(error) = Message::Go.send(channel) {
        tracing::debug!(%error, "the destination is gone before it was told to go");
    }
    let mut inbox = Inbox::default();
    let last = loop {
        match inbox.next(channel) {
            Err(error) if is_late(&error) => {}
            last => break last,
        }
    };
    match last {
        Ok(Some(Ok(Message::Runs))) => Ok(()),
        Ok(Some(Ok(Message::Fail(why)))) => Err(HandoverError::Refused(why)),
        Ok(Some(Ok(other))) => strange(&other),
        Ok(Some(Err(error))) => Err(error),
        Ok(None) | Err(_) => Err(HandoverError::Gone { before: "before the guest ran there" }),
    }
}

/// The destination is greeted, and greets.
///
/// # Errors
/// [`HandoverError`]: the other side is not what it should be.
pub fn welcome(channel: &mut impl Channel, within: Duration) -> Result<(), HandoverError> {
    channel.read_within(Some(within)).map_err(io_error("setting a time limit"))?;
    let hello = expect(channel, "before it greeted")?;
    Message::Hello(VERSION).send(channel).map_err(io_error("greeting the source"))?;
    match hello {
        Message::Hello(VERSION) => Ok(()),
        Message::Hello(found) => Err(HandoverError::Version { found }),
        other => strange(&other),
    }
}

/// The destination can not take the guest.
pub fn refuse(channel: &mut impl Channel, why: &str) {
    let mut end = why.len().min(MOST_TEXT);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    if let Err(error) = Message::Fail(why[..end].to_owned()).send(channel) {
        tracing::debug!(%error, "the source can not be told");
    }
}

/// The destination has made the machine. Back without an error when the guest is
/// its to run.
///
/// # Errors
/// [`HandoverError`]: the guest is the source's.
pub fn take_over(channel: &mut impl Channel) -> Result<(), HandoverError> {
    channel.read_within(None).map_err(io_error("waiting without a time limit"))?;
    Message::Ready.send(channel).map_err(io_error("telling the source that all is ready"))?;
    match Inbox::default().next(channel) {
        Ok(Some(Ok(Message::Go))) => {}
        Ok(Some(Ok(other))) => return strange(&other),
        Ok(Some(Err(error))) => return Err(error),
        Ok(None) | Err(_) => {
            tracing::warn!("the source is gone after it sent the whole guest, which goes on here");
        }
    }
    if let Err(error) = Message::Runs.send(channel) {
        tracing::debug!(%error, "the source does not hear any more that its guest runs");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
