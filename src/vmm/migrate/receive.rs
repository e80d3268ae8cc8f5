//! The destination: takes one guest, and says so when it is ready to run.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use super::door::Door;
use super::handover::{Channel, refuse, take_over, welcome};
use super::{MigrateError, MovePlace};
use crate::state::{RestoredTime, StateError, StateReader};
use crate::vmm::api::socket::ApiSocket;
use crate::vmm::config::MachineError;
use crate::vmm::machine::Machine;
use crate::vmm::restore::{Arrival, RestoreConfig};
use crate::vmm::saved_guest::SavedGuest;

/// A source that is alive says something within this.
const PATIENCE: Duration = Duration::from_secs(60);

type Sink = Box<dyn Write + Send>;
type Made = Result<(Machine, RestoredTime), MachineError>;

/// Waits at `at` for a guest, and makes its machine: the caller has to run it at
/// once, it runs nowhere else any more. `waiting` is called when one can come.
///
/// # Errors
/// [`MigrateError`]: the guest is where it was.
pub fn receive(
    at: &MovePlace,
    config: &RestoreConfig,
    sink: Sink,
    waiting: impl FnOnce(),
) -> Result<(Machine, RestoredTime), MigrateError> {
    match at {
        MovePlace::Unix(path) => by_socket(path, config, sink, waiting),
        MovePlace::Tcp(address, tls) => {
            let failed = |error| MigrateError::Listen { at: address.to_string(), error };
            let door = Door::open(address, tls.clone()).map_err(failed)?;
            waiting();
            let link = door.guest().map_err(failed)?;
            door.take(link, |link| make(link, config, sink))
        }
    }
}

fn by_socket(
    path: &Path,
    config: &RestoreConfig,
    sink: Sink,
    waiting: impl FnOnce(),
) -> Result<(Machine, RestoredTime), MigrateError> {
    let socket = ApiSocket::bind(path)?;
    waiting();
    let failed = |what| move |error| MigrateError::Accept { what, error };
    let (mut stream, _) = socket.listener().accept().map_err(failed("accepting a connection"))?;
    drop(socket);
    // It holds for the state too.
    welcome(&mut stream, PATIENCE)?;
    match make(&mut stream, config, sink) {
        Ok(made) => {
            take_over(&mut stream)?;
            Ok(made)
        }
        Err(error) => {
            refuse(&mut stream, &error.to_string());
            Err(not_come(error))
        }
    }
}

/// The whole guest, and its machine.
fn make(stream: &mut impl Channel, config: &RestoreConfig, sink: Sink) -> Made {
    let began = Instant::now();
    let saved = read(stream)?;
    tracing::debug!(took = ?began.elapsed(), "the whole guest is here");
    let began = Instant::now();
    let made = Machine::go_on(saved, Arrival::Migrated, config, sink);
    tracing::debug!(took = ?began.elapsed(), "its machine is made");
    made
}

/// The state, to its end and not a byte further.
///
/// # Errors
/// What is wrong with it, or with the connection.
pub fn read(stream: &mut impl Channel) -> Result<SavedGuest, MachineError> {
    // The source says nothing more before it is answered: nothing is left behind
    // in the buffer.
    let mut stream = BufReader::with_capacity(1 << 20, stream);
    let what = "reading the state";
    if stream.fill_buf().map_err(|error| StateError::Io { what, error })?.is_empty() {
        return Err(StateError::Truncated { at: 0, part: "its header".to_owned() }.into());
    }
    SavedGuest::read_from(&mut StateReader::new(stream)?)
}

/// Why no guest came: a connection that ends too early is no damaged file.
pub(super) fn not_come(error: MachineError) -> MigrateError {
    match error {
        MachineError::State(StateError::Truncated { at, .. }) => MigrateError::CutOff { at },
        error => error.into(),
    }
}
