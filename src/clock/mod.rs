//! The arithmetic of time: pure, integer, no I/O.
