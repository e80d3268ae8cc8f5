//! The guest's side of the handover page (`docs/handover.md`): what is asked, when
//! the vCPU that waits may go on, and how far the clocks moved meanwhile.
//!
//! The hypercalls, and the gathering of vCPUs, are the guest's own.

use core::mem::offset_of;

use xen_abi::handover::HandoverPage;
use zerocopy::transmute;

use crate::Refusal;
use crate::sequence::{self, Word};

/// 32-bit words of the structure at the start of the page.
pub const WORDS: usize = size_of::<HandoverPage>() / 4;
const REQUEST: usize = offset_of!(HandoverPage, request) / 4;
const GO: usize = offset_of!(HandoverPage, go) / 4;
const SEQUENCE: usize = offset_of!(HandoverPage, seq_count) / 4;

/// The ticket of the request that waits for an answer. The event that tells of it
/// was taken before this: by its atomic operations the request is seen.
pub fn requested<W: Word>(page: &[W; WORDS]) -> Option<u32> {
    Some(page[REQUEST].load()).filter(|ticket| *ticket != 0)
}

/// Whether the vCPUs gathered for `ticket` may go on; if so, what the host wrote
/// before is seen after. A vCPU spins on this with interrupts off.
pub fn may_go<W: Word>(page: &[W; WORDS], ticket: u32) -> bool {
    // G1.
    let went = page[GO].load() == ticket;
    // G2. Partner: the host's fence between the record and `go` (W6).
    W::acquire_fence();
    went
}

/// The record of the last move, whole.
///
/// # Errors
/// [`Refusal::Busy`] where the host was writing at each of `tries` reads.
pub fn record<W: Word>(page: &[W; WORDS], tries: u32) -> Result<HandoverPage, Refusal> {
    let quiet = sequence::read(&page[SEQUENCE], page.each_ref(), &|| 0, tries)?;
    Ok(transmute!(quiet.words.map(u32::to_le_bytes)))
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicU32;

    use xen_abi::handover::HANDOVER_FLAG_MOVED;

    use super::*;
    use crate::StoreWord;

    fn page(of: HandoverPage) -> [AtomicU32; WORDS] {
        let words: [[u8; 4]; WORDS] = transmute!(of);
        words.map(|word| AtomicU32::new(u32::from_ne_bytes(word)))
    }

    #[test]
    fn request_go_and_record() {
        let written = HandoverPage {
            seq_count: 4,
            flags: HANDOVER_FLAG_MOVED,
            move_count: 3,
            tsc_delta: -7,
            tai_error_ns: u64::MAX,
            ..HandoverPage::default()
        };
        let page = page(written);
        assert_eq!(requested(&page), None);
        assert!(!may_go(&page, 9));
        StoreWord::store(&page[REQUEST], 9);
        StoreWord::store(&page[GO], 8);
        assert_eq!(requested(&page), Some(9));
        assert!(!may_go(&page, 9));
        StoreWord::store(&page[GO], 9);
        assert!(may_go(&page, 9));
        let read = HandoverPage { request: 9, go: 9, ..written };
        assert_eq!(record(&page, 1), Ok(read));
        StoreWord::store(&page[SEQUENCE], 5);
        assert_eq!(record(&page, 3), Err(Refusal::Busy { tries: 3 }));
    }
}
