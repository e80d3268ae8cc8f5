//! Values that are likely to meet a mistake.

/// Marsaglia's xorshift, 64 bits, and the place that addresses point to.
pub struct Random {
    state: u64,
    target: u64,
}

impl Random {
    /// The same sequence for the same seed and stream; never stuck at 0.
    pub const fn new(seed: u64, stream: u64, target: u64) -> Self {
        let state = seed.wrapping_add(stream.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { state: if state == 0 { 1 } else { state }, target }
    }

    pub const fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    pub const fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// An address in the middle of the sandbox.
    pub const fn target(&mut self) -> u64 {
        self.target + self.below(8192) * 8
    }

    /// A number as a structure may hold it: small, a border, an address, a frame.
    pub fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => return self.target(),
            1 => return self.target() >> 12,
            _ => {}
        }
        match self.any_value() {
            // The frames and addresses of this guest's image, which starts at
            // 2 MiB, stay its own, and so do two of them in one word.
            0x100..0x1000 | 0x10_0000..0x100_0000 => 0,
            value => value,
        }
    }

    fn any_value(&mut self) -> u64 {
        match self.below(6) {
            0 => 0,
            1..=2 => self.below(40),
            3 => 1 << self.below(64),
            4 => (1_u64 << self.below(64)).wrapping_sub(1),
            // Two small halves: most structures hold 32-bit fields, and domain
            // 0x7ff0 is this one.
            _ => self.below(40) << 32 | if self.below(2) == 0 { 0x7ff0 } else { self.below(40) },
        }
    }
}

/// An address that no page table maps.
pub const fn unmapped_address(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => 1 << 32 | random.below(1 << 32),
        1 => 0x0000_8000_0000_0000 | random.next() >> 20,
        2 => u64::MAX - random.below(64),
        _ => 0xffff_8000_0000_0000 | random.next() >> 20,
    }
}

/// An address that is mapped nowhere, to a device, or across a border.
pub const fn bad_address(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => 0xfee0_0000 + random.below(4096),
        1 => 0xffff_f000 + random.below(4096),
        2 => random.below(4096),
        _ => unmapped_address(random),
    }
}
