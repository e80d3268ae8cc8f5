//! Who has the guest, over a network: the end of a connection says nothing of the
//! process at its other end.
//!
//! ```text
//! source                      destination
//! GIVE version, session ->
//!                       <-    HELO version
//! state, to its end     ->
//!                       <-    REDY             the machine is made
//! GOGO                  ->                     from here on it may run there
//!                       <-    RUNS             its vCPUs are let go
//! SEEN                  ->
//! ```
//!
//! One place decides, and once: the destination, when it reads `GOGO` (the guest
//! runs) or when its connection breaks before (it never will). Three rules follow:
//!
//! - Until it has sent `GOGO` the source may give up, and goes on with its guest:
//!   without `GOGO` the guest runs nowhere else. It says `KEEP` if it can.
//! - From then on it stands still until it has read `RUNS`, or `KEEP`: that the
//!   guest never runs there. Where the connection breaks it makes another one and
//!   `ASKS`. A user who knows that the destination is dead may take the guest back.
//! - The destination answers until it has read `SEEN`. A question that comes before
//!   `GOGO` did is an answer too: that one is lost, and the guest never runs there.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use super::message::Session;
use super::message::{Inbox, Message};
use super::{Channel, HandoverError, VERSION, expect, io_error, is_late, strange};

/// The source says that a guest comes, and is greeted.
///
/// # Errors
/// [`HandoverError`]: the other side is not what it should be, or takes no guest.
pub fn offer(
    channel: &mut impl Channel,
    session: Session,
    within: Duration,
) -> Result<(), HandoverError> {
    channel.read_within(Some(within)).map_err(io_error("setting a time limit"))?;
    let offer = Message::Give(VERSION, session);
    offer.send(channel).map_err(io_error("greeting the destination"))?;
    match expect(channel, "before it greeted")? {
        Message::Hello(VERSION) => Ok(()),
        Message::Hello(found) => Err(HandoverError::Version { found }),
        other => strange(&other),
    }
}

/// How a source learns what became of its guest.
pub struct Asker<'a, C> {
    /// Makes another connection to the same destination.
    pub connect: &'a dyn Fn() -> io::Result<C>,
    /// Called while it is not known where the guest is, before each question;
    /// whether somebody takes the guest back.
    pub taken_back: &'a dyn Fn() -> bool,
    /// How long the source waits for `RUNS` before it asks by another connection, and
    /// how long an answer to that may take.
    pub answer: Duration,
    /// Between two questions.
    pub pause: Duration,
}

/// The source has sent everything and stands still. Back without an error only
/// when the guest runs at the destination; with one it does not and never will,
/// or the user has said so.
///
/// # Errors
/// [`HandoverError`]: the guest goes on here.
pub fn hand_over<C: Channel>(
    channel: &mut C,
    session: Session,
    within: Duration,
    asker: &Asker<'_, C>,
) -> Result<(), HandoverError> {
    if let Err(error) = wait_ready(channel, within) {
        if let Err(error) = Message::Keep.send(channel) {
            tracing::debug!(%error, "the destination does not hear that the guest stays");
        }
        return Err(error);
    }
    // A message that could not be sent may have arrived nevertheless.
    let asked = Message::Go.send(channel).and_then(|()| {
        channel.read_within(Some(asker.answer))?;
        Inbox::default().next(channel)
    });
    match asked {
        Ok(Some(Ok(Message::Runs))) => {
            seen(channel);
            return Ok(());
        }
        Ok(Some(Ok(Message::Keep))) => return Err(HandoverError::Kept),
        other => tracing::debug!(?other, "no answer: whether the guest runs there is not known"),
    }
    loop {
        if (asker.taken_back)() {
            return Err(HandoverError::TakenBack);
        }
        match (asker.connect)().and_then(|mut channel| ask(&mut channel, session, asker.answer)) {
            Ok(Some(true)) => return Ok(()),
            Ok(Some(false)) => return Err(HandoverError::Kept),
            Ok(None) => tracing::debug!("another destination answered, or nonsense"),
            Err(error) => tracing::debug!(%error, "the destination does not answer"),
        }
        std::thread::sleep(asker.pause);
    }
}

fn wait_ready(channel: &mut impl Channel, within: Duration) -> Result<(), HandoverError> {
    channel.read_within(Some(within)).map_err(io_error("setting a time limit"))?;
    match Inbox::default().next(channel) {
        Ok(Some(Ok(Message::Ready))) => Ok(()),
        Ok(Some(Ok(Message::Fail(why)))) => Err(HandoverError::Refused(why)),
        Ok(Some(Ok(other))) => strange(&other),
        Ok(Some(Err(error))) => Err(error),
        Ok(None) => Err(HandoverError::Gone { before: "before it was ready" }),
        Err(error) if is_late(&error) => Err(HandoverError::Late(within)),
        Err(error) => Err(HandoverError::Io { what: "waiting for the destination", error }),
    }
}

/// Whether the guest runs there; `None` from one who does not know.
fn ask(channel: &mut impl Channel, session: Session, within: Duration) -> io::Result<Option<bool>> {
    channel.read_within(Some(within))?;
    Message::Asks(VERSION, session).send(channel)?;
    Ok(match Inbox::default().next(channel)? {
        Some(Ok(Message::Runs)) => {
            seen(channel);
            Some(true)
        }
        Some(Ok(Message::Keep)) => Some(false),
        _ => None,
    })
}

fn seen(channel: &mut impl Channel) {
    if let Err(error) = Message::Seen.send(channel) {
        tracing::debug!(%error, "the destination goes on waiting for a question");
    }
}

/// What became of the guest that a destination takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fate {
    /// None came yet.
    #[default]
    Waiting,
    /// It comes.
    Coming,
    /// It was let go here.
    Runs,
    /// It never will be.
    Never,
}

#[derive(Default)]
struct State {
    session: Option<Session>,
    fate: Fate,
    /// The source knows.
    told: bool,
    /// Ends the connection on which the guest comes.
    cut: Option<Box<dyn FnOnce() + Send>>,
}

/// What the threads of a destination know of the one guest that it takes.
#[derive(Default)]
pub struct Verdict {
    state: Mutex<State>,
    changed: Condvar,
}

impl Verdict {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides, unless that was done already; whether it is so now.
    fn decide(&self, runs: bool) -> bool {
        let wanted = if runs { Fate::Runs } else { Fate::Never };
        let mut state = self.state();
        if state.fate == Fate::Coming {
            state.fate = wanted;
        }
        state.fate == wanted
    }

    fn told(&self) {
        self.state().told = true;
        self.changed.notify_all();
    }

    /// Waits until the source knows what became of its guest.
    pub fn wait_told(&self, within: Option<Duration>) -> bool {
        let end = within.map(|within| Instant::now() + within);
        let mut state = self.state();
        while !state.told {
            let wait = |left| self.changed.wait_timeout(state, left);
            let left = match end {
                Some(end) => end.saturating_duration_since(Instant::now()),
                None => Duration::from_secs(3600),
            };
            if left.is_zero() {
                return false;
            }
            state = wait(left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// The first message on a connection whose other end may be believed. Whether a
    /// guest comes on it; `cut` ends it from another thread.
    ///
    /// # Errors
    /// [`HandoverError`]: it was none, or no guest can come.
    pub fn hear(
        &self,
        channel: &mut impl Channel,
        cut: impl FnOnce() + Send + 'static,
    ) -> Result<bool, HandoverError> {
        match expect(channel, "before it greeted")? {
            Message::Give(VERSION, session) => self.take(channel, session, cut).map(|()| true),
            Message::Asks(VERSION, session) => self.answer(channel, session).map(|()| false),
            Message::Give(found, _) | Message::Asks(found, _) | Message::Hello(found) => {
                Message::Hello(VERSION).send(channel).map_err(io_error("greeting the source"))?;
                Err(HandoverError::Version { found })
            }
            other => strange(&other),
        }
    }

    fn take(
        &self,
        channel: &mut impl Channel,
        session: Session,
        cut: impl FnOnce() + Send + 'static,
    ) -> Result<(), HandoverError> {
        {
            let mut state = self.state();
            if state.fate != Fate::Waiting {
                drop(state);
                let why = "it takes one guest, and another one was first";
                super::refuse(channel, why);
                return Err(HandoverError::Refused(why.to_owned()));
            }
            (state.fate, state.session) = (Fate::Coming, Some(session));
            state.cut = Some(Box::new(cut));
        }
        Message::Hello(VERSION).send(channel).map_err(|error| {
            *self.state() = State::default();
            HandoverError::Io { what: "greeting the source", error }
        })
    }

    fn answer(&self, channel: &mut impl Channel, session: Session) -> Result<(), HandoverError> {
        let known = self.state().session == Some(session);
        if !known {
            super::refuse(channel, "that guest did not come here");
            return Err(HandoverError::Strange("a question about another guest".to_owned()));
        }
        // Who asks has sent GOGO, on a connection that is dead.
        let runs = !self.decide(false);
        if let Some(cut) = self.state().cut.take().filter(|_| !runs) {
            cut();
        }
        let answer = if runs { Message::Runs } else { Message::Keep };
        answer.send(channel).map_err(io_error("answering the source"))?;
        if !runs || expect(channel, "before it had seen the answer")? == Message::Seen {
            self.told();
        }
        Ok(())
    }

    /// The destination has made the machine. Back without an error when the guest
    /// is its to run, and nobody else's.
    ///
    /// # Errors
    /// [`HandoverError`]: the guest is the source's, which may ask about it.
    pub fn take_over(
        &self,
        channel: &mut impl Channel,
        within: Duration,
    ) -> Result<(), HandoverError> {
        let ready = channel.read_within(Some(within)).and_then(|()| Message::Ready.send(channel));
        let heard = ready.and_then(|()| Inbox::default().next(channel));
        if matches!(heard, Ok(Some(Ok(Message::Go)))) && self.decide(true) {
            if let Err(error) = Message::Runs.send(channel) {
                tracing::debug!(%error, "the source does not hear yet that its guest runs");
            }
            return Ok(());
        }
        self.decide(false);
        Err(match heard {
            Ok(Some(Ok(Message::Keep))) => {
                self.told();
                HandoverError::SourceKeeps
            }
            Ok(Some(Ok(Message::Go))) => HandoverError::Kept,
            Ok(Some(Ok(other))) => return strange(&other),
            Ok(Some(Err(error))) => error,
            Ok(None) => HandoverError::Gone { before: "before it let the guest go" },
            Err(error) => HandoverError::Io { what: "waiting for the source", error },
        })
    }

    /// The guest did not come whole, or cannot run here.
    pub fn give_up(&self) {
        self.decide(false);
        // The source has not sent GOGO, and never asks.
        self.told();
    }

    /// The guest runs, and the source may say that it knows.
    pub fn hear_seen(&self, channel: &mut impl Channel, within: Duration) {
        let heard = channel.read_within(Some(within)).map(|()| Inbox::default().next(channel));
        if matches!(heard, Ok(Ok(Some(Ok(Message::Seen))))) {
            self.told();
        }
    }
}
