//! The two protocols between a clock page's writer and its guest reader.
//!
//! Generic over [`Word`]: guest memory in service, loom's atomics in the model
//! check (`tests/loom_pages.rs`), which compiles this same file.
//!
//! All stores and loads are relaxed; the order comes from fences, because a
//! Release *store* holds earlier accesses before itself but lets later ones
//! pass it. Marking a page odd with a Release store would allow new data to be
//! seen under the old even version. On x86 the fences cost no instruction:
//! stores become visible in order, and the fences stop the compiler alone.

use xen_abi::vcpu::XEN_RUNSTATE_UPDATE;

/// One naturally aligned 32-bit word that a guest may read at any moment.
pub trait Word {
    /// Relaxed atomic load.
    fn load(&self) -> u32;
    /// Relaxed atomic store.
    fn store(&self, value: u32);
    /// Release fence: stores before it are seen before stores after it.
    fn release_fence();
    /// Acquire fence: loads before it are done before loads after it.
    fn acquire_fence();
}

/// `XEN_RUNSTATE_UPDATE` in the high half of `state_entry_time`.
pub const RUNSTATE_UPDATE_HI: u32 = halves(XEN_RUNSTATE_UPDATE)[1];

/// Publishes `values` with [`write_versioned`], unless the words already hold
/// them under an even version: then writes nothing and returns false.
///
/// The version is read once.
pub fn publish_versioned<W: Word, const N: usize>(
    version: &W,
    data: [&W; N],
    values: [u32; N],
) -> bool {
    let old_version = version.load();
    let same = data.iter().zip(values).all(|(word, value)| word.load() == value);
    if same && old_version & 1 == 0 {
        return false;
    }
    write_versioned(version, old_version, data, values);
    true
}

/// Writes `values` under a version that is odd during the update.
///
/// Whatever `old_version` a guest scribbled, the version becomes odd, then the
/// next even number (wrapping). Loads nothing, so that the model check sees
/// every order (`tests/loom_pages.rs` says why that matters).
///
/// The partner is the guest's reader, in Linux `pvclock_read_begin`,
/// `pvclock_read_retry` and `pvclock_read_wallclock`, R1 to R5 in
/// [`read_versioned`].
pub fn write_versioned<W: Word, const N: usize>(
    version: &W,
    old_version: u32,
    data: [&W; N],
    values: [u32; N],
) {
    let odd = old_version.wrapping_add(1) | 1;
    // W1. Readers that see this discard what they read (R1, R5).
    version.store(odd);
    // W2. Nobody sees W3 without W1. Partner: R4, between data and second version.
    W::release_fence();
    // W3. The data, in any order.
    for (word, value) in data.iter().zip(values) {
        word.store(value);
    }
    // W4. Nobody sees W5 without W3. Partner: R2, between first version and data.
    W::release_fence();
    // W5. Even again, and different from before.
    version.store(odd.wrapping_add(1));
}

/// Publishes as [`write_versioned`], then lets whoever waits for `ticket` in the
/// word `go` go on.
///
/// The partner is a guest's vCPU that waits, G1 and G2 in [`may_go`].
pub fn write_and_go<W: Word, const N: usize>(
    version: (&W, u32),
    data: [&W; N],
    values: [u32; N],
    go: (&W, u32),
) {
    // W1 to W5.
    let (word, old_version) = version;
    write_versioned(word, old_version, data, values);
    // W6. Nobody sees W7 without W5. Partner: G2, between `go` and the version.
    W::release_fence();
    // W7.
    let (word, ticket) = go;
    word.store(ticket);
}

/// Whether `ticket` may go on: what was published before is then seen.
pub fn may_go<W: Word>(go: &W, ticket: u32) -> bool {
    // G1.
    let went = go.load() == ticket;
    // G2. Partner: W6.
    W::acquire_fence();
    went
}

/// Reads what [`write_versioned`] (or KVM, or Xen) published: the even version
/// and the data. `None` when no try out of `tries` was quiet.
pub fn read_versioned<W: Word, const N: usize>(
    version: &W,
    data: [&W; N],
    tries: u32,
) -> Option<(u32, [u32; N])> {
    for _ in 0..tries {
        // R1. Odd means an update under way.
        let before = version.load();
        if before & 1 == 0 {
            // R2. Partner: W4.
            W::acquire_fence();
            // R3. The data, in any order.
            let values = data.map(Word::load);
            // R4. Partner: W2.
            W::acquire_fence();
            // R5. Unchanged: no update began before R3 ended.
            if version.load() == before {
                return Some((before, values));
            }
        }
        core::hint::spin_loop();
    }
    None
}

/// Publishes a runstate: `values` and the entry time around them.
///
/// With `update_flag` (the guest enabled `VMASST_TYPE_runstate_update_flag`)
/// the top bit of the entry time is set during the update. Without it a reader
/// on another vCPU may see a mix, as under Xen; the vCPU's own code cannot,
/// because it does not run meanwhile.
///
/// The reader compares entry times, so each update must bring a new one; Xen's
/// rule, since the entry time is the time of the change.
///
/// The partner is Linux's `xen_get_runstate_snapshot_cpu_delta`, S1 to S5 in
/// [`read_flagged`]. A 64-bit guest loads the entry time in one access: as the
/// low half is stored under the flag and the high half stored after it, the
/// pair it sees without the flag is the whole old or the whole new one.
pub fn write_flagged<W: Word, const N: usize>(
    entry: EntryTime<&W>,
    data: [&W; N],
    entry_time_ns: u64,
    values: [u32; N],
    update_flag: bool,
) {
    let [low, high] = halves(entry_time_ns);
    let high = high & !RUNSTATE_UPDATE_HI;
    if update_flag {
        // U1. Readers that see this try again (S1, S5).
        entry.high.store(high | RUNSTATE_UPDATE_HI);
        // U2. Nobody sees U3 without U1. Partner: S4, and the fence inside of S1.
        W::release_fence();
    }
    // U3. The low half and the data, in any order.
    entry.low.store(low);
    for (word, value) in data.iter().zip(values) {
        word.store(value);
    }
    // U4. Nobody sees U5 without U3. Partner: S2, and the fence inside of S1.
    W::release_fence();
    // U5. The flag goes.
    entry.high.store(high);
}

/// Reads a runstate as Linux does: the entry time and the data. `None` when no
/// try out of `tries` was quiet.
pub fn read_flagged<W: Word, const N: usize>(
    entry: EntryTime<&W>,
    data: [&W; N],
    tries: u32,
) -> Option<(u64, [u32; N])> {
    for _ in 0..tries {
        // S1. High, low, high, as a 32-bit guest: `None` when it moved meanwhile.
        let before = entry.load();
        // S2. Partner: U4.
        W::acquire_fence();
        // S3. The data, in any order.
        let values = data.map(Word::load);
        // S4. Partner: U2.
        W::acquire_fence();
        // S5. The same entry time, and no update under way.
        if let Some((low, high)) = before
            && high & RUNSTATE_UPDATE_HI == 0
            && entry.load() == before
        {
            return Some((u64::from(high) << 32 | u64::from(low), values));
        }
        core::hint::spin_loop();
    }
    None
}

/// The two halves of a runstate's `state_entry_time`.
#[derive(Clone, Copy, Debug)]
pub struct EntryTime<T> {
    /// Bits 0 to 31.
    pub low: T,
    /// Bits 32 to 63; bit 31 of it is the update flag.
    pub high: T,
}

impl<W: Word> EntryTime<&W> {
    fn load(&self) -> Option<(u32, u32)> {
        let high = self.high.load();
        W::acquire_fence();
        let low = self.low.load();
        W::acquire_fence();
        (self.high.load() == high).then_some((low, high))
    }
}

/// Low and high half.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "each cast keeps the 32 bits that it names")]
pub const fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}
