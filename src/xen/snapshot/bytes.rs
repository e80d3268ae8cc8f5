//! Bytes in a section: a CBOR byte string, without the zeroes at its end.

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// A byte string of which the zeroes at the end are not kept. A structure of
/// KVM's, whose unused end is zero, is as long as what is in it; read back, it
/// is filled up again.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Bytes(Vec<u8>);

impl Bytes {
    /// The bytes of a structure.
    pub fn of<T: IntoBytes + Immutable + ?Sized>(value: &T) -> Self {
        let bytes = value.as_bytes();
        let len = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        Self(bytes[..len].to_vec())
    }

    /// The structure, `None` where these are more bytes than it has.
    pub fn get<T: FromBytes + IntoBytes>(&self) -> Option<T> {
        let mut value = T::new_zeroed();
        value.as_mut_bytes().get_mut(..self.0.len())?.copy_from_slice(&self.0);
        Some(value)
    }

    /// Fills `to`, zeroes at the end; `false` where these are more bytes.
    #[must_use]
    pub fn fill(&self, to: &mut [u8]) -> bool {
        let Some((head, tail)) = to.split_at_mut_checked(self.0.len()) else { return false };
        head.copy_from_slice(&self.0);
        tail.zero();
        true
    }

    /// The bytes that are kept.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a byte string")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }

            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
                Ok(Bytes(bytes))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut bytes: A) -> Result<Bytes, A::Error> {
                let mut read = Vec::new();
                while let Some(byte) = bytes.next_element()? {
                    read.push(byte);
                }
                Ok(Bytes(read))
            }
        }
        deserializer.deserialize_byte_buf(Read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_at_the_end_are_left_out_and_come_back() {
        let bytes = Bytes::of(&[1u8, 0, 2, 0, 0]);
        assert_eq!(bytes.as_slice(), [1, 0, 2]);
        assert_eq!(bytes.get::<[u8; 5]>(), Some([1, 0, 2, 0, 0]));
        assert_eq!(bytes.get::<[u8; 2]>(), None);
        let mut to = [9; 4];
        assert!(bytes.fill(&mut to) && to == [1, 0, 2, 0] && !bytes.fill(&mut to[..2]));
        assert_eq!(Bytes::of(&0u64).get::<u64>(), Some(0));
    }

    #[test]
    fn a_byte_string_in_cbor() {
        let mut cbor = Vec::new();
        ciborium::into_writer(&Bytes::of(&[7u8, 8]), &mut cbor).unwrap();
        assert_eq!(cbor, [0x42, 7, 8]);
        assert_eq!(ciborium::from_reader::<Bytes, _>(&cbor[..]).unwrap(), Bytes::of(&[7u8, 8]));
    }
}
