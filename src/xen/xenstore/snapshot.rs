//! The store as plain data, to be kept or sent, and made from it again.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xen_abi::xs_wire::XS_WATCH_EVENT;

use super::super::RestoreError;
use super::connection::Watch;
use super::node::{Node, StorePerm};
use super::transaction::{Touched, Transaction};
use super::tree::{Change, Tree};
use super::{Domain, lock};

/// All of a store that does not lie in guest memory. Back ends' watches are not
/// in it: back ends are made anew, and watch again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XenstoreState {
    /// The last generation given to a node.
    pub generation: u64,
    /// By full name, ascending.
    pub nodes: Vec<StoreNodeState>,
    /// In the order in which the guest set them.
    pub watches: Vec<StoreWatchState>,
    /// By number, ascending.
    pub transactions: Vec<StoreTransactionState>,
    /// The last number given to a transaction.
    pub last_transaction: u32,
    /// The guest broke the protocol and is not heard.
    pub ignored: bool,
    /// The beginning of a message from the guest.
    pub input: Vec<u8>,
    /// Messages that wait for the guest.
    pub output: Vec<Vec<u8>>,
    /// Bytes of the first of them that are in the ring already.
    pub sent: u64,
    /// Its event channel, if it is connected.
    pub port: Option<u32>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreNodeState {
    /// Its full name.
    pub path: String,
    /// Its value.
    pub value: Vec<u8>,
    /// The owner first.
    pub perms: Vec<StorePerm>,
    /// Its generation.
    pub generation: u64,
}

/// A watch of the guest's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreWatchState {
    /// The full name, or a special one.
    pub path: String,
    /// The guest's own mark.
    pub token: Vec<u8>,
    /// The guest named it below its home.
    pub relative: bool,
}

/// A transaction under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreTransactionState {
    /// Its number.
    pub id: u32,
    /// The nodes that it touched, by full name, ascending.
    pub touched: Vec<StoreTouchedState>,
    /// What watches hear of at its end.
    pub changes: Vec<StoreChangeState>,
    /// Nodes that each domain gains by it, or loses.
    pub owned: Vec<(u16, i32)>,
}

/// A node that a transaction touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreTouchedState {
    /// Its full name.
    pub path: String,
    /// The generation that it had; `None` where it was not there.
    pub seen: Option<u64>,
    /// What is to become of it: nothing new, a node, or none.
    pub made: Option<Option<StoreNodeState>>,
    /// Children of the node that is to be, which the tree does not tell.
    pub children: Vec<String>,
}

/// A change that is to be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreChangeState {
    /// The node's full name.
    pub path: String,
    /// It went with one above.
    pub exact: bool,
    /// Its permissions before.
    pub before: Option<Vec<StorePerm>>,
}

/// Why a store can not be made from a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreStateError {
    /// A node without the one above it, or without an owner.
    #[error("the state's store has a node {0:?} that can not be")]
    Node(String),
}

impl Domain {
    /// The store as it is. The guest stands still, or its ring and this may not
    /// fit together.
    pub fn xenstore_state(&self) -> XenstoreState {
        let store = lock(&self.xenstore.store);
        let guest = &store.guest;
        XenstoreState {
            generation: store.tree.generation(),
            nodes: store.tree.nodes().map(|(path, node)| node_state(path, node)).collect(),
            watches: guest.watches.iter().map(watch_state).collect(),
            transactions: guest
                .transactions
                .iter()
                .map(|(id, transaction)| transaction_state(*id, transaction))
                .collect(),
            last_transaction: guest.last_transaction,
            ignored: guest.ignored,
            input: guest.input.clone(),
            output: guest.output.iter().cloned().collect(),
            sent: guest.sent as u64,
            port: self.xenstore.port(),
        }
    }

    /// Connects the store of a restored domain again, and makes it what `state`
    /// says, before the guest runs. The ring is in guest memory.
    ///
    /// # Errors
    /// [`RestoreError::Value`] where its event channel is none of a back end,
    /// [`RestoreError::Store`] where the nodes are no tree.
    pub fn reattach_xenstore(self: &Arc<Self>, state: &XenstoreState) -> Result<(), RestoreError> {
        self.restore_xenstore(state)?;
        let Some(port) = state.port else { return Ok(()) };
        let domain = Arc::downgrade(self);
        let serve = move || {
            if let Some(domain) = domain.upgrade() {
                domain.service_xenstore();
            }
        };
        self.reattach_backend(port, Arc::new(serve))?;
        let _ = self.xenstore.port.set(port);
        Ok(())
    }

    /// Makes the store what `state` says, before the guest runs. Its port is
    /// that of [`Domain::attach_xenstore`], which comes first; the ring is in
    /// guest memory.
    ///
    /// # Errors
    /// Where the nodes are no tree.
    pub fn restore_xenstore(&self, state: &XenstoreState) -> Result<(), StoreStateError> {
        let tree = tree_of(state)?;
        let mut store = lock(&self.xenstore.store);
        store.tree = tree;
        let guest = &mut store.guest;
        guest.reset();
        guest.watches = state
            .watches
            .iter()
            .map(|watch| Watch {
                path: watch.path.clone(),
                token: watch.token.clone(),
                relative: watch.relative,
            })
            .collect();
        guest.transactions = state
            .transactions
            .iter()
            .map(|transaction| (transaction.id, transaction_of(transaction)))
            .collect();
        guest.last_transaction = state.last_transaction;
        guest.ignored = state.ignored;
        guest.input.clone_from(&state.input);
        guest.output = state.output.iter().cloned().collect();
        let started = usize::from(state.sent > 0);
        let event = XS_WATCH_EVENT.to_le_bytes();
        let waiting = state.output.iter().skip(started);
        guest.queued = waiting.filter(|message| message.starts_with(&event)).cloned().collect();
        let first = state.output.first().map_or(0, Vec::len);
        guest.sent = usize::try_from(state.sent).unwrap_or(usize::MAX).min(first);
        let total: usize = state.output.iter().map(Vec::len).sum();
        guest.waiting = total - guest.sent;
        Ok(())
    }
}

fn node_state(path: &str, node: &Node) -> StoreNodeState {
    StoreNodeState {
        path: path.to_owned(),
        value: node.value.clone(),
        perms: node.perms.clone(),
        generation: node.generation,
    }
}

fn node_of(state: &StoreNodeState) -> Node {
    let mut node = Node::new(state.perms.clone());
    node.value.clone_from(&state.value);
    node.generation = state.generation;
    node
}

fn watch_state(watch: &Watch) -> StoreWatchState {
    StoreWatchState {
        path: watch.path.clone(),
        token: watch.token.clone(),
        relative: watch.relative,
    }
}

fn tree_of(state: &XenstoreState) -> Result<Tree, StoreStateError> {
    let mut nodes: BTreeMap<String, Node> =
        state.nodes.iter().map(|node| (node.path.clone(), node_of(node))).collect();
    for node in &state.nodes {
        let wrong = || StoreStateError::Node(node.path.clone());
        if node.perms.is_empty()
            || super::path::canonical("", node.path.as_bytes()) != Ok(node.path.clone())
        {
            return Err(wrong());
        }
        if let Some(parent) = super::path::parent(&node.path) {
            let parent = nodes.get_mut(parent).ok_or_else(wrong)?;
            parent.children.insert(super::path::last(&node.path).to_owned());
        }
    }
    if !nodes.contains_key(super::path::ROOT) {
        return Err(StoreStateError::Node(super::path::ROOT.to_owned()));
    }
    Ok(Tree::from_parts(nodes, state.generation))
}

fn transaction_state(id: u32, transaction: &Transaction) -> StoreTransactionState {
    let touched = |(path, touched): (&String, &Touched)| {
        let node = touched.made.as_ref().and_then(Option::as_ref);
        StoreTouchedState {
            path: path.clone(),
            seen: touched.seen,
            made: touched
                .made
                .as_ref()
                .map(|made| made.as_ref().map(|node| node_state(path, node))),
            children: node.map_or_else(Vec::new, |node| node.children.iter().cloned().collect()),
        }
    };
    let change = |change: &Change| StoreChangeState {
        path: change.path.clone(),
        exact: change.exact,
        before: change.before.clone(),
    };
    StoreTransactionState {
        id,
        touched: transaction.touched.iter().map(touched).collect(),
        changes: transaction.changes.iter().map(change).collect(),
        owned: transaction.owned.iter().map(|(domid, count)| (*domid, *count)).collect(),
    }
}

fn transaction_of(state: &StoreTransactionState) -> Transaction {
    let touched = |touched: &StoreTouchedState| {
        let made = touched.made.as_ref().map(|made| {
            made.as_ref().map(|node| {
                let children = touched.children.iter().cloned().collect();
                Node { children, ..node_of(node) }
            })
        });
        (touched.path.clone(), Touched { seen: touched.seen, made })
    };
    let change = |change: &StoreChangeState| Change {
        path: change.path.clone(),
        exact: change.exact,
        before: change.before.clone(),
    };
    Transaction {
        touched: state.touched.iter().map(touched).collect(),
        changes: state.changes.iter().map(change).collect(),
        owned: state.owned.iter().copied().collect(),
    }
}
