//! Fourier transforms against their definition in `f64`.

use mlxport::fft::{self, FftNorm};
use mlxport::{Array, Dtype, ops};
use num_complex::{Complex32, Complex64};

use support::{Numbers, REDUCTION, ROUNDING, assert_close, difference, epsilon, f32_array, to_f64};

const BACKWARD: FftNorm = FftNorm::Backward;

/// The sum of the definition along one row.
fn dft(x: &[Complex64], inverse: bool) -> Vec<Complex64> {
    let n = x.len();
    let sign = if inverse { 1.0 } else { -1.0 };
    let turn =
        |jk: usize| Complex64::from_polar(1.0, sign * std::f64::consts::TAU * (jk % n) as f64 / n as f64);
    (0..n).map(|k| x.iter().enumerate().map(|(j, x)| x * turn(j * k)).sum()).collect()
}

fn scaled(x: Vec<Complex64>, inverse: bool, norm: FftNorm) -> Vec<Complex64> {
    let n = x.len() as f64;
    let factor = match norm {
        FftNorm::Ortho => 1.0 / n.sqrt(),
        FftNorm::Backward if inverse => 1.0 / n,
        FftNorm::Forward if !inverse => 1.0 / n,
        _ => 1.0,
    };
    x.into_iter().map(|x| x * factor).collect()
}

fn parts(x: &[Complex64]) -> Vec<f64> {
    x.iter().flat_map(|z| [z.re, z.im]).collect()
}

#[track_caller]
fn assert_complex(found: &Array, expected: &[Complex64]) {
    let found = found.to_vec::<Complex32>().unwrap();
    let found: Vec<f64> = found.iter().flat_map(|z| [f64::from(z.re), f64::from(z.im)]).collect();
    if let Some(why) = difference(&found, &parts(expected), epsilon(Dtype::Float32), REDUCTION) {
        panic!("{why}");
    }
}

fn signal(n: usize) -> (Array, Vec<Complex64>) {
    let values = Numbers(n as u64).values(2 * n);
    let wide: Vec<Complex64> = values.chunks(2).map(|z| Complex64::new(z[0], z[1])).collect();
    let narrow: Vec<Complex32> = wide.iter().map(|z| Complex32::new(z.re as f32, z.im as f32)).collect();
    (Array::from_slice(&narrow, &[n as i32]).unwrap(), wide)
}

#[test]
fn transforms_are_their_definition_for_every_size_and_norm() {
    for n in [1, 2, 3, 7, 8, 12, 17] {
        let (x, wide) = signal(n);
        let real = f32_array(&wide.iter().map(|z| z.re).collect::<Vec<_>>(), &[n as i32]);
        let real_wide: Vec<Complex64> = wide.iter().map(|z| z.re.into()).collect();
        for norm in [FftNorm::Backward, FftNorm::Ortho, FftNorm::Forward] {
            assert_complex(&fft::fft(&x, None, 0, norm).unwrap(), &scaled(dft(&wide, false), false, norm));
            assert_complex(&fft::ifft(&x, None, -1, norm).unwrap(), &scaled(dft(&wide, true), true, norm));
            let half = fft::rfft(&real, None, 0, norm).unwrap();
            let expected = scaled(dft(&real_wide, false), false, norm);
            assert_complex(&half, &expected[..n / 2 + 1]);
            let back = fft::irfft(&half, Some(n as i32), 0, norm).unwrap();
            assert_eq!(back.dtype(), Dtype::Float32);
            assert_close(&back, &to_f64(&real), REDUCTION);
        }
    }
}

#[test]
fn signals_are_cut_or_filled_to_the_size() {
    let (x, wide) = signal(6);
    assert_complex(&fft::fft(&x, Some(4), 0, BACKWARD).unwrap(), &dft(&wide[..4], false));
    let mut filled = wide.clone();
    filled.resize(9, Complex64::ZERO);
    assert_complex(&fft::fft(&x, Some(9), 0, BACKWARD).unwrap(), &dft(&filled, false));
    assert_eq!(fft::irfft(&x, None, 0, BACKWARD).unwrap().shape(), [10]);
    assert_eq!(fft::irfft(&x, Some(11), 0, BACKWARD).unwrap().shape(), [11]);
}

#[test]
fn several_axes_are_one_after_the_other() {
    let (x, _) = signal(2 * 3 * 4);
    let x = ops::reshape(&x, &[2, 3, 4]).unwrap();
    let wide = |x: &Array| -> Vec<Complex64> {
        let values = x.to_vec::<Complex32>().unwrap();
        values.iter().map(|z| Complex64::new(z.re.into(), z.im.into())).collect()
    };
    let one = |x: &Array, axis: i32| fft::fft(x, None, axis, FftNorm::Ortho).unwrap();
    let two = one(&one(&x, 2), 1);
    assert_complex(&fft::fft2(&x, None, FftNorm::Ortho).unwrap(), &wide(&two));
    assert_complex(&fft::fftn(&x, None, [1, 2], FftNorm::Ortho).unwrap(), &wide(&two));
    assert_complex(&fft::fftn(&x, None, .., FftNorm::Ortho).unwrap(), &wide(&one(&two, 0)));
    let back = fft::ifft2(&fft::fft2(&x, None, BACKWARD).unwrap(), None, BACKWARD).unwrap();
    assert_complex(&back, &wide(&x));
    let back = fft::ifftn(&fft::fftn(&x, None, .., BACKWARD).unwrap(), None, .., BACKWARD).unwrap();
    assert_complex(&back, &wide(&x));

    let (real, values) = Numbers(3).array(&[2, 3, 5]);
    let half = fft::rfft2(&real, None, BACKWARD).unwrap();
    assert_eq!(half.shape(), [2, 3, 3]);
    let full = fft::fft2(&real, None, BACKWARD).unwrap();
    assert_complex(&half, &wide(&full.index((.., .., ..3)).unwrap()));
    assert_close(&fft::irfft2(&half, Some([3, 5]), BACKWARD).unwrap(), &values, REDUCTION);
    let half = fft::rfftn(&real, None, [0, 2, 1], BACKWARD).unwrap();
    assert_eq!(half.shape(), [2, 2, 5]);
    let back = fft::irfftn(&half, Some(&[2, 5, 3]), [0, 2, 1], BACKWARD).unwrap();
    assert_close(&back, &values, REDUCTION);
    let even =
        fft::irfftn(&fft::rfftn(&real, Some(&[4]), [2], BACKWARD).unwrap(), None, [2], BACKWARD).unwrap();
    assert_close(&even, &to_f64(&real.index((.., .., ..4)).unwrap()), REDUCTION);
}

#[test]
fn frequencies_and_shifts_are_those_of_numpy() {
    let f = fft::fftfreq(5, 0.5).unwrap();
    assert_close(&f, &[0.0, 0.4, 0.8, -0.8, -0.4], ROUNDING);
    assert_close(&fft::fftfreq(4, 1.0).unwrap(), &[0.0, 0.25, -0.5, -0.25], ROUNDING);
    assert_close(&fft::rfftfreq(5, 0.1).unwrap(), &[0.0, 2.0, 4.0], ROUNDING);
    assert_close(&fft::fftshift(&f, ..).unwrap(), &[-0.8, -0.4, 0.0, 0.4, 0.8], ROUNDING);
    let x = f32_array(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], &[2, 3]);
    assert_eq!(to_f64(&fft::fftshift(&x, 1).unwrap()), [2.0, 0.0, 1.0, 5.0, 3.0, 4.0]);
    assert_eq!(to_f64(&fft::ifftshift(&x, [1]).unwrap()), [1.0, 2.0, 0.0, 4.0, 5.0, 3.0]);
    assert_eq!(to_f64(&fft::ifftshift(&fft::fftshift(&x, ..).unwrap(), ..).unwrap()), to_f64(&x));
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = f32_array(&[0.0; 6], &[2, 3]);
    for n in [0, -1] {
        assert!(fft::fft(&x, Some(n), 0, BACKWARD).is_err());
        assert!(fft::irfft(&x, Some(n), 0, BACKWARD).is_err());
    }
    for axis in [2, -3, i32::MIN] {
        assert!(fft::fft(&x, None, axis, BACKWARD).is_err());
        assert!(fft::fft(&x, Some(2), axis, BACKWARD).is_err());
        assert!(fft::rfftn(&x, None, [axis], BACKWARD).is_err());
        assert!(fft::fftshift(&x, axis).is_err());
    }
    assert!(fft::fftn(&x, None, [0, 0], BACKWARD).is_err());
    assert!(fft::fftn(&x, Some(&[2]), [0, 1], BACKWARD).is_err());
    assert!(fft::fftn(&x, None, &[][..], BACKWARD).is_err());
    assert!(fft::fft2(&f32_array(&[0.0; 3], &[3]), None, BACKWARD).is_err());
    assert!(fft::fft(&Array::from(1.0f32), None, 0, BACKWARD).is_err());
    assert!(fft::fft(&f32_array(&[], &[2, 0]), None, 1, BACKWARD).is_err());
    assert!(fft::irfft(&f32_array(&[0.0], &[1]), None, 0, BACKWARD).is_err());
    assert!(
        fft::fftfreq(0, 1.0).is_err() && fft::fftfreq(4, 0.0).is_err() && fft::rfftfreq(-1, 1.0).is_err()
    );
    let none = fft::fft(&f32_array(&[], &[0, 4]), None, 1, BACKWARD).unwrap();
    assert!(none.to_vec::<Complex32>().unwrap().is_empty());
}
