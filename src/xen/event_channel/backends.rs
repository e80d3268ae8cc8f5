//! Back ends in this process: the far ends of interdomain channels, as if they
//! were in domain 0. Back end `n` has port `n + 1` there.

use std::sync::Arc;

use xen_abi::errno::Errno;

use super::super::domain::{Domain, lock, read, write};
use super::{BackendState, Channel, State};

/// What a back end runs when the guest notifies it.
type OnSend = Arc<dyn Fn() + Send + Sync>;

/// Names of back ends that were bound to a port of the guest's choice start
/// here, above every port.
const FIRST_BOUND: u32 = 1 << 31;

/// The back ends by their index; `None` where one went away.
#[derive(Default)]
pub(super) struct Backends(Vec<Option<Backend>>);

struct Backend {
    on_send: OnSend,
    /// The back end's name for the channel.
    handle: u32,
    /// The guest's port now, 0 while the guest has closed it.
    port: u32,
}

impl Backends {
    /// The guest's port and its index in the table of the back end `handle`.
    fn find(&self, handle: u32) -> Option<(usize, &Backend)> {
        let entries = self.0.iter().enumerate();
        entries
            .filter_map(|(index, slot)| Some((index, slot.as_ref()?)))
            .find(|(_, backend)| backend.handle == handle)
    }

    /// The index that a new back end gets: the lowest that is free.
    fn next(&self) -> usize {
        self.0.iter().position(Option::is_none).unwrap_or(self.0.len())
    }

    fn put(&mut self, index: usize, backend: Backend) {
        match self.0.get_mut(index) {
            Some(slot) => *slot = Some(backend),
            None => self.0.push(Some(backend)),
        }
    }

    fn get_mut(&mut self, index: u32) -> Option<&mut Backend> {
        usize::try_from(index).ok().and_then(|index| self.0.get_mut(index))?.as_mut()
    }

    /// What to run when the guest notifies back end `index`.
    pub(super) fn on_send(&self, index: u32) -> Option<OnSend> {
        let slot = usize::try_from(index).ok().and_then(|index| self.0.get(index))?;
        slot.as_ref().map(|backend| Arc::clone(&backend.on_send))
    }

    /// The guest closed its port of back end `index`.
    pub(super) fn guest_closed(&mut self, index: u32) {
        if let Some(backend) = self.get_mut(index) {
            backend.port = 0;
        }
    }

    /// Whether the guest may bind to the port of domain 0 that is back end
    /// `index`'s: it is there, and its channel was closed by the guest.
    pub(super) fn is_unbound(&mut self, index: u32) -> bool {
        self.get_mut(index).is_some_and(|backend| backend.port == 0)
    }

    /// Index and first port of each back end that had one before the guest ran.
    pub(super) fn first_ports(&self) -> Vec<(u32, u32)> {
        let there = (0u32..).zip(&self.0).filter_map(|(index, slot)| Some((index, slot.as_ref()?)));
        there
            .filter(|(_, backend)| backend.handle < FIRST_BOUND)
            .map(|(index, backend)| (index, backend.handle))
            .collect()
    }

    /// The guest bound `port` to back end `index`.
    pub(super) fn guest_bound(&mut self, index: u32, port: u32) {
        if let Some(backend) = self.get_mut(index) {
            backend.port = port;
        }
    }
}

impl Domain {
    /// A port already bound to a back end in this process (console, store), for
    /// the guest to find in an HVM parameter. Its events go to vCPU 0 until the
    /// guest rebinds it. `on_send` runs on the notifying vCPU's thread, with no
    /// lock held. The port's number is also the back end's name for the channel.
    ///
    /// # Errors
    /// `ENOSPC` when no port is free.
    pub fn alloc_backend_port(&self, on_send: OnSend) -> Result<u32, Errno> {
        let _change = lock(&self.events.change);
        let mut backends = write(&self.events.backends);
        let index = backends.next();
        let limit = read(&self.layout).ports();
        // A number that another back end has for a name would name two.
        let free = self
            .events
            .ports
            .find_free(limit, |port| backends.find(port).is_some() || self.port_is_busy(port));
        let port = free.ok_or(Errno::ENOSPC)?.port;
        let number = u32::try_from(index).map_err(|_| Errno::ENOSPC)?;
        self.events.ports.set(port, Channel::new(0, State::Backend(number)));
        backends.put(index, Backend { on_send, handle: port, port });
        Ok(port)
    }

    /// Binds a back end to a port that the guest allocated for domain 0
    /// (`EVTCHNOP_alloc_unbound`) and told of, as front ends do through the
    /// store. Returns the back end's name for the channel, which is above any
    /// port's number. `on_send` runs as in [`Domain::alloc_backend_port`], and
    /// once at once: the guest may have notified before.
    ///
    /// # Errors
    /// `EINVAL` where `guest_port` does not wait for domain 0.
    pub fn bind_backend_port(&self, guest_port: u32, on_send: OnSend) -> Result<u32, Errno> {
        let handle = {
            let _change = lock(&self.events.change);
            let mut backends = write(&self.events.backends);
            let channel = self.events.ports.get(guest_port);
            if channel.state != State::Unbound(0) {
                return Err(Errno::EINVAL);
            }
            let index = backends.next();
            let number = u32::try_from(index).map_err(|_| Errno::ENOSPC)?;
            let handle = FIRST_BOUND.checked_add(number).ok_or(Errno::ENOSPC)?;
            let bound = Channel { state: State::Backend(number), ..channel };
            self.events.ports.set(guest_port, bound);
            let on_send = Arc::clone(&on_send);
            backends.put(index, Backend { on_send, handle, port: guest_port });
            handle
        };
        on_send();
        Ok(handle)
    }

    /// The back end goes away: the guest's port, if it has one, waits for
    /// domain 0 again, and what it sends is dropped. A call of `on_send` that
    /// has begun may still run.
    ///
    /// # Errors
    /// `EINVAL` where there is no back end of that name.
    pub fn close_backend_port(&self, handle: u32) -> Result<(), Errno> {
        let _change = lock(&self.events.change);
        let mut backends = write(&self.events.backends);
        let (index, backend) = backends.find(handle).ok_or(Errno::EINVAL)?;
        let port = backend.port;
        let channel = self.events.ports.get(port);
        if matches!(channel.state, State::Backend(of) if usize::try_from(of) == Ok(index)) {
            self.events.ports.set(port, Channel { state: State::Unbound(0), ..channel });
        }
        if let Some(slot) = backends.0.get_mut(index) {
            *slot = None;
        }
        Ok(())
    }

    /// Raises the event of a back end toward the guest. `handle` is what
    /// [`Domain::alloc_backend_port`] or [`Domain::bind_backend_port`] gave,
    /// even after the guest closed its port and bound another to the back end.
    pub fn notify_port(&self, handle: u32) {
        let found =
            read(&self.events.backends).find(handle).map(|(index, backend)| (index, backend.port));
        let Some((index, port)) = found else { return };
        let channel = self.events.ports.get(port);
        if matches!(channel.state, State::Backend(of) if usize::try_from(of) == Ok(index)) {
            self.raise_channel(port, channel);
        }
    }

    /// Whether an event from before its closing holds `port`.
    pub(super) fn port_is_busy(&self, port: u32) -> bool {
        let layout = read(&self.layout);
        layout.fifo.as_ref().is_some_and(|fifo| fifo.is_busy(&self.memory(), port))
    }
}

impl Backends {
    pub(super) fn snapshot(&self) -> Vec<Option<BackendState>> {
        let state = |backend: &Backend| BackendState { handle: backend.handle, port: backend.port };
        self.0.iter().map(|slot| slot.as_ref().map(state)).collect()
    }

    /// Each as it was, but with nobody behind it yet.
    pub(super) fn restore(&mut self, from: &[Option<BackendState>]) {
        let nobody: OnSend = Arc::new(|| {});
        let backend = |state: &BackendState| Backend {
            on_send: Arc::clone(&nobody),
            handle: state.handle,
            port: state.port,
        };
        self.0 = from.iter().map(|slot| slot.as_ref().map(backend)).collect();
    }

    pub(super) fn reattach(&mut self, handle: u32, on_send: OnSend) -> bool {
        let mut backends = self.0.iter_mut().flatten();
        match backends.find(|backend| backend.handle == handle) {
            Some(backend) => {
                backend.on_send = on_send;
                true
            }
            None => false,
        }
    }
}
