//! Codes of quantized matrices, decoded bit by bit. `tests/bare` has this file too.

/// Code `at` of so many bits; they lie one after another, the lowest bits first.
pub fn code(bytes: &[u8], bits: usize, at: usize) -> u32 {
    (0..bits).fold(0, |code, i| {
        let bit = at * bits + i;
        code | u32::from(bytes[bit / 8] >> (bit % 8) & 1) << i
    })
}

/// A float of one sign bit, `exponent` bits biased by half their range, and `mantissa` bits; none of them is
/// infinite or no number.
pub fn minifloat(code: u32, exponent: u32, mantissa: u32) -> f64 {
    let (e, m) = (code >> mantissa & ((1 << exponent) - 1), code & ((1 << mantissa) - 1));
    let (bias, fraction) = ((1 << (exponent - 1)) - 1, f64::from(m) / f64::from(1 << mantissa));
    let size = match e {
        0 => fraction * 2f64.powi(1 - bias),
        e => (1.0 + fraction) * 2f64.powi(e as i32 - bias),
    };
    if code >> (exponent + mantissa) & 1 == 1 { -size } else { size }
}
