//! Transactions: what one saw of each node and what it makes of it. It is
//! refused at its end if a node is not as it was seen.

use std::collections::BTreeMap;

use xen_abi::errno::Errno;

use super::node::{Caller, Node};
use super::tree::{Change, MAX_NODES, Tree};

/// Nodes that a transaction of an unprivileged domain may touch.
const MAX_TOUCHED: usize = 1024;

/// A node as a transaction has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Touched {
    /// The generation that was seen first; `None` where there was no node.
    pub seen: Option<u64>,
    /// What is to become of it: a node, or none. `None` where it was only read.
    pub made: Option<Option<Node>>,
}

/// A transaction under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Transaction {
    pub touched: BTreeMap<String, Touched>,
    pub changes: Vec<Change>,
    /// Nodes that each domain gains, or loses.
    pub owned: BTreeMap<u16, i32>,
}

impl Transaction {
    /// # Errors
    /// `ENOSPC` where an unprivileged caller touches too many nodes.
    pub(super) fn check_room(&self, more: usize, caller: &Caller) -> Result<(), Errno> {
        let full = !caller.privileged && self.touched.len() + more > MAX_TOUCHED;
        if full { Err(Errno::ENOSPC) } else { Ok(()) }
    }

    fn touch(&mut self, tree: &Tree, caller: &Caller, path: &str) -> Result<(), Errno> {
        if !self.touched.contains_key(path) {
            self.check_room(1, caller)?;
            let seen = tree.get(path).map(|node| node.generation);
            self.touched.insert(path.to_owned(), Touched { seen, made: None });
        }
        Ok(())
    }

    pub(super) fn get<'a>(
        &'a mut self,
        tree: &'a Tree,
        caller: &Caller,
        path: &str,
    ) -> Result<Option<&'a Node>, Errno> {
        self.touch(tree, caller, path)?;
        Ok(self.now(tree, path))
    }

    fn now<'a>(&'a self, tree: &'a Tree, path: &str) -> Option<&'a Node> {
        match self.touched.get(path) {
            Some(Touched { made: Some(made), .. }) => made.as_ref(),
            // A node that changed under a transaction ends in EAGAIN; what it
            // reads until then is of no account.
            _ => tree.get(path),
        }
    }

    pub(super) fn put(
        &mut self,
        tree: &mut Tree,
        caller: &Caller,
        path: &str,
        node: Option<Node>,
    ) -> Result<(), Errno> {
        self.touch(tree, caller, path)?;
        if let Some(owner) = self.now(tree, path).map(Node::owner) {
            *self.owned.entry(owner).or_insert(0) -= 1;
        }
        if let Some(node) = &node {
            *self.owned.entry(node.owner()).or_insert(0) += 1;
        }
        let generation = tree.next_generation();
        let made = node.map(|node| Node { generation, ..node });
        if let Some(touched) = self.touched.get_mut(path) {
            touched.made = Some(made);
        }
        Ok(())
    }

    /// Each node is told of once, however often it changed.
    pub(super) fn changed(&mut self, change: Change) {
        let known = |old: &&mut Change| old.path == change.path && old.exact == change.exact;
        match self.changes.iter_mut().find(known) {
            Some(old) => old.before = old.before.take().or(change.before),
            None => self.changes.push(change),
        }
    }

    pub(super) fn owned(&self, domid: u16) -> i32 {
        self.owned.get(&domid).copied().unwrap_or(0)
    }

    /// Makes it so, and tells what changed.
    ///
    /// # Errors
    /// `EAGAIN` if a node that it touched is another now; `ENOSPC` if its
    /// caller would own too many nodes by now.
    pub(super) fn commit(self, tree: &mut Tree, caller: &Caller) -> Result<Vec<Change>, Errno> {
        let is_as_seen = |(path, touched): (&String, &Touched)| {
            tree.get(path).map(|node| node.generation) == touched.seen
        };
        if !self.touched.iter().all(is_as_seen) {
            return Err(Errno::EAGAIN);
        }
        let more = self.owned(caller.domid);
        let owned = tree.owned_by(caller.domid).saturating_add_signed(more);
        if !caller.privileged && more > 0 && owned > MAX_NODES {
            return Err(Errno::ENOSPC);
        }
        for (path, touched) in self.touched {
            match touched.made {
                Some(Some(node)) => tree.put(path, node),
                Some(None) => tree.remove(&path),
                None => {}
            }
        }
        Ok(self.changes)
    }
}
