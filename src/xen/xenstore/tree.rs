//! All nodes, and a view of them: as they are, or within a transaction.

use std::collections::BTreeMap;

use xen_abi::errno::Errno;

use super::node::{Caller, Node, StorePerm};
use super::path::{self, ROOT};
use super::transaction::Transaction;

/// Nodes that an unprivileged domain may own.
pub(super) const MAX_NODES: u32 = 1000;
/// Bytes of a node, as [`Node::size`] counts, that an unprivileged domain may
/// write: it must stay below.
const MAX_NODE_SIZE: usize = 2048;

/// The nodes by their full names.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: BTreeMap<String, Node>,
    /// The last one given out.
    generation: u64,
    owned: BTreeMap<u16, u32>,
}

impl Tree {
    /// The root alone, which everybody may list, as xenstored begins.
    pub(super) fn new() -> Self {
        let mut tree = Self { nodes: BTreeMap::new(), generation: 0, owned: BTreeMap::new() };
        tree.put(ROOT.to_owned(), Node::new(vec![StorePerm::read(0)]));
        tree
    }

    /// Nodes and the last generation, to be put back as they were.
    pub(super) fn from_parts(nodes: BTreeMap<String, Node>, generation: u64) -> Self {
        let mut owned = BTreeMap::new();
        for node in nodes.values() {
            *owned.entry(node.owner()).or_insert(0) += 1;
        }
        Self { nodes, generation, owned }
    }

    pub(super) fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = (&String, &Node)> {
        self.nodes.iter()
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    pub(super) fn owned_by(&self, domid: u16) -> u32 {
        self.owned.get(&domid).copied().unwrap_or(0)
    }

    pub(super) fn put(&mut self, path: String, mut node: Node) {
        node.generation = self.next_generation();
        *self.owned.entry(node.owner()).or_insert(0) += 1;
        if let Some(old) = self.nodes.insert(path, node) {
            self.disown(&old);
        }
    }

    pub(super) fn remove(&mut self, path: &str) {
        if let Some(old) = self.nodes.remove(path) {
            self.disown(&old);
        }
    }

    fn disown(&mut self, node: &Node) {
        if let Some(count) = self.owned.get_mut(&node.owner()) {
            *count = count.saturating_sub(1);
        }
    }
}

/// What changed, for watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub path: String,
    /// Only watches of this very node hear of it: it went with one above.
    pub exact: bool,
    /// Its permissions before, where it went or they changed.
    pub before: Option<Vec<StorePerm>>,
}

/// The nodes as one request sees and changes them.
pub(super) struct View<'a> {
    pub tree: &'a mut Tree,
    pub transaction: Option<&'a mut Transaction>,
    pub caller: &'a Caller,
    /// Of a request outside a transaction.
    pub changes: Vec<Change>,
}

impl View<'_> {
    /// # Errors
    /// `ENOSPC` where a transaction has seen all the nodes that it may.
    pub(super) fn get(&mut self, path: &str) -> Result<Option<&Node>, Errno> {
        match &mut self.transaction {
            None => Ok(self.tree.get(path)),
            Some(transaction) => transaction.get(self.tree, self.caller, path),
        }
    }

    /// The node, if the caller has these rights on it.
    ///
    /// # Errors
    /// `ENOENT` where there is none, `EACCES` without the rights; also where
    /// there is none, and the caller has not these rights on what is above.
    pub(super) fn find(&mut self, path: &str, rights: u8) -> Result<&Node, Errno> {
        let caller = self.caller;
        let errno = match self.get(path)? {
            None => Errno::ENOENT,
            Some(node) if caller.may(rights, &node.perms) => {
                // Again, for the borrow.
                return self.get(path)?.ok_or(Errno::ENOENT);
            }
            Some(_) => Errno::EACCES,
        };
        let mut above = path;
        while let Some(parent) = path::parent(above) {
            if let Some(node) = self.get(parent)? {
                let known = caller.rights(&node.perms) & rights != 0;
                return Err(if known { errno } else { Errno::EACCES });
            }
            above = parent;
        }
        Err(Errno::EACCES)
    }

    /// Puts a node back that was changed, or a new one.
    ///
    /// # Errors
    /// `ENOSPC` beyond what the caller may have.
    pub(super) fn put(&mut self, path: &str, node: Node) -> Result<(), Errno> {
        if !self.caller.privileged && node.size() >= MAX_NODE_SIZE {
            return Err(Errno::ENOSPC);
        }
        match &mut self.transaction {
            None => self.tree.put(path.to_owned(), node),
            Some(transaction) => transaction.put(self.tree, self.caller, path, Some(node))?,
        }
        Ok(())
    }

    fn drop_node(&mut self, path: &str) -> Result<(), Errno> {
        match &mut self.transaction {
            None => self.tree.remove(path),
            Some(transaction) => transaction.put(self.tree, self.caller, path, None)?,
        }
        Ok(())
    }

    pub(super) fn changed(&mut self, change: Change) {
        match &mut self.transaction {
            None => self.changes.push(change),
            Some(transaction) => transaction.changed(change),
        }
    }

    /// Makes a node with `value` that is not there, and what is missing above.
    /// The caller may write to the lowest that is there.
    ///
    /// # Errors
    /// `ENOSPC` beyond a quota; nothing is changed then.
    pub(super) fn create(&mut self, path: &str, value: Vec<u8>) -> Result<(), Errno> {
        let mut missing = vec![path];
        let mut above = path;
        let (parent_path, mut parent) = loop {
            above = path::parent(above).ok_or(Errno::EINVAL)?;
            match self.get(above)? {
                Some(node) => break (above, node.clone()),
                None => missing.push(above),
            }
        };
        let mut perms = parent.perms.clone();
        if !self.caller.privileged {
            if let Some(owner) = perms.first_mut() {
                owner.domid = self.caller.domid;
            }
            let more = u32::try_from(missing.len()).map_err(|_| Errno::ENOSPC)?;
            let owned = self.owned_by(self.caller.domid);
            if owned.saturating_add(more) > MAX_NODES {
                return Err(Errno::ENOSPC);
            }
        }
        parent.children.insert(missing.last().map_or("", |path| path::last(path)).to_owned());
        let mut made = vec![(parent_path, parent)];
        let mut value = Some(value);
        for (index, path) in missing.iter().enumerate().rev() {
            let mut node = Node::new(perms.clone());
            match index.checked_sub(1).and_then(|below| missing.get(below)) {
                Some(below) => drop(node.children.insert(path::last(below).to_owned())),
                None => node.value = value.take().unwrap_or_default(),
            }
            made.push((path, node));
        }
        let too_large = |(_, node): &(_, Node)| node.size() >= MAX_NODE_SIZE;
        if !self.caller.privileged && made.iter().any(too_large) {
            return Err(Errno::ENOSPC);
        }
        if let Some(transaction) = &self.transaction {
            transaction.check_room(made.len(), self.caller)?;
        }
        made.into_iter().try_for_each(|(path, node)| self.put(path, node))
    }

    fn owned_by(&self, domid: u16) -> u32 {
        let now = self.tree.owned_by(domid);
        let more = self.transaction.as_ref().map_or(0, |transaction| transaction.owned(domid));
        now.saturating_add_signed(more)
    }

    /// Removes the node `path`, which is there, with all below.
    ///
    /// # Errors
    /// `ENOSPC` where a transaction has seen all the nodes that it may.
    pub(super) fn remove(&mut self, path: &str) -> Result<(), Errno> {
        let above = path::parent(path).ok_or(Errno::EINVAL)?;
        let mut parent = self.get(above)?.ok_or(Errno::EINVAL)?.clone();
        let mut gone = Vec::new();
        let mut next = vec![path.to_owned()];
        while let Some(path) = next.pop() {
            let Some(node) = self.get(&path)? else { continue };
            next.extend(node.children.iter().map(|name| path::child(&path, name)));
            let before = Some(node.perms.clone());
            gone.push(Change { exact: !gone.is_empty(), path, before });
        }
        parent.children.remove(path::last(path));
        // It shrinks, whoever owns it: no quota is in the way.
        match &mut self.transaction {
            None => self.tree.put(above.to_owned(), parent),
            Some(transaction) => transaction.put(self.tree, self.caller, above, Some(parent))?,
        }
        for change in gone {
            self.drop_node(&change.path)?;
            self.changed(change);
        }
        Ok(())
    }
}
