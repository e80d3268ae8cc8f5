//! The guest's console output on its way out: a thread writes it in as large
//! pieces as have gathered, so that a slow terminal never holds up a vCPU and
//! a byte from the guest does not cost a system call.

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// A guest that prints faster than anybody reads waits at this many bytes.
const MOST_PENDING: usize = 1 << 20;

#[derive(Debug, Default)]
struct State {
    pending: Vec<u8>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writing end; clones write to the same place.
#[derive(Clone, Debug)]
pub struct ConsoleOutput {
    shared: Arc<Shared>,
}

/// The thread behind a [`ConsoleOutput`].
#[derive(Debug)]
pub struct ConsoleWriter {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl ConsoleOutput {
    /// Starts a thread that writes to `sink`.
    ///
    /// # Errors
    /// Where no thread can be made.
    pub fn start(mut sink: Box<dyn Write + Send>) -> std::io::Result<(Self, ConsoleWriter)> {
        let shared = Arc::new(Shared::default());
        let inner = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("console".to_owned()).spawn(move || {
            let mut batch = Vec::new();
            loop {
                let mut state = inner.lock();
                while state.pending.is_empty() && !state.closed {
                    state = inner.wait(state);
                }
                if state.pending.is_empty() {
                    return;
                }
                std::mem::swap(&mut state.pending, &mut batch);
                drop(state);
                inner.changed.notify_all();
                if let Err(error) = sink.write_all(&batch).and_then(|()| sink.flush()) {
                    tracing::warn!(%error, "console output is lost");
                }
                batch.clear();
            }
        })?;
        Ok((Self { shared: Arc::clone(&shared) }, ConsoleWriter { shared, thread }))
    }

    /// Hands bytes over. Waits while a megabyte is still unread.
    pub fn push(&self, bytes: &[u8]) {
        let mut state = self.shared.lock();
        while state.pending.len() >= MOST_PENDING && !state.closed {
            state = self.shared.wait(state);
        }
        state.pending.extend_from_slice(bytes);
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Write for ConsoleOutput {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl ConsoleWriter {
    /// Writes what is left and ends the thread.
    pub fn finish(self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        if self.thread.join().is_err() {
            tracing::error!("the console thread panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nothing_is_lost_at_the_end() {
        let sink = Sink::default();
        let (output, writer) = ConsoleOutput::start(Box::new(sink.clone())).unwrap();
        let other = output.clone();
        for byte in b"every byte " {
            output.push(&[*byte]);
        }
        other.push(b"in order");
        writer.finish();
        assert_eq!(&*sink.0.lock().unwrap(), b"every byte in order");
    }
}
