//! Declares constants and structures once: the Rust item, its proof at compile time, and its entry
//! in the table that the header test reads.

/// Constants, in groups of one type and width: `u32, Both { NAME = value => "C expression", … }`.
macro_rules! numbers {
    ($($t:ty, $w:ident { $($(#[$m:meta])* $name:ident = $v:expr => $c:literal,)* })*) => {
        $($(
            #[doc = concat!("`", $c, "`.")]
            #[doc = ""]
            $(#[$m])*
            pub const $name: $t = $v;
        )*)*
        const NUMBERS: &[crate::layout::Number] = &[$($(crate::layout::Number {
            name: stringify!($name),
            c_expr: $c,
            width: crate::layout::Width::$w,
            value: $name as i128,
        },)*)*];
    };
}

/// Structures: `Name, "C type", Width, size { field: type = offset ["C designator"], … }`.
/// A structure whose bytes would hold implicit padding does not compile (`IntoBytes`).
macro_rules! structs {
    ($($(#[$m:meta])* $name:ident, $c:literal, $w:ident, $size:literal {
        $($(#[$fm:meta])* $f:ident : $t:ty = $off:literal $($path:literal)?,)*
    })*) => {
        $(
            $(#[$m])*
            #[doc = ""]
            #[doc = concat!("`", $c, "`, ", stringify!($size), " bytes.")]
            #[derive(
                Clone, Copy, Debug, PartialEq, Eq,
                zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
            )]
            #[repr(C)]
            pub struct $name {
                $(
                    #[doc = concat!("`", c_path!($f $($path)?), "` at offset ", stringify!($off), ".")]
                    #[doc = ""]
                    $(#[$fm])*
                    pub $f: $t,
                )*
            }

            impl Default for $name {
                /// All bytes zero.
                fn default() -> Self {
                    zerocopy::FromZeros::new_zeroed()
                }
            }

            const _: () = {
                assert!(size_of::<$name>() == $size);
                $(assert!(core::mem::offset_of!($name, $f) == $off);)*
            };
        )*
        const STRUCTS: &[crate::layout::StructLayout] = &[$(crate::layout::StructLayout {
            name: stringify!($name),
            c_type: $c,
            width: crate::layout::Width::$w,
            size: $size,
            fields: &[$(crate::layout::FieldLayout {
                c_path: c_path!($f $($path)?),
                offset: $off,
                size: size_of::<$t>(),
            },)*],
        },)*];
    };
}

/// The C designator of a field: its own name unless one is given.
macro_rules! c_path {
    ($f:ident) => {
        stringify!($f)
    };
    ($f:ident $path:literal) => {
        $path
    };
}

/// The module's entry in [`crate::layout::MODULES`].
macro_rules! module {
    ($name:literal, $header:literal) => {
        pub(crate) const MODULE: crate::layout::Module = crate::layout::Module {
            name: $name,
            header: $header,
            numbers: NUMBERS,
            structs: STRUCTS,
        };
    };
}
