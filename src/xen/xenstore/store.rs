//! The store itself: nodes, the guest's connection, and the back ends' watches,
//! without the ring that carries the messages.

use std::sync::Arc;

use xen_abi::errno::Errno;

use super::connection::{Connection, Message, TooLong};
use super::node::Caller;
use super::path;
use super::request;
use super::tree::{Change, Tree, View};

/// What a back end runs when a node that it watches changes: the node's name.
pub(super) type OnChange = Arc<dyn Fn(&str) + Send + Sync>;

/// A back end's watch.
pub(super) struct Hook {
    pub id: u64,
    pub path: String,
    pub on_change: OnChange,
}

/// Calls that are to be made once nothing is locked.
pub(super) type Calls = Vec<(OnChange, String)>;

/// The store of one guest.
pub(super) struct Store {
    pub tree: Tree,
    pub guest: Connection,
    pub back_end: Caller,
    hooks: Vec<Hook>,
    last_hook: u64,
}

impl Store {
    pub(super) fn new(guest: u16) -> Self {
        Self {
            tree: Tree::new(),
            guest: Connection::new(Caller::guest(guest)),
            back_end: Caller::back_end(guest),
            hooks: Vec::new(),
            last_hook: 0,
        }
    }

    /// Serves all whole messages that came. Whether there was one.
    pub(super) fn serve_input(&mut self, calls: &mut Calls) -> Result<bool, TooLong> {
        let mut any = false;
        while let Some(message) = self.guest.next_message()? {
            self.serve(&message, calls);
            any = true;
        }
        Ok(any)
    }

    pub(super) fn serve(&mut self, message: &Message, calls: &mut Calls) {
        let (answer, effects) = request::serve(&mut self.tree, &mut self.guest, message);
        self.guest.reply(message, answer);
        if let Some(first) = &effects.first {
            self.guest.event(first);
        }
        self.tell(&effects.changes, calls);
    }

    fn tell(&mut self, changes: &[Change], calls: &mut Calls) {
        self.guest.fire(&self.tree, changes);
        for change in changes {
            let hit = |hook: &&Hook| {
                change.path == hook.path
                    || !change.exact && path::is_within(&change.path, &hook.path)
            };
            let hit = self.hooks.iter().filter(hit);
            calls.extend(hit.map(|hook| (Arc::clone(&hook.on_change), change.path.clone())));
        }
    }

    /// Does something as domain 0. `name` is a full name, or one below the
    /// guest's home.
    pub(super) fn as_back_end<T>(
        &mut self,
        name: &str,
        calls: &mut Calls,
        work: impl FnOnce(&mut View<'_>, &str) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let path = path::canonical(&self.back_end.home, name.as_bytes())?;
        let mut view = View {
            tree: &mut self.tree,
            transaction: None,
            caller: &self.back_end,
            changes: Vec::new(),
        };
        let done = work(&mut view, &path);
        let changes = view.changes;
        self.tell(&changes, calls);
        done
    }

    /// A watch of a back end. Its first call is due at once.
    pub(super) fn watch(
        &mut self,
        name: &str,
        on_change: OnChange,
        calls: &mut Calls,
    ) -> Result<u64, Errno> {
        let path = path::canonical(&self.back_end.home, name.as_bytes())?;
        self.last_hook += 1;
        calls.push((Arc::clone(&on_change), path.clone()));
        self.hooks.push(Hook { id: self.last_hook, path, on_change });
        Ok(self.last_hook)
    }

    pub(super) fn unwatch(&mut self, id: u64) {
        self.hooks.retain(|hook| hook.id != id);
    }
}
