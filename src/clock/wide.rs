//! The one product that 128 bits cannot hold.

/// `a * n / d` as (floor, remainder), exact although the product may need
/// 192 bits. `None` when `d` is 0 or the quotient exceeds 128 bits.
///
/// Schoolbook division, one bit of `a` at a time: 64 rounds. It serves error
/// bounds and set-up, never a clock reading.
pub(crate) fn mul_div(a: u64, n: u128, d: u128) -> Option<(u128, u128)> {
    let whole = n.checked_div(d)?;
    let part = n.checked_rem(d)?;
    let mut quotient: u128 = 0;
    let mut rest: u128 = 0;
    for bit in (0..u64::BITS).rev() {
        quotient <<= 1; // at most `a`, hence never above 64 bits
        quotient += u128::from(add_mod(&mut rest, None, d));
        if (a >> bit) & 1 == 1 {
            quotient += u128::from(add_mod(&mut rest, Some(part), d));
        }
    }
    let quotient = u128::from(a).checked_mul(whole)?.checked_add(quotient)?;
    Some((quotient, rest))
}

/// `mul_div` rounded up.
pub(crate) fn mul_div_ceil(a: u64, n: u128, d: u128) -> Option<u128> {
    let (quotient, rest) = mul_div(a, n, d)?;
    quotient.checked_add(u128::from(rest != 0))
}

/// Adds `term` (or doubles, for `None`) modulo `d`; true when it carried.
/// Both operands are below `d`, so comparing with `d - term` avoids a 129th bit.
fn add_mod(rest: &mut u128, term: Option<u128>, d: u128) -> bool {
    let term = term.unwrap_or(*rest);
    let room = d - term;
    let carried = *rest >= room;
    *rest = if carried { *rest - room } else { *rest + term };
    carried
}

/// Greatest common divisor; `gcd(0, b)` is `b`.
pub(crate) fn gcd(mut a: u128, mut b: u128) -> u128 {
    while a != 0 {
        (a, b) = (b % a, a);
    }
    b
}

#[cfg(test)]
mod tests {
    use super::*;
    use num_bigint::BigUint;
    use proptest::prelude::*;

    #[test]
    fn boundaries() {
        assert_eq!(mul_div(1, 1, 0), None);
        assert_eq!(mul_div(0, u128::MAX, 1), Some((0, 0)));
        assert_eq!(mul_div(1, u128::MAX, 1), Some((u128::MAX, 0)));
        assert_eq!(mul_div(2, u128::MAX, 1), None);
        assert_eq!(mul_div(u64::MAX, u128::MAX, u128::MAX), Some((u128::from(u64::MAX), 0)));
        assert_eq!(mul_div_ceil(1, 1, u128::MAX), Some(1));
        assert_eq!(gcd(0, 7), 7);
        assert_eq!(gcd(12, 18), 6);
    }

    proptest! {
        #[test]
        fn agrees_with_big_integers(a: u64, n: u128, d in 1..=u128::MAX, narrow in 0u32..128) {
            let d = (d >> narrow).max(1);
            let product = BigUint::from(a) * BigUint::from(n);
            let expected = (&product / d, &product % d);
            match mul_div(a, n, d) {
                Some((q, r)) => prop_assert_eq!((BigUint::from(q), BigUint::from(r)), expected),
                None => prop_assert!(expected.0 > BigUint::from(u128::MAX)),
            }
        }
    }
}
