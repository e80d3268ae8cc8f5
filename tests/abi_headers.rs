//! `xen-abi` agrees with the C headers of Xen (Debian `libxen-dev`) and with the crate `xen-sys`.
//!
//! The crate's own tables become `_Static_assert`s, which the C compiler judges for 64-bit and for
//! 32-bit guests without a C library. The same claims, each made wrong by one, must all be refused:
//! so every one of them can fail. And a name in a mirrored header that the crate lacks is an error,
//! unless `abi/absent.rs` says why.

#[path = "abi/absent.rs"]
mod absent;
#[path = "abi/c_headers.rs"]
mod c_headers;
#[path = "abi/xen_sys_crate.rs"]
mod xen_sys_crate;

use std::collections::BTreeSet;

use c_headers::{Bits, compile, preprocess, read_header};
use xen_abi::layout::{MODULES, Width};

/// One C assertion: a unique name, and the condition with its right-hand side still open.
struct Claim {
    name: String,
    expression: String,
    value: i128,
}

impl Claim {
    /// The assertion, with `error` added to the claimed value.
    fn assertion(&self, error: i128) -> String {
        let value = self.value + error;
        let (kind, value) = match u64::try_from(value) {
            Ok(value) => ("unsigned long long", format!("{value:#x}ULL")),
            Err(_) => ("long long", format!("{value}LL")),
        };
        format!("_Static_assert(({kind})({}) == {value}, \"<{}>\");", self.expression, self.name)
    }
}

/// Every claim that holds in one width: value of each constant, size of each structure, offset and
/// size of each field.
fn claims(bits: Bits) -> Vec<Claim> {
    let holds = |width| match width {
        Width::Both => true,
        Width::Only64 => bits == Bits::B64,
        Width::Only32 => bits == Bits::B32,
        Width::Unlisted => false,
    };
    let mut claims = Vec::new();
    for module in MODULES {
        for number in module.numbers.iter().filter(|n| holds(n.width)) {
            claims.push(Claim {
                name: format!("{}::{}", module.name, number.name),
                expression: number.c_expr.to_owned(),
                value: number.value,
            });
        }
        for layout in module.structs.iter().filter(|s| holds(s.width)) {
            let name = format!("{}::{}", module.name, layout.name);
            let c_type = layout.c_type;
            let mut claim = |what: String, expression: String, value: usize| {
                let value = i128::try_from(value).expect("a size fits");
                claims.push(Claim { name: format!("{name}{what}"), expression, value });
            };
            claim(" size".to_owned(), format!("sizeof({c_type})"), layout.size);
            for field in layout.fields.iter().filter(|f| !f.c_path.starts_with("_pad")) {
                let path = field.c_path;
                claim(
                    format!(".{path} offset"),
                    format!("__builtin_offsetof({c_type}, {path})"),
                    field.offset,
                );
                claim(
                    format!(".{path} size"),
                    format!("sizeof((({c_type} *)0)->{path})"),
                    field.size,
                );
            }
        }
    }
    claims
}

fn assertions(claims: &[Claim], error: i128) -> String {
    claims.iter().map(|claim| claim.assertion(error) + "\n").collect()
}

/// All claims hold, and each of them can fail.
fn prove(bits: Bits, at_least: usize) {
    let claims = claims(bits);
    // A table that lost its rows would pass in silence.
    assert!(claims.len() >= at_least, "only {} claims for {bits:?}", claims.len());

    let verdict = compile(bits, &assertions(&claims, 0));
    assert!(verdict.accepted, "the headers differ from xen-abi:\n{}", verdict.messages);

    let verdict = compile(bits, &assertions(&claims, 1));
    assert!(!verdict.accepted, "wrong claims were accepted");
    let unnoticed: Vec<_> = claims
        .iter()
        .filter(|claim| !verdict.messages.contains(&format!("<{}>", claim.name)))
        .map(|claim| claim.name.as_str())
        .collect();
    assert!(unnoticed.is_empty(), "wrong by one and not noticed: {unnoticed:?}");
}

#[test]
fn layouts_and_numbers_agree_with_the_headers_for_64_bit_guests() {
    prove(Bits::B64, 1500);
}

#[test]
fn layouts_and_numbers_agree_with_the_headers_for_32_bit_guests() {
    prove(Bits::B32, 1500);
}

/// Every claim's name is unique, or one refusal could hide behind another's.
#[test]
fn claims_have_unique_names() {
    for bits in [Bits::B64, Bits::B32] {
        let claims = claims(bits);
        let names: BTreeSet<_> = claims.iter().map(|claim| &claim.name).collect();
        assert_eq!(names.len(), claims.len());
    }
}

/// The headers that the crate mirrors, each once.
fn mirrored() -> BTreeSet<&'static str> {
    MODULES.iter().map(|module| module.header).filter(|header| !header.is_empty()).collect()
}

#[test]
fn no_constant_of_a_mirrored_header_is_missing() {
    let known: BTreeSet<_> =
        MODULES.iter().flat_map(|module| module.numbers).map(|number| number.c_expr).collect();
    let mut missing = Vec::new();
    for header in mirrored() {
        let text = read_header(header);
        for name in c_headers::constants(&text) {
            // `_X` is the bit number of the mask `X`.
            let mask = name.strip_prefix('_').unwrap_or(&name);
            if !known.contains(name.as_str())
                && !known.contains(mask)
                && absent::constant(&name).is_none()
            {
                missing.push(format!("{header}: {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "xen-abi lacks:\n{}", missing.join("\n"));
}

#[test]
fn no_structure_or_enumerator_of_a_mirrored_header_is_missing() {
    let types: BTreeSet<_> =
        MODULES.iter().flat_map(|module| module.structs).map(|layout| layout.c_type).collect();
    let numbers: BTreeSet<_> =
        MODULES.iter().flat_map(|module| module.numbers).map(|number| number.c_expr).collect();
    for bits in [Bits::B64, Bits::B32] {
        let text = preprocess(bits);
        let structs = c_headers::tagged(&text, "struct");
        let unions = c_headers::tagged(&text, "union");
        let enumerators = c_headers::enumerators(&text);
        assert!(structs.len() > 100 && enumerators.len() > 70, "the parser sees too little");

        let missing: Vec<_> = structs
            .union(&unions)
            .filter(|tag| !types.contains(tag.as_str()) && absent::structure(tag).is_none())
            .chain(enumerators.iter().filter(|name| {
                !numbers.contains(name.as_str()) && absent::constant(name).is_none()
            }))
            .collect();
        assert!(missing.is_empty(), "{bits:?}: xen-abi lacks {missing:#?}");
    }
}
