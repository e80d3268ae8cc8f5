#![no_std]
#![forbid(unsafe_code)]
//! The Xen public ABI.
