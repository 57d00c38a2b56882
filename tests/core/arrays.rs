//! Making, reading and combining arrays.

use half::bf16;
use mlxport::{Array, Dtype, Error, HostTensor};

#[test]
fn values_come_back_as_they_went_in() {
    let x = Array::from_slice(&[1.5f32, -2.0, 0.25, 4.0, 5.0, 6.0], &[2, 3]).unwrap();
    assert_eq!((x.shape(), x.ndim(), x.size(), x.nbytes()), (&[2, 3][..], 2, 6, 24));
    assert_eq!(x.to_vec::<f32>().unwrap(), [1.5, -2.0, 0.25, 4.0, 5.0, 6.0]);
    let host = x.to_host().unwrap();
    assert_eq!(Array::from_host(&host).unwrap().to_vec::<f32>().unwrap(), x.to_vec::<f32>().unwrap());
    assert!(matches!(x.to_vec::<i32>(), Err(Error::Dtype { .. })));
    assert!(matches!(x.item::<f32>(), Err(Error::Argument { .. })));
}

#[test]
fn empty_arrays_have_a_shape_and_no_values() {
    let x = Array::from_slice::<f32>(&[], &[0, 3]).unwrap();
    assert_eq!(x.shape(), [0, 3]);
    assert_eq!(x.to_vec::<f32>().unwrap(), [0f32; 0]);
}

#[test]
fn a_shape_that_does_not_fit_is_refused() {
    for shape in [&[3][..], &[-2, -1], &[i32::MAX, i32::MAX, i32::MAX]] {
        assert!(matches!(Array::from_slice(&[1.0f32, 2.0], shape), Err(Error::Argument { .. })));
    }
    assert!(HostTensor::new(vec![2], &[1], Dtype::Bool).is_err());
}

#[test]
fn numbers_are_weak_and_operators_chain() {
    let half = Array::from_slice(&[bf16::from_f32(1.0), bf16::from_f32(2.0)], &[2]).unwrap();
    let y = (&half * 0.5).unwrap();
    assert_eq!(y.dtype(), Dtype::Bfloat16);
    let ints = Array::from_slice(&[1i32, 2], &[2]).unwrap();
    assert_eq!((&ints * 0.5).unwrap().dtype(), Dtype::Float32);
    assert_eq!((&ints + 1).unwrap().to_vec::<i32>().unwrap(), [2, 3]);
    let z = ((1.0 - &y) / &half + &half).unwrap();
    assert_eq!(z.to_vec::<bf16>().unwrap(), [1.5, 2.0].map(bf16::from_f32));
    let bad = Array::from_slice(&[1.0f32; 3], &[3]).unwrap();
    assert!(matches!((&half + &bad) * &half, Err(Error::Mlx { op: "add", .. })));
}
