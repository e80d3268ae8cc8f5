//! The accounts against a plain model: a set of frames and the list of pages.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::xen::MemoryMapEntry;
use crate::xen::test_platform::config;

/// RAM at frames 2 to 9 and 20 to 23.
fn physmap() -> Physmap {
    let entry = |first: u64, pages: u64| MemoryMapEntry {
        addr: first << PAGE_SHIFT,
        size: pages << PAGE_SHIFT,
        kind: E820_RAM,
    };
    // Out of order, and with something that is not RAM.
    let memory_map = vec![entry(20, 4), entry(2, 8), MemoryMapEntry { kind: 2, ..entry(10, 5) }];
    Physmap::new(&DomainConfig { memory_map, ..config(1) })
}

#[test]
fn blocks_of_the_bitmap_are_apart() {
    let mut holes = Holes::default();
    let frames = [0, 1, 63, 64, BLOCK_FRAMES - 1, BLOCK_FRAMES, u64::MAX];
    for gfn in frames {
        assert!(!holes.get(gfn), "{gfn:#x}");
        holes.set(gfn);
        assert!(holes.get(gfn), "{gfn:#x}");
    }
    assert_eq!(holes.0.len(), 3);
    for gfn in frames {
        holes.clear(gfn);
        assert!(!holes.get(gfn), "{gfn:#x}");
    }
}

#[test]
fn pages_outside_ram_count_against_the_limit() {
    let physmap = physmap();
    assert_eq!((physmap.pages(), physmap.max_pages(), physmap.highest_gfn()), (12, 12, 23));
    assert_eq!(physmap.populate(100), Err(Errno::ENOMEM));
    assert_eq!(physmap.remove(2), Ok(None));
    assert_eq!(physmap.populate(100), Ok(()));
    assert_eq!((physmap.pages(), physmap.highest_gfn()), (12, 100));
    assert_eq!(physmap.populate(2), Err(Errno::ENOMEM));
    // A page of Xen's over it frees it.
    assert_eq!(physmap.place(100, Special::GrantFrame(0)), Displaced::default());
    assert_eq!((physmap.pages(), physmap.highest_gfn()), (11, 100));
    assert_eq!(physmap.remove(100), Ok(Some(Special::GrantFrame(0))));
    assert_eq!(physmap.remove(100), Err(Errno::ENOENT));
    assert_eq!(physmap.highest_gfn(), 23);
}

#[derive(Clone, Debug)]
enum Step {
    Remove(u64),
    Populate(u64),
    Place(u64, u32),
    Move(u64, u64),
    Unplaced(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let gfn = 0u64..26;
    prop_oneof![
        gfn.clone().prop_map(Step::Remove),
        gfn.clone().prop_map(Step::Populate),
        (gfn.clone(), 0u32..3).prop_map(|(gfn, page)| Step::Place(gfn, page)),
        (gfn.clone(), gfn).prop_map(|(from, to)| Step::Move(from, to)),
        (0u64..3).prop_map(Step::Unplaced),
    ]
}

proptest! {
    #[test]
    fn as_the_model_has_it(steps in prop::collection::vec(step(), 0..80)) {
        let physmap = physmap();
        let mut held: BTreeSet<u64> = (2..10).chain(20..24).collect();
        let mut special = BTreeMap::new();
        let mut unplaced = 0;
        for step in steps {
            match step {
                Step::Remove(gfn) => {
                    let expected = match special.remove(&gfn) {
                        Some(page) => Ok(Some(Special::GrantFrame(page))),
                        None if held.remove(&gfn) => Ok(None),
                        None => Err(Errno::ENOENT),
                    };
                    prop_assert_eq!(physmap.remove(gfn), expected);
                }
                Step::Populate(gfn) => {
                    let free = held.len() as u64 + unplaced < 12 && !special.contains_key(&gfn);
                    let expected = if free && held.insert(gfn) { Ok(()) } else { Err(Errno::ENOMEM) };
                    prop_assert_eq!(physmap.populate(gfn), expected);
                }
                Step::Place(gfn, page) => {
                    let left = special.iter().find(|(_, other)| **other == page);
                    let left = left.map(|(from, _)| *from).filter(|from| *from != gfn);
                    special.retain(|_, other| *other != page);
                    held.remove(&gfn);
                    let covered = special.insert(gfn, page).map(Special::GrantFrame);
                    let covered = covered.filter(|_| physmap.special(gfn) != Some(Special::GrantFrame(page)));
                    let expected = Displaced { covered, left };
                    prop_assert_eq!(physmap.place(gfn, Special::GrantFrame(page)), expected);
                }
                Step::Move(from, to) if from == to => {}
                Step::Move(from, to) => {
                    let expected = if held.remove(&from) {
                        held.insert(to);
                        Ok(special.remove(&to).map(Special::GrantFrame))
                    } else {
                        Err(Errno::EINVAL)
                    };
                    prop_assert_eq!(physmap.move_page(from, to), expected);
                }
                Step::Unplaced(pages) => {
                    let fits = held.len() as u64 + unplaced + pages <= 12;
                    let expected = if fits { Ok(()) } else { Err(Errno::ENOMEM) };
                    prop_assert_eq!(physmap.add_unplaced(pages), expected);
                    unplaced += if fits { pages } else { 0 };
                }
            }
            prop_assert_eq!(physmap.pages(), held.len() as u64 + unplaced);
            for gfn in 0..26 {
                let present = held.contains(&gfn) || special.contains_key(&gfn);
                prop_assert_eq!(physmap.is_present(gfn), present, "{}", gfn);
            }
        }
    }
}
