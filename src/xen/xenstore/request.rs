//! The operations, with the answers of xenstored 4.17.

use xen_abi::errno::Errno;
use xen_abi::xs_wire::{
    XENSTORE_PAYLOAD_MAX, XS_CONTROL, XS_DIRECTORY, XS_DIRECTORY_PART, XS_GET_DOMAIN_PATH,
    XS_GET_PERMS, XS_INTRODUCE, XS_IS_DOMAIN_INTRODUCED, XS_MKDIR, XS_READ, XS_RELEASE,
    XS_RESET_WATCHES, XS_RESUME, XS_RM, XS_SET_PERMS, XS_SET_TARGET, XS_TRANSACTION_END,
    XS_TRANSACTION_START, XS_UNWATCH, XS_WATCH, XS_WRITE,
};

use super::connection::{Connection, MAX_TRANSACTIONS, MAX_WATCHES, Message, Watch};
use super::node::{MAX_PERMS, OWNER, READ, StorePerm, WRITE};
use super::path;
use super::transaction::Transaction;
use super::tree::{Change, Tree, View};

type Answer = Result<Vec<u8>, Errno>;

/// What a request does besides its answer, which goes before it.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// Of nodes.
    pub changes: Vec<Change>,
    /// The first event of a new watch.
    pub first: Option<Vec<u8>>,
}

/// Serves a message of the guest.
pub(super) fn serve(
    tree: &mut Tree,
    guest: &mut Connection,
    message: &Message,
) -> (Answer, Effects) {
    let mut effects = Effects::default();
    let answer = dispatch(tree, guest, message, &mut effects);
    (answer, effects)
}

fn dispatch(
    tree: &mut Tree,
    guest: &mut Connection,
    message: &Message,
    effects: &mut Effects,
) -> Answer {
    let body = message.body.as_slice();
    match message.kind {
        // For domain 0.
        XS_CONTROL | XS_INTRODUCE | XS_RELEASE | XS_RESUME | XS_SET_TARGET => Err(Errno::EACCES),
        // These know no transaction, whatever number the message has.
        XS_WATCH => watch(guest, body, effects),
        XS_UNWATCH => unwatch(guest, body),
        XS_TRANSACTION_START => start(guest),
        XS_DIRECTORY..=XS_IS_DOMAIN_INTRODUCED | XS_RESET_WATCHES | XS_DIRECTORY_PART => {
            let transaction = match message.transaction {
                0 => None,
                id => Some(guest.transactions.remove(&id).ok_or(Errno::ENOENT)?),
            };
            in_transaction(tree, guest, message, transaction, effects)
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn in_transaction(
    tree: &mut Tree,
    guest: &mut Connection,
    message: &Message,
    mut transaction: Option<Transaction>,
    effects: &mut Effects,
) -> Answer {
    let body = message.body.as_slice();
    match message.kind {
        XS_TRANSACTION_END => return end(tree, guest, message, transaction, effects),
        XS_RESET_WATCHES => {
            guest.transactions.clear();
            guest.watches.clear();
            return ok();
        }
        _ => {}
    }
    let mut view = View {
        tree,
        transaction: transaction.as_mut(),
        caller: &guest.caller,
        changes: Vec::new(),
    };
    let answer = match message.kind {
        XS_GET_DOMAIN_PATH => number(body).map(|domid| terminated(&path::home(domid))),
        XS_IS_DOMAIN_INTRODUCED => is_introduced(guest.caller.domid, body),
        XS_DIRECTORY => directory(&mut view, body),
        XS_DIRECTORY_PART => directory_part(&mut view, body),
        XS_READ => name(&view, body).and_then(|path| read(&mut view, &path)),
        XS_GET_PERMS => get_perms(&mut view, body),
        XS_SET_PERMS => set_perms(&mut view, body),
        XS_WRITE => split(body).and_then(|(name, value)| {
            let path = path::canonical(&view.caller.home, name)?;
            write(&mut view, &path, value)
        }),
        XS_MKDIR => name(&view, body).and_then(|path| mkdir(&mut view, &path)),
        XS_RM => name(&view, body).and_then(|path| remove(&mut view, &path)),
        // XS_WATCH_EVENT and XS_ERROR go the other way only.
        _ => Err(Errno::ENOSYS),
    };
    effects.changes = view.changes;
    if let Some(transaction) = transaction {
        guest.transactions.insert(message.transaction, transaction);
    }
    answer
}

fn ok() -> Answer {
    Ok(terminated("OK"))
}

fn terminated(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// The one string that is all of `body`.
fn only(body: &[u8]) -> Result<&[u8], Errno> {
    match split(body)? {
        (text, []) => Ok(text),
        _ => Err(Errno::EINVAL),
    }
}

/// The first string of `body`, and what is behind its end.
fn split(body: &[u8]) -> Result<(&[u8], &[u8]), Errno> {
    let end = body.iter().position(|byte| *byte == 0).ok_or(Errno::EINVAL)?;
    Ok((&body[..end], &body[end + 1..]))
}

/// The strings of `body`, which all have an end. More than `most` count as one more.
fn strings(body: &[u8], most: usize) -> Vec<&[u8]> {
    let mut found = Vec::new();
    let mut rest = body;
    while let (Ok((text, behind)), true) = (split(rest), found.len() <= most) {
        found.push(text);
        rest = behind;
    }
    found
}

fn name(view: &View<'_>, body: &[u8]) -> Result<String, Errno> {
    path::canonical(&view.caller.home, only(body)?)
}

/// A domain's number as C's `atoi` reads it: 0 where there is none.
fn number(body: &[u8]) -> Result<u16, Errno> {
    let digits: Vec<u8> = only(body)?.iter().copied().take_while(u8::is_ascii_digit).collect();
    let text = String::from_utf8(digits).unwrap_or_default();
    if text.is_empty() { Ok(0) } else { text.parse().map_err(|_| Errno::EINVAL) }
}

fn is_introduced(guest: u16, body: &[u8]) -> Answer {
    const DOMID_SELF: u16 = 0x7ff0;
    let domid = number(body)?;
    let known = domid == 0 || domid == guest || domid == DOMID_SELF;
    Ok(terminated(if known { "T" } else { "F" }))
}

pub(super) fn read(view: &mut View<'_>, path: &str) -> Answer {
    Ok(view.find(path, READ)?.value.clone())
}

fn directory(view: &mut View<'_>, body: &[u8]) -> Answer {
    let path = name(view, body)?;
    list(view, &path)
}

/// The names of the children, each with its end.
pub(super) fn list(view: &mut View<'_>, path: &str) -> Answer {
    Ok(view.find(path, READ)?.children.iter().flat_map(|name| terminated(name)).collect())
}

/// From a byte of the list on, as much as one message holds, after the node's
/// generation; an empty name says that this is the end.
fn directory_part(view: &mut View<'_>, body: &[u8]) -> Answer {
    let [name, offset] = strings(body, 2)[..] else { return Err(Errno::EINVAL) };
    let path = path::canonical(&view.caller.home, name)?;
    let digits: String = offset
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .map(|byte| char::from(*byte))
        .collect();
    let offset = digits.parse::<usize>().unwrap_or(if digits.is_empty() { 0 } else { usize::MAX });
    let node = view.find(&path, READ)?;
    let mut answer = terminated(&node.generation.to_string());
    let room = XENSTORE_PAYLOAD_MAX - answer.len() - 1;
    let (mut at, mut len, mut whole) = (0usize, 0, true);
    for name in &node.children {
        let size = name.len() + 1;
        if at >= offset {
            if len + size > room {
                whole = false;
                break;
            }
            answer.extend(terminated(name));
            len += size;
        }
        at += size;
    }
    if whole {
        answer.push(0);
    }
    Ok(answer)
}

fn get_perms(view: &mut View<'_>, body: &[u8]) -> Answer {
    let path = name(view, body)?;
    let node = view.find(&path, READ)?;
    Ok(node.perms.iter().flat_map(|perm| terminated(&perm.text())).collect())
}

fn set_perms(view: &mut View<'_>, body: &[u8]) -> Answer {
    let found = strings(body, 1 + MAX_PERMS);
    let [name, texts @ ..] = &found[..] else { return Err(Errno::EINVAL) };
    if texts.is_empty() {
        return Err(Errno::EINVAL);
    }
    if texts.len() > MAX_PERMS {
        return Err(Errno::ENOSPC);
    }
    let perms = texts.iter().map(|text| StorePerm::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let path = path::canonical(&view.caller.home, name)?;
    change_perms(view, &path, perms)
}

pub(super) fn change_perms(view: &mut View<'_>, path: &str, perms: Vec<StorePerm>) -> Answer {
    let mut node = view.find(path, OWNER)?.clone();
    let owner = perms.first().ok_or(Errno::EINVAL)?;
    if !view.caller.privileged && owner.domid != node.owner() {
        return Err(Errno::EPERM);
    }
    let before = Some(std::mem::replace(&mut node.perms, perms));
    view.put(path, node)?;
    view.changed(Change { path: path.to_owned(), exact: false, before });
    ok()
}

pub(super) fn write(view: &mut View<'_>, path: &str, value: &[u8]) -> Answer {
    match view.find(path, WRITE) {
        Ok(node) => {
            let mut node = node.clone();
            node.value = value.to_vec();
            view.put(path, node)?;
        }
        Err(Errno::ENOENT) => view.create(path, value.to_vec())?,
        Err(errno) => return Err(errno),
    }
    view.changed(Change { path: path.to_owned(), exact: false, before: None });
    ok()
}

fn mkdir(view: &mut View<'_>, path: &str) -> Answer {
    match view.find(path, WRITE) {
        Ok(_) => return ok(),
        Err(Errno::ENOENT) => view.create(path, Vec::new())?,
        Err(errno) => return Err(errno),
    }
    view.changed(Change { path: path.to_owned(), exact: false, before: None });
    ok()
}

/// A node that is not there is as good as removed, if the one above is there.
pub(super) fn remove(view: &mut View<'_>, path: &str) -> Answer {
    match view.find(path, WRITE) {
        Ok(_) => view.remove(path)?,
        Err(Errno::ENOENT) => {
            let above = path::parent(path).ok_or(Errno::EINVAL)?;
            view.get(above)?.ok_or(Errno::ENOENT)?;
        }
        Err(errno) => return Err(errno),
    }
    ok()
}

fn watch(guest: &mut Connection, body: &[u8], effects: &mut Effects) -> Answer {
    let [name, token] = strings(body, 2)[..] else { return Err(Errno::EINVAL) };
    let (path, relative) = path::watchable(&guest.caller.home, name)?;
    if guest.watches.iter().any(|watch| watch.path == path && watch.token == token) {
        return Err(Errno::EEXIST);
    }
    if guest.watches.len() >= MAX_WATCHES {
        return Err(Errno::E2BIG);
    }
    let watch = Watch { path, token: token.to_vec(), relative };
    effects.first = Some(watch.body(&watch.path, &guest.caller));
    guest.watches.push(watch);
    ok()
}

fn unwatch(guest: &mut Connection, body: &[u8]) -> Answer {
    let [name, token] = strings(body, 2)[..] else { return Err(Errno::EINVAL) };
    let (path, _) = path::watchable(&guest.caller.home, name)?;
    let found = |watch: &Watch| watch.path == path && watch.token == token;
    let at = guest.watches.iter().position(found).ok_or(Errno::ENOENT)?;
    guest.watches.remove(at);
    ok()
}

fn start(guest: &mut Connection) -> Answer {
    if guest.transactions.len() >= MAX_TRANSACTIONS {
        return Err(Errno::ENOSPC);
    }
    loop {
        guest.last_transaction = guest.last_transaction.wrapping_add(1);
        let id = guest.last_transaction;
        if id != 0 && !guest.transactions.contains_key(&id) {
            guest.transactions.insert(id, Transaction::default());
            return Ok(terminated(&id.to_string()));
        }
    }
}

fn end(
    tree: &mut Tree,
    guest: &mut Connection,
    message: &Message,
    transaction: Option<Transaction>,
    effects: &mut Effects,
) -> Answer {
    let commit = match only(&message.body) {
        Ok(b"T") => true,
        Ok(b"F") => false,
        _ => {
            // It goes on.
            if let Some(transaction) = transaction {
                guest.transactions.insert(message.transaction, transaction);
            }
            return Err(Errno::EINVAL);
        }
    };
    let transaction = transaction.ok_or(Errno::ENOENT)?;
    if commit {
        effects.changes = transaction.commit(tree, &guest.caller)?;
    }
    ok()
}
