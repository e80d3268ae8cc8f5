//! One message: four letters, a number, and for some of them more bytes.

use std::io::{self, Read, Write};

use super::HandoverError;

/// The longest text of a message.
pub const MOST_TEXT: usize = 1000;
const HEAD: usize = 8;

/// Which guest of all that ever moved: a random number of the source's.
pub type Session = [u8; 16];

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Hello(u32),
    Ready,
    Go,
    Runs,
    Fail(String),
    /// Over a network: a guest comes. The number is the version.
    Give(u32, Session),
    /// Does this guest run there?
    Asks(u32, Session),
    /// The guest is the other end's, or its own, and never this one's.
    Keep,
    /// `RUNS` was read.
    Seen,
}

impl Message {
    /// The number is a version, or as many bytes of text come in `FAIL`; the 16
    /// bytes of a session come in `GIVE` and `ASKS`.
    pub fn send(&self, to: &mut impl Write) -> io::Result<()> {
        let (tag, number, more) = match self {
            Self::Hello(version) => (b"HELO", *version, &[][..]),
            Self::Ready => (b"REDY", 0, &[][..]),
            Self::Go => (b"GOGO", 0, &[][..]),
            Self::Runs => (b"RUNS", 0, &[][..]),
            Self::Keep => (b"KEEP", 0, &[][..]),
            Self::Seen => (b"SEEN", 0, &[][..]),
            Self::Give(version, session) => (b"GIVE", *version, &session[..]),
            Self::Asks(version, session) => (b"ASKS", *version, &session[..]),
            Self::Fail(text) => {
                let text = &text.as_bytes()[..text.len().min(MOST_TEXT)];
                (b"FAIL", u32::try_from(text.len()).unwrap_or(0), text)
            }
        };
        let mut bytes = tag.to_vec();
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(more);
        to.write_all(&bytes)?;
        to.flush()
    }
}

/// What has come of the next message.
#[derive(Default)]
pub struct Inbox(Vec<u8>);

impl Inbox {
    /// The next message, `None` at the end of the connection.
    pub fn next(
        &mut self,
        from: &mut impl Read,
    ) -> io::Result<Option<Result<Message, HandoverError>>> {
        loop {
            if let Some(message) = self.parse() {
                return Ok(Some(message));
            }
            let wanted = HEAD.max(self.wanted()) - self.0.len();
            let mut bytes = [0; HEAD + MOST_TEXT];
            match from.read(&mut bytes[..wanted.min(HEAD + MOST_TEXT)]) {
                Ok(0) => return Ok(None),
                Ok(count) => self.0.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn number(&self) -> u32 {
        self.0.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
    }

    /// Bytes of the message that has begun.
    fn wanted(&self) -> usize {
        let more = match self.0.get(..4) {
            Some(b"FAIL") => self.number() as usize,
            Some(b"GIVE" | b"ASKS") => size_of::<Session>(),
            _ => 0,
        };
        HEAD + more.min(MOST_TEXT)
    }

    fn parse(&mut self) -> Option<Result<Message, HandoverError>> {
        if self.0.len() < HEAD || self.0.len() < self.wanted() {
            return None;
        }
        let (number, bytes) = (self.number(), std::mem::take(&mut self.0));
        let session = || bytes.get(HEAD..)?.try_into().ok();
        // What another process says is shown in one line.
        let text = |from: &[u8]| String::from_utf8_lossy(from).replace(char::is_control, " ");
        let message = match &bytes[..4] {
            b"HELO" => Some(Message::Hello(number)),
            b"REDY" => Some(Message::Ready),
            b"GOGO" => Some(Message::Go),
            b"RUNS" => Some(Message::Runs),
            b"KEEP" => Some(Message::Keep),
            b"SEEN" => Some(Message::Seen),
            b"GIVE" => session().map(|session| Message::Give(number, session)),
            b"ASKS" => session().map(|session| Message::Asks(number, session)),
            b"FAIL" => Some(Message::Fail(text(&bytes[HEAD..]))),
            _ => None,
        };
        Some(message.ok_or_else(|| HandoverError::Strange(text(&bytes))))
    }
}
