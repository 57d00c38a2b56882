//! Gradients of quantized products.

use super::*;

#[test]
fn of_x_they_are_exact() {
    for (i, how) in quantizations().into_iter().enumerate() {
        for transpose in [true, false] {
            let all = Several::new(how, Dtype::Float32, transpose, 13, 2, i as u64);
            let [k, n] = all.sizes();
            let numbers = &mut Numbers(i as u64);
            let [(x, _), (weight, weights)] = [k, n].map(|size| numbers.array(&[3, 2, size]));
            let turned = Several { transpose: !transpose, ..all };
            let one = &turned.cases[0];
            let exact = turned.exact(&weights, 0);
            let loss = |x: &Array| {
                let y = ops::quantized_matmul(x, &one.w, &one.scales, one.biases.as_ref(), transpose, how)?;
                ops::sum(&(y * &weight)?, .., false)
            };
            let gradient = || transforms::grad(loss, &x);
            check(&exact, turned.scale(), gradient, gradient).unwrap();

            // Matrices picked by two indices; the first is picked twice.
            let (lhs, rhs) = ([2u32, 0, 2], [1u32, 1, 0]);
            let [left, right] = [lhs, rhs].map(|i| Array::from_slice(&i, &[3]).unwrap());
            let mut expected = vec![0.0; 3 * 2 * k as usize];
            let rows = weights.chunks_exact(2 * n as usize).zip(expected_places(&lhs, 2 * k as usize));
            for ((dy, place), matrix) in rows.zip(rhs) {
                let dx = turned.exact(dy, matrix as usize);
                expected[place].iter_mut().zip(dx).for_each(|(all, dx)| *all += dx);
            }
            let (w, scales, biases) = (&turned.w, &turned.scales, turned.biases.as_ref());
            let loss = |x: &Array| {
                let (left, right) = (Some(&left), Some(&right));
                let y = ops::gather_qmm(x, w, scales, biases, left, right, transpose, how, false)?;
                ops::sum(&(y * &weight)?, .., false)
            };
            let gradient = || transforms::grad(loss, &x);
            check(&expected, turned.scale(), gradient, gradient).unwrap();
        }
    }
}

/// Where in `x` each picked matrix is, of `size` numbers.
fn expected_places(picked: &[u32], size: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    picked.iter().map(move |&i| i as usize * size..(i as usize + 1) * size)
}

/// Affine matrices in `f64`, and which of them meets which matrix of `x`.
pub(super) struct Exact<'a> {
    pub codes: &'a [f64],
    pub group: usize,
    /// Rows and columns of a matrix.
    pub sizes: [usize; 2],
    pub transpose: bool,
    /// Rows of a matrix of `x`.
    pub rows: usize,
    pub picks: &'a [[usize; 2]],
}

impl Exact<'_> {
    /// The products, of `x`, scales and biases.
    pub fn products(&self, x: &[f64], scales: &[f64], biases: &[f64]) -> Vec<f64> {
        let [n, k] = self.sizes;
        let weight = |at: usize| self.codes[at] * scales[at / self.group] + biases[at / self.group];
        let (inner, outer) = if self.transpose { (k, n) } else { (n, k) };
        let mut out = Vec::new();
        for &[left, right] in self.picks {
            let first = right * n * k;
            for row in x[left * self.rows * inner..][..self.rows * inner].chunks_exact(inner) {
                let at = |i: usize, j: usize| first + if self.transpose { j * k + i } else { i * k + j };
                let dot = |j: usize| row.iter().enumerate().map(|(i, x)| x * weight(at(i, j))).sum::<f64>();
                out.extend((0..outer).map(dot));
            }
        }
        out
    }
}

/// Each code of a matrix.
pub(super) fn codes(w: &Array, bits: i32) -> Vec<f64> {
    let bytes = w.to_host().unwrap().into_bytes();
    (0..bytes.len() * 8 / bits as usize).map(|at| f64::from(code(&bytes, bits as usize, at))).collect()
}

#[test]
fn of_x_scales_and_biases_they_are_differences() {
    for (i, how) in quantizations().into_iter().filter(|how| how.mode == QuantizationMode::Affine).enumerate()
    {
        for transpose in [true, false] {
            let all = Several::new(how, Dtype::Float32, transpose, 3, 2, i as u64);
            let [k, _] = all.sizes();
            let one = &all.cases[0];
            let (w, scales, biases) = (&all.w, &all.scales, all.biases.as_ref().unwrap());
            let parts = [&one.w, &one.scales, one.biases.as_ref().unwrap()];
            let spread = |x: &Array| ops::expand_dims(x, 1).unwrap();
            let (apart, scales_apart, biases_apart) = (spread(w), spread(scales), spread(biases));
            // One matrix, for rows and for one without any; a batch of them that is broadcast, and one that is
            // picked from.
            let picked = [[2, 1], [0, 1], [2, 0]];
            let broadcast: Vec<[usize; 2]> = (0..6).map(|i| [i, i / 2]).collect();
            let cases: [(&[i32], [&Array; 3], usize, &[[usize; 2]]); 4] = [
                (&[2], parts, 2, &[[0, 0]]),
                (&[], parts, 1, &[[0, 0]]),
                (&[3, 2, 2], [&apart, &scales_apart, &biases_apart], 2, &broadcast),
                (&[3, 2], [w, scales, biases], 2, &picked),
            ];
            for (form, (shape, [w, scales, biases], rows, picks)) in cases.into_iter().enumerate() {
                let shape: Vec<i32> = shape.iter().copied().chain([k]).collect();
                let (x, values) = Numbers(i as u64).array(&shape);
                let [left, right] = [0, 1].map(|side| {
                    let indices: Vec<u32> = picks.iter().map(|pick| pick[side] as u32).collect();
                    Array::from_slice(&indices, &[3]).ok()
                });
                let product = |x: &Array, scales: &Array, biases: &Array| match form {
                    3 => {
                        let (left, right) = (left.as_ref(), right.as_ref());
                        ops::gather_qmm(x, w, scales, Some(biases), left, right, transpose, how, false)
                    }
                    _ => ops::quantized_matmul(x, w, scales, Some(biases), transpose, how),
                };
                let exact = Exact {
                    codes: &codes(w, how.bits),
                    group: how.group_size as usize,
                    sizes: [3, 2 * how.group_size as usize],
                    transpose,
                    rows,
                    picks,
                };
                let squares = |y: Vec<f64>| y.iter().map(|y| y * y).sum::<f64>();
                let (of_scales, of_biases) = (to_f64(scales), to_f64(biases));
                // Those of `x` only where it is not long.
                let short = !transpose || how.group_size == 32;
                let mut expected = if short {
                    crate::differences(std::slice::from_ref(&values), |x| {
                        squares(exact.products(&x[0], &of_scales, &of_biases))
                    })
                } else {
                    vec![Vec::new()]
                };
                expected.extend(crate::differences(&[of_scales, of_biases], |parts| {
                    squares(exact.products(&values, &parts[0], &parts[1]))
                }));
                let loss = |args: &[Array]| {
                    ops::sum(&ops::square(&product(&args[0], &args[1], &args[2])?)?, .., false)
                };
                let of_scales = |scales: &Array| loss(&[x.clone(), scales.clone(), biases.clone()]);
                for path in fast_paths() {
                    let found = kernels::force(path, || {
                        let all = transforms::value_and_grad(loss, [&x, scales, biases])?.1;
                        Ok::<_, mlxport::Error>((all, transforms::grad(of_scales, scales)?))
                    });
                    let (all, alone) = found.unwrap().unwrap();
                    for (found, expected) in all.iter().zip(&expected).skip(usize::from(!short)) {
                        support::assert_close(found, expected, support::SOLVER);
                    }
                    assert_eq!(bits(&alone), bits(&all[1]), "{path} {how:?}");
                }
            }
        }
    }
}

#[test]
fn they_have_the_dtype_of_what_they_belong_to() {
    let how = Quantization::affine(32, 4);
    for (dtypes, transpose) in [([Dtype::Bfloat16, Dtype::Float32], true), ([Dtype::Float16; 2], false)] {
        let case = Case::new(how, dtypes, &[64], 64, 2, 3, unit_values);
        let biases = case.biases.as_ref().unwrap();
        let loss = |args: &[Array]| {
            let y = ops::quantized_matmul(&args[0], &case.w, &args[1], Some(&args[2]), transpose, how)?;
            ops::sum(&y, .., false)
        };
        for path in fast_paths() {
            let all = [&case.x, &case.scales, biases];
            let found = kernels::force(path, || transforms::value_and_grad(loss, all)).unwrap().unwrap().1;
            for (found, of) in found.iter().zip(all) {
                assert_eq!((found.dtype(), found.shape()), (of.dtype(), of.shape()), "{path}");
                found.eval().unwrap();
            }
        }
    }
}

#[test]
fn codes_have_none() {
    let case = Case::new(Quantization::affine(32, 4), [Dtype::Float32; 2], &[2], 5, 2, 4, unit_values);
    let loss = |w: &Array| {
        let y = ops::quantized_matmul(&case.x, w, &case.scales, case.biases.as_ref(), true, case.how)?;
        ops::sum(&y, .., false)
    };
    for path in fast_paths() {
        kernels::force(path, || transforms::grad(loss, &case.w)).unwrap().unwrap_err();
    }
}

#[test]
fn of_rows_that_are_looked_up_they_are_differences() {
    for (i, how) in quantizations().into_iter().filter(|how| how.mode == QuantizationMode::Affine).enumerate()
    {
        let case = Case::new(how, [Dtype::Float32; 2], &[1], 4, 2, i as u64, unit_values);
        let ids = Array::from_slice(&[3i32, 0, 3, -3], &[2, 2]).unwrap();
        let (codes, columns) = (codes(&case.w, how.bits), 2 * how.group_size as usize);
        let biases = case.biases.as_ref().unwrap();
        let expected = crate::differences(&[to_f64(&case.scales), to_f64(biases)], |parts| {
            let at = [3, 0, 3, 1].into_iter().flat_map(|row| row * columns..(row + 1) * columns);
            let group = |at: usize| at / how.group_size as usize;
            at.map(|at| (codes[at] * parts[0][group(at)] + parts[1][group(at)]).powi(2)).sum()
        });
        let loss = |parts: &[Array]| {
            let (weight, biases) = (case.w.clone(), Some(parts[1].clone()));
            let weight = Weight::Quantized { weight, scales: parts[0].clone(), biases, how };
            ops::sum(&ops::square(&weight.rows(&ids)?)?, .., false)
        };
        for path in fast_paths() {
            let found = kernels::force(path, || transforms::value_and_grad(loss, [&case.scales, biases]));
            for (found, expected) in found.unwrap().unwrap().1.iter().zip(&expected) {
                support::assert_close(found, expected, support::SOLVER);
            }
        }
    }
}
