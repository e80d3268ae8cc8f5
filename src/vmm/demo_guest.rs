//! The guest that is built in.
/// ELF.
pub static CLOCK: &[u8] = &[];
