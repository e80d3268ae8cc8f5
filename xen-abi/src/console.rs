//! The ring of the PV console, one page (`io/console.h`).
//!
//! Indices run freely and wrap at 2^32; the place in a ring is the index modulo its size.

const NUMBERS: &[crate::layout::Number] = &[];

/// Bytes of the ring to the guest; a power of two.
pub const XENCONS_IN_SIZE: usize = 1024;
/// Bytes of the ring from the guest; a power of two.
pub const XENCONS_OUT_SIZE: usize = 2048;

structs! {
    /// The guest writes `out`, `out_prod` and `in_cons`; the back end the others.
    XenconsInterface, "struct xencons_interface", Both, 3088 {
        in_: [u8; XENCONS_IN_SIZE] = 0 "in",
        out: [u8; XENCONS_OUT_SIZE] = 1024,
        in_cons: u32 = 3072,
        in_prod: u32 = 3076,
        out_cons: u32 = 3080,
        out_prod: u32 = 3084,
    }
}

module!("console", "io/console.h");
