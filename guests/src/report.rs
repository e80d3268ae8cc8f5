//! Lines for programs: `KVMXEN topic name=value …`.
//!
//! They do without `core::fmt`, whose prebuilt decimal conversion uses SSE2
//! instructions (MOVD, PINSRW) that the instruction emulator of KVM does not
//! know. A KVM without hardware support emulates all of a guest's kernel mode.

use crate::serial::Port;

/// Prints `KVMXEN topic name=value …`: `report!("topic"; name = value, …)`.
/// Values are evaluated while the port is held, and must not print.
#[macro_export]
macro_rules! report {
    ($topic:expr $(; $($name:ident = $value:expr),+ $(,)?)?) => {{
        let port = $crate::serial::Port::take();
        port.text("KVMXEN ");
        port.text($topic);
        $($(
            port.text(concat!(" ", stringify!($name), "="));
            $crate::report::Value::write(&$value, &port);
        )+)?
        port.byte(b'\n');
    }};
}

/// What a report can hold.
pub trait Value {
    /// Writes the value without a space in it, unless it is text that has some.
    fn write(&self, port: &Port);
}

/// A number in hexadecimal, with `0x`.
#[derive(Clone, Copy, Debug)]
pub struct Hex(pub u64);

/// Two numbers with a point between them, as in a version.
#[derive(Clone, Copy, Debug)]
pub struct Version(pub u32, pub u32);

/// Seconds and nanoseconds, as `seconds.nanoseconds` with nine digits.
#[derive(Clone, Copy, Debug)]
pub struct Seconds(pub u64, pub u32);

impl Value for u64 {
    fn write(&self, port: &Port) {
        let mut digits = 1;
        while digits < 20 && *self >= 10_u64.pow(digits) {
            digits += 1;
        }
        decimal(*self, digits, port);
    }
}

impl Value for i64 {
    fn write(&self, port: &Port) {
        if *self < 0 {
            port.byte(b'-');
        }
        self.unsigned_abs().write(port);
    }
}

macro_rules! by_widening {
    ($($small:ty => $wide:ty),+) => {$(
        impl Value for $small {
            fn write(&self, port: &Port) {
                <$wide>::from(*self).write(port);
            }
        }
    )+};
}
by_widening!(u8 => u64, u16 => u64, u32 => u64, i8 => i64, i32 => i64);

impl Value for usize {
    fn write(&self, port: &Port) {
        (*self as u64).write(port);
    }
}

impl Value for bool {
    fn write(&self, port: &Port) {
        u64::from(*self).write(port);
    }
}

impl Value for &str {
    fn write(&self, port: &Port) {
        port.text(self);
    }
}

impl Value for Hex {
    fn write(&self, port: &Port) {
        port.text("0x");
        let digits = (67 - self.0.leading_zeros().min(63)) / 4;
        for place in (0..digits).rev() {
            let digit = (self.0 >> (place * 4) & 15) as u8;
            port.byte(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
        }
    }
}

impl Value for Version {
    fn write(&self, port: &Port) {
        self.0.write(port);
        port.byte(b'.');
        self.1.write(port);
    }
}

impl Value for Seconds {
    fn write(&self, port: &Port) {
        self.0.write(port);
        port.byte(b'.');
        decimal(u64::from(self.1), 9, port);
    }
}

fn decimal(value: u64, digits: u32, port: &Port) {
    for place in (0..digits).rev() {
        let digit = (value / 10_u64.pow(place) % 10) as u8;
        port.byte(b'0' + digit);
    }
}
