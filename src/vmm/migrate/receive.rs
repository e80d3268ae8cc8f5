//! The destination: takes one guest, and says so when it is ready to run.

use std::io::{BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::handover::{refuse, take_over, welcome};
use super::{MigrateError, MoveAddress};
use crate::state::{RestoredTime, StateError, StateReader};
use crate::vmm::api::socket::ApiSocket;
use crate::vmm::config::MachineError;
use crate::vmm::machine::Machine;
use crate::vmm::restore::{Arrival, RestoreConfig};
use crate::vmm::saved_guest::SavedGuest;

/// A source that is alive says something within this.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits at `at` for a guest, and makes its machine: the caller has to run it at
/// once, it runs nowhere else any more. `waiting` is called when one can come.
///
/// # Errors
/// [`MigrateError`]: the guest is where it was.
pub fn receive(
    at: &MoveAddress,
    config: &RestoreConfig,
    sink: Box<dyn Write + Send>,
    waiting: impl FnOnce(),
) -> Result<(Machine, RestoredTime), MigrateError> {
    let socket = ApiSocket::bind(at.path())?;
    waiting();
    let failed = |what| move |error| MigrateError::Accept { what, error };
    let (mut stream, _) = socket.listener().accept().map_err(failed("accepting a connection"))?;
    drop(socket);
    welcome(&mut stream, PATIENCE)?;
    let began = Instant::now();
    let made = read(&stream).and_then(|saved| {
        tracing::debug!(took = ?began.elapsed(), "the whole guest is here");
        let began = Instant::now();
        let made = Machine::go_on(saved, Arrival::Migrated, config, sink);
        tracing::debug!(took = ?began.elapsed(), "its machine is made");
        made
    });
    match made {
        Ok(made) => {
            take_over(&mut stream)?;
            Ok(made)
        }
        Err(error) => {
            refuse(&mut stream, &error.to_string());
            Err(error.into())
        }
    }
}

/// The state, to its end and not a byte further.
fn read(stream: &UnixStream) -> Result<SavedGuest, MachineError> {
    let what = "setting a time limit";
    let set = stream.set_read_timeout(Some(PATIENCE));
    set.map_err(|error| StateError::Io { what, error })?;
    // The source says nothing more before it is answered: nothing is left behind
    // in the buffer.
    let mut reader = StateReader::new(BufReader::with_capacity(1 << 20, stream))?;
    SavedGuest::read_from(&mut reader)
}
