//! Error numbers that a hypercall returns, negated (`errno.h`).
//!
//! They are Xen's own, fixed by its ABI; on x86 they agree with Linux where both have a name.

/// A positive Xen error number.
///
/// Any value is allowed: numbers without a name here round-trip.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($w:ident { $($name:ident = $v:literal,)* })*; aliases { $($alias:ident = $of:ident,)* }) => {
        impl Errno {
            $(
                #[doc = concat!("`XEN_", stringify!($alias), "`, the number of [`Errno::", stringify!($of), "`].")]
                pub const $alias: Self = Self::$of;
            )*
            $($(
                #[doc = concat!("`XEN_", stringify!($name), "`.")]
                pub const $name: Self = Self($v);
            )*)*

            /// The name in the header without `XEN_`, when it has one (`EAGAIN` and `EDEADLK` also
            /// go by a second name).
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($($v => Some(stringify!($name)),)*)*
                    _ => None,
                }
            }
        }
        const NUMBERS: &[crate::layout::Number] = &[$($(crate::layout::Number {
            name: stringify!($name),
            c_expr: concat!("XEN_", stringify!($name)),
            width: crate::layout::Width::$w,
            value: $v,
        },)*)* $(crate::layout::Number {
            name: stringify!($alias),
            c_expr: concat!("XEN_", stringify!($alias)),
            width: crate::layout::Width::Both,
            value: Errno::$of.0 as i128,
        },)*];
    };
}

errnos! {
    Both {
        EPERM = 1,
        ENOENT = 2,
        ESRCH = 3,
        EIO = 5,
        ENXIO = 6,
        E2BIG = 7,
        ENOEXEC = 8,
        EBADF = 9,
        ECHILD = 10,
        EAGAIN = 11,
        ENOMEM = 12,
        EACCES = 13,
        EFAULT = 14,
        EBUSY = 16,
        EEXIST = 17,
        EXDEV = 18,
        ENODEV = 19,
        ENOTDIR = 20,
        EISDIR = 21,
        EINVAL = 22,
        ENFILE = 23,
        EMFILE = 24,
        ENOSPC = 28,
        EROFS = 30,
        EMLINK = 31,
        EDOM = 33,
        ERANGE = 34,
        EDEADLK = 35,
        ENAMETOOLONG = 36,
        ENOLCK = 37,
        ENOSYS = 38,
        ENOTEMPTY = 39,
        ENODATA = 61,
        ETIME = 62,
        EBADMSG = 74,
        EOVERFLOW = 75,
        EILSEQ = 84,
        ENOTSOCK = 88,
        EMSGSIZE = 90,
        EOPNOTSUPP = 95,
        EADDRINUSE = 98,
        EADDRNOTAVAIL = 99,
        ENOBUFS = 105,
        EISCONN = 106,
        ENOTCONN = 107,
        ETIMEDOUT = 110,
        ECONNREFUSED = 111,
    }
    // Hidden from guests by `#ifdef __XEN__`.
    Unlisted {
        EINTR = 4,
        ERESTART = 85,
    }
    ; aliases {
        EWOULDBLOCK = EAGAIN,
        EDEADLOCK = EDEADLK,
    }
}

impl Errno {
    /// The negative number that the hypercall returns.
    ///
    /// Widened before the negation, so that no stored value overflows.
    #[must_use]
    pub const fn to_return(self) -> i64 {
        // `as` only widens here: `i64::from` is not const.
        -(self.0 as i64)
    }

    /// The error in a hypercall's return value, or `None` when it is not one: Xen's range of errors
    /// is -4095 to -1.
    #[must_use]
    pub fn from_return(value: i64) -> Option<Self> {
        let positive = value.checked_neg().filter(|n| (1..=4095).contains(n))?;
        i32::try_from(positive).ok().map(Self)
    }
}

impl core::fmt::Debug for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

impl core::fmt::Display for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl core::error::Error for Errno {}

const STRUCTS: &[crate::layout::StructLayout] = &[];
module!("errno", "errno.h");

#[cfg(test)]
mod tests {
    use super::Errno;

    #[test]
    fn return_values_round_trip_only_in_xens_error_range() {
        let cases = [
            (0, None),
            (1, None),
            (-1, Some(Errno::EPERM)),
            (-38, Some(Errno::ENOSYS)),
            (-4095, Some(Errno(4095))),
            (-4096, None),
            (i64::MIN, None),
        ];
        for (value, expected) in cases {
            assert_eq!(Errno::from_return(value), expected, "{value}");
            if let Some(errno) = expected {
                assert_eq!(errno.to_return(), value);
            }
        }
        assert_eq!(Errno(i32::MIN).to_return(), 1 << 31);
    }
}
