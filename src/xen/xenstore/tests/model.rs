//! The store against a map of names to values, with transactions as copies of it.

use std::collections::BTreeMap;

use proptest::prelude::*;
use xen_abi::xs_wire::{XS_READ, XS_RM};

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Write(usize, String, String),
    Mkdir(String),
    Remove(usize, String),
    Read(usize, String),
    List(String),
    BackEnd(String, String),
    Start,
    End(usize, bool),
}

fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec("[ab]", 1..4).prop_map(|parts| format!("data/{}", parts.join("/")))
}

/// A step; the number says in which transaction, 0 in none.
fn step() -> impl Strategy<Value = Step> {
    let within = || 0usize..3;
    prop_oneof![
        4 => (within(), path(), "[a-z]{0,3}").prop_map(|(at, path, value)| Step::Write(at, path, value)),
        1 => path().prop_map(Step::Mkdir),
        2 => (within(), path()).prop_map(|(at, path)| Step::Remove(at, path)),
        3 => (within(), path()).prop_map(|(at, path)| Step::Read(at, path)),
        1 => path().prop_map(Step::List),
        1 => (path(), "[a-z]{0,3}").prop_map(|(path, value)| Step::BackEnd(path, value)),
        2 => Just(Step::Start),
        2 => (1usize..3, any::<bool>()).prop_map(|(at, good)| Step::End(at, good)),
    ]
}

type Map = BTreeMap<String, String>;

fn write(map: &mut Map, path: &str, value: &str) {
    let mut above = path;
    while let Some((parent, _)) = above.rsplit_once('/') {
        map.entry(parent.to_owned()).or_default();
        above = parent;
    }
    map.insert(path.to_owned(), value.to_owned());
}

fn remove(map: &mut Map, path: &str) -> Reply {
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    if !map.contains_key(parent) {
        return error("ENOENT");
    }
    let below = format!("{path}/");
    map.retain(|name, _| name != path && !name.starts_with(&below));
    ok()
}

fn list(map: &Map, path: &str) -> Result<Vec<String>, String> {
    if !map.contains_key(path) {
        return error("ENOENT");
    }
    let below = format!("{path}/");
    let names = map.keys().filter_map(|name| name.strip_prefix(&below));
    Ok(names.filter(|name| !name.contains('/')).map(str::to_owned).collect())
}

/// A transaction of the model: its number, its copy, and the copy's origin.
struct Copy {
    id: u32,
    map: Map,
    origin: u64,
    touched: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn as_a_map(steps in proptest::collection::vec(step(), 1..80), piece in 1usize..1024) {
        let mut guest = guest();
        guest.piece = piece;
        let mut map = Map::from([("data".to_owned(), String::new())]);
        let mut version = 0u64;
        let mut copies: Vec<Copy> = Vec::new();
        for step in steps {
            match step {
                Step::Write(at, path, value) => {
                    // What was changed since would make it see a mixture, until EAGAIN.
                    match at.checked_sub(1).and_then(|at| copies.get_mut(at)) {
                        Some(copy) => {
                            prop_assert_eq!(guest.write_in(copy.id, &path, &value), ok());
                            write(&mut copy.map, &path, &value);
                            copy.touched = true;
                        }
                        None => {
                            prop_assert_eq!(guest.write(&path, &value), ok());
                            write(&mut map, &path, &value);
                            version += 1;
                        }
                    }
                }
                Step::Mkdir(path) => {
                    prop_assert_eq!(guest.mkdir(&path), ok());
                    let value = map.get(&path).cloned().unwrap_or_default();
                    write(&mut map, &path, &value);
                    version += 1;
                }
                Step::Remove(at, path) => match at.checked_sub(1).and_then(|at| copies.get_mut(at)) {
                    Some(copy) if copy.origin == version => {
                        let answer = guest.request(XS_RM, copy.id, &joined(&[&path]));
                        prop_assert_eq!(answer, remove(&mut copy.map, &path));
                        copy.touched = true;
                    }
                    Some(_) => {}
                    None => {
                        prop_assert_eq!(guest.remove(&path), remove(&mut map, &path));
                        version += 1;
                    }
                },
                Step::Read(at, path) => match at.checked_sub(1).and_then(|at| copies.get_mut(at)) {
                    Some(copy) if copy.origin == version => {
                        let answer = guest.request(XS_READ, copy.id, &joined(&[&path]));
                        let wanted = copy.map.get(&path).map(|value| value.clone().into_bytes());
                        prop_assert_eq!(answer, wanted.ok_or("ENOENT".to_owned()));
                        copy.touched = true;
                    }
                    Some(_) => {}
                    None => {
                        let wanted = map.get(&path).cloned().ok_or("ENOENT".to_owned());
                        prop_assert_eq!(guest.read(&path), wanted);
                    }
                },
                Step::List(path) => prop_assert_eq!(guest.list(&path), list(&map, &path)),
                Step::BackEnd(path, value) => {
                    guest.domain.store_write(&path, value.as_bytes()).unwrap();
                    let all = ["data/a", "data/b"];
                    write(&mut map, &path, &value);
                    version += 1;
                    // Its nodes are the guest's, as those that it makes itself.
                    prop_assert!(all.iter().any(|top| path.starts_with(top)));
                }
                Step::Start if copies.len() < 2 => {
                    let id = guest.start();
                    copies.push(Copy { id, map: map.clone(), origin: version, touched: false });
                }
                Step::Start => {}
                Step::End(at, good) => {
                    let Some(index) = at.checked_sub(1).filter(|at| *at < copies.len()) else { continue };
                    let copy = copies.remove(index);
                    let answer = guest.end(copy.id, if good { "T" } else { "F" });
                    if !good {
                        prop_assert_eq!(answer, ok());
                    } else if copy.origin == version {
                        prop_assert_eq!(answer, ok());
                        map = copy.map;
                        version += u64::from(copy.touched);
                    } else if answer == ok() {
                        // Others changed what it did not look at: merged, node by
                        // node. The model takes what there is for each it knows.
                        map = tree(&guest);
                        version += 1;
                    } else {
                        prop_assert_eq!(answer, error("EAGAIN"));
                        prop_assert!(copy.touched);
                    }
                }
            }
        }
        prop_assert_eq!(tree(&guest), map);
    }
}

/// All below the guest's `data`.
fn tree(guest: &Guest) -> Map {
    let nodes = guest.domain.xenstore_state().nodes;
    let below = |path: &str| path.strip_prefix("/local/domain/7/").map(str::to_owned);
    nodes
        .into_iter()
        .filter_map(|node| Some((below(&node.path)?, String::from_utf8(node.value).ok()?)))
        .filter(|(path, _)| path == "data" || path.starts_with("data/"))
        .collect()
}
