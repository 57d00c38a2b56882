//! Products of numbers that are large, tiny, infinite or none.

use super::*;

proptest! {
    #![proptest_config(crate::config(64))]

    #[test]
    fn large_and_tiny_values_are_no_exception(
        how in prop::sample::select(quantizations()),
        exponent in prop::sample::select(vec![-140, -126, -100, -61, -59, 60, 100, 120]),
        rows in 1..6i32,
        seed: u64,
    ) {
        let value = |random: &mut Numbers| unit_values(random) * 2f64.powi(exponent);
        Case::new(how, [Dtype::Float32; 2], &[rows], 65, 3, seed, value).check(None)?;
    }
}

#[test]
fn the_largest_numbers_fit_in_fixed_point() {
    for how in quantizations() {
        for (dtype, most) in [(Dtype::Bfloat16, 255.0 / 128.0), (Dtype::Float16, 2047.0 / 1024.0)] {
            let value = |random: &mut Numbers| if random.below(2) == 0 { most } else { -most };
            for rows in [1, 2] {
                Case::new(how, [dtype; 2], &[rows], 65, 4, 7, value).check(None).unwrap();
            }
        }
    }
}

#[test]
fn positive_activations_lose_nothing_to_the_bias() {
    for (i, how) in quantizations().into_iter().enumerate() {
        let positive = |random: &mut Numbers| unit_values(random).abs() + 0.5;
        Case::new(how, [Dtype::Float32; 2], &[2], 9, 24, i as u64, positive).check(None).unwrap();
    }
}

#[test]
fn infinities_and_nans_go_where_they_belong() {
    for how in quantizations() {
        for special in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
            let mut count = 0;
            let value = |random: &mut Numbers| {
                count += 1;
                if count == 40 { special } else { unit_values(random) }
            };
            // The special value is in the first of three rows.
            let case = Case::new(how, [Dtype::Float32; 2], &[3], 5, 2 * 128 / how.group_size, 7, value);
            let exact = case.exact();
            for path in fast_paths() {
                for (y, e) in to_f64(&case.on(path)).iter().zip(&exact) {
                    let same_kind = y.is_nan() == e.is_nan() && (y.is_infinite() == e.is_infinite());
                    assert!(same_kind && (!y.is_infinite() || y == e), "{path} {how:?}: {y}, expected {e}");
                }
            }
        }
    }
}

/// Weights are zero where the large numbers are, so nothing of the result covers what those beside them lose.
#[test]
fn outliers_take_nothing_from_the_numbers_beside_them() {
    const OUTLIERS: usize = 300;
    for (i, how) in quantizations().into_iter().enumerate() {
        for dtype in [Dtype::Float16, Dtype::Bfloat16] {
            for exponent in [3, 8, 13, 15] {
                let is_outlier = |column: usize| column % OUTLIERS == 7;
                let (rows, k) = (9, 768);
                let mut at = 0;
                let value = |random: &mut Numbers| {
                    let fine = (random.bits() >> 11) as f64 / 2f64.powi(52) - 1.0;
                    at += 1;
                    if is_outlier((at - 1) % k) { 2f64.powi(exponent) } else { fine }
                };
                // Rows of each kind: in fixed point or not, of unpacked codes or not.
                let count = [2, 5, 14][(i + exponent as usize) % 3];
                let mut case =
                    Case::new(how, [dtype; 2], &[count], rows, k as i32 / how.group_size, i as u64, value);
                case.set_zero(is_outlier);
                case.check(None).unwrap_or_else(|e| panic!("{dtype:?} 2^{exponent} {count} rows: {e}"));
            }
        }
    }
}

impl Case {
    /// Makes these columns of the weights zero: their codes, and for affine ones all biases.
    fn set_zero(&mut self, zero: impl Fn(usize) -> bool) {
        let mut words = self.w.to_vec::<u32>().unwrap();
        let (bits, columns) = (self.how.bits as usize, self.x.shape()[1] as usize);
        let width = columns * bits / 32;
        for (row, words) in words.chunks_exact_mut(width).enumerate() {
            let group = |column: usize| (row * columns + column) / self.how.group_size as usize;
            let biases = self.biases.as_ref().map(to_f64);
            for (column, value) in self.decoded[row * columns..][..columns].iter_mut().enumerate() {
                *value -= biases.as_ref().map_or(0.0, |biases| biases[group(column)]);
                if zero(column) {
                    *value = 0.0;
                    (column * bits..(column + 1) * bits)
                        .for_each(|bit| words[bit / 32] &= !(1 << (bit % 32)));
                }
            }
        }
        self.w = Array::from_slice(&words, self.w.shape()).unwrap();
        self.biases = self.biases.as_ref().map(|biases| ops::zeros_like(biases).unwrap());
    }
}

#[test]
fn the_middle_of_the_codes_takes_nothing_where_the_weights_of_outliers_are_zero() {
    for (i, how) in quantizations().into_iter().enumerate() {
        for (dtype, exponents) in
            [(Dtype::Float32, [0, 3, 5, 6, 8, 15, 25]), (Dtype::Bfloat16, [12, 15, 17, 19, 20, 21, 25])]
        {
            for (exponent, count) in exponents.into_iter().flat_map(|e| [1, 2, 5, 14].map(|count| (e, count)))
            {
                let is_outlier = |column: usize| column % 300 == 7;
                let mut at = 0;
                let value = |random: &mut Numbers| {
                    let fine = (random.bits() >> 11) as f64 / 2f64.powi(52) - 1.0;
                    at += 1;
                    if is_outlier((at - 1) % 768) { 2f64.powi(exponent) } else { fine }
                };
                let mut case = Case::new(how, [dtype; 2], &[count], 9, 768 / how.group_size, i as u64, value);
                case.set_zero(is_outlier);
                case.check(None).unwrap_or_else(|e| panic!("{dtype:?} 2^{exponent} {count} rows: {e}"));
            }
        }
    }
}
