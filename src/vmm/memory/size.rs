//! Memory sizes as people write them: `512M`, `1G`, `134217728`.

use thiserror::Error;

/// Why a memory size could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MemorySizeError {
    /// Nothing, or no digits before the suffix.
    #[error("memory size \"{0}\" has no number: write for example 512M")]
    NoNumber(String),
    /// An unknown suffix; fractions end here too.
    #[error(
        "memory size \"{text}\" ends in \"{suffix}\": use a whole number and K, M, G or T, as in 512M"
    )]
    Suffix {
        /// The whole text.
        text: String,
        /// The part after the digits.
        suffix: String,
    },
    /// More than 64 bits of bytes.
    #[error("memory size \"{0}\" is beyond 64 bits: ask for 1T or less")]
    Overflow(String),
}

/// Reads a size in bytes, or in units of 2^10, 2^20, 2^30 or 2^40 bytes with
/// the suffix `K`, `M`, `G` or `T` in either case, optionally followed by `iB`.
/// The bounds of a guest are [`MemoryLayout`](super::MemoryLayout)'s matter.
pub fn parse_memory_size(text: &str) -> Result<u64, MemorySizeError> {
    let trimmed = text.trim();
    let digits = trimmed.len() - trimmed.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, suffix) = trimmed.split_at(digits);
    if number.is_empty() {
        return Err(MemorySizeError::NoNumber(text.to_owned()));
    }
    let overflow = || MemorySizeError::Overflow(text.to_owned());
    let number: u64 = number.parse().map_err(|_| overflow())?;
    let shift = match suffix.to_ascii_lowercase().as_str() {
        "" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => {
            return Err(MemorySizeError::Suffix {
                text: text.to_owned(),
                suffix: suffix.to_owned(),
            });
        }
    };
    number.checked_mul(1 << shift).ok_or_else(overflow)
}
