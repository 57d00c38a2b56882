//! Arguments that would make MLX divide by zero, run over memory or allocate without end are refused,
//! or given a meaning.

use mlxport::ops::{self, Conv, ConvGeneral, PadMode, Quantization, QuantizationMode};
use mlxport::{Array, Dtype, Error, Result};

fn ramp(shape: &[i32]) -> Array {
    let size = shape.iter().product::<i32>();
    ops::reshape(&ops::arange(0, size, 1, Dtype::Float32).unwrap(), shape).unwrap()
}

fn ints(values: &[i32]) -> Array {
    Array::from_slice(values, &[values.len() as i32]).unwrap()
}

fn floats(a: Result<Array>) -> Vec<f32> {
    ops::astype(&a.unwrap(), Dtype::Float32).unwrap().to_vec().unwrap()
}

fn refused<T: std::fmt::Debug>(result: Result<T>) {
    assert!(
        matches!(result, Err(Error::Argument { .. } | Error::Shape { .. } | Error::Dtype { .. })),
        "{result:?}"
    );
}

#[test]
fn indices_out_of_range_wrap() {
    let x = ramp(&[5, 2]);
    let far = ints(&[4, -1, 5, -6, 1_000_000_004, i32::MIN]);
    let rows = [4, 4, 0, 4, 4, 2].map(|row| row as f32 * 2.0);
    let first: Vec<f32> = floats(ops::take(&x, &far, 0)).chunks(2).map(|row| row[0]).collect();
    assert_eq!(first, rows);
    assert_eq!(floats(ops::take(&x, &ints(&[9, 10, -11]), None)), [9.0, 0.0, 9.0]);
    let bytes = Array::from_slice(&[4u8, 255], &[2]).unwrap();
    assert_eq!(floats(ops::take(&x, &bytes, 0)), [8.0, 9.0, 0.0, 1.0]);
    let long = ramp(&[300]);
    assert_eq!(floats(ops::take(&long, &bytes, 0)), [4.0, 255.0]);
    let signed = Array::from_slice(&[-128i8, 127], &[2]).unwrap();
    assert_eq!(floats(ops::take(&long, &signed, 0)), [172.0, 127.0]);

    let column = ops::expand_dims(&ints(&[7, -8, 2]), 1).unwrap();
    assert_eq!(floats(ops::take_along_axis(&x, &column, 0))[..2], [4.0, 5.0]);
    let put = ops::put_along_axis(&ramp(&[3]), &ints(&[30, -31]), &ramp(&[1]), 0);
    assert_eq!(floats(put), [0.0, 1.0, 0.0]);
    let added =
        ops::scatter_add_axis(&ramp(&[3]), &ints(&[3, 3]), &ops::ones(&[2], Dtype::Float32).unwrap(), 0);
    assert_eq!(floats(added), [2.0, 1.0, 2.0]);
}

#[test]
fn an_index_into_nothing_is_refused() {
    let nothing = ramp(&[0, 2]);
    refused(ops::take(&nothing, &ints(&[0]), 0));
    refused(ops::take_along_axis(&nothing, &ops::zeros(&[1, 2], Dtype::Int32).unwrap(), 0));
    assert_eq!(ops::take(&nothing, &ints(&[]), 0).unwrap().shape(), [0, 2]);
    let batch = ramp(&[0, 2, 2]);
    refused(ops::gather_mm(&batch, &ramp(&[1, 2, 2]), Some(&ints(&[0])), None, false));
    refused(ops::take(&ramp(&[3]), &ramp(&[1]), 0));
}

#[test]
fn blocks_stay_inside() {
    let x = ramp(&[4, 3]);
    let gathered = ops::gather(&x, [&ints(&[3, 9])], &[0], &[2, 3]).unwrap();
    assert_eq!(gathered.shape(), [2, 2, 3]);
    assert_eq!(floats(Ok(gathered))[..12], [6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    refused(ops::gather(&x, [&ints(&[0])], &[0], &[5, 3]));
    refused(ops::gather(&x, [&ints(&[0])], &[2], &[1, 3]));
    let updates = ops::full(&[1, 2, 3], -1, Dtype::Float32).unwrap();
    assert_eq!(floats(ops::scatter(&x, [&ints(&[3])], &updates, &[0]))[6..], [-1.0; 6]);
    assert_eq!(floats(ops::scatter_max(&x, [&ints(&[3])], &updates, &[-2])), floats(Ok(x.clone())));
    refused(ops::scatter(&x, [&ints(&[3])], &ramp(&[3]), &[0]));

    for start in [ints(&[3, 3]), ints(&[-5, i32::MAX]), ops::broadcast_to(&ints(&[9]), &[2]).unwrap()] {
        let block = ops::slice_dynamic(&x, &start, &[0, 1], &[2, 2]).unwrap();
        assert!(floats(Ok(block)).iter().all(|v| (0.0..12.0).contains(v)));
    }
    assert_eq!(floats(ops::slice_dynamic(&x, &ints(&[9]), &[0], &[1, 3])), [9.0, 10.0, 11.0]);
    refused(ops::slice_dynamic(&x, &ints(&[0]), &[0], &[-1, 3]));
    refused(ops::slice_dynamic(&x, &ints(&[0]), &[0, 1], &[1, 3]));
    let row = ops::full(&[1, 3], -1, Dtype::Float32).unwrap();
    assert_eq!(floats(ops::slice_update_dynamic(&x, &row, &ints(&[99]), &[0]))[9..], [-1.0; 3]);
    refused(ops::slice_update_dynamic(&x, &ramp(&[1, 1, 1]), &ints(&[0]), &[0]));
    refused(ops::slice_update_dynamic(&x, &ramp(&[5, 1]), &ints(&[0]), &[0]));
}

#[test]
fn views_stay_inside() {
    let x = ramp(&[6]);
    assert_eq!(floats(ops::as_strided(&x, &[2, 3], &[-3, 1], 3)), [3.0, 4.0, 5.0, 0.0, 1.0, 2.0]);
    assert_eq!(floats(ops::as_strided(&x, &[3, 2], &[0, 1], 4)), [4.0, 5.0, 4.0, 5.0, 4.0, 5.0]);
    assert_eq!(ops::as_strided(&x, &[0, 2], &[100, 1], 99).unwrap().shape(), [0, 2]);
    refused(ops::as_strided(&x, &[2, 3], &[3, 1], 1));
    refused(ops::as_strided(&x, &[2], &[-1], 0));
    refused(ops::as_strided(&x, &[2], &[i64::MAX], 0));
    refused(ops::as_strided(&x, &[1], &[1], usize::MAX));
    refused(ops::as_strided(&x, &[2], &[1, 1], 0));
    refused(ops::as_strided(&x, &[-2, -3], &[3, 1], 0));
    refused(ops::view(&ops::zeros(&[4], Dtype::Uint8).unwrap(), Dtype::Bool));
    assert_eq!(ops::view(&x, Dtype::Uint8).unwrap().shape(), [24]);
    assert!(ops::view(&ramp(&[3]), Dtype::Int64).is_err());
}

#[test]
fn integer_division_never_traps() {
    let (a, b) = (ints(&[7, -7, i32::MIN, i32::MIN, -7, 5]), ints(&[0, 2, -1, 0, -1, i32::MIN]));
    assert_eq!(ops::floor_divide(&a, &b).unwrap().to_vec::<i32>().unwrap(), [0, -4, i32::MIN, 0, 7, -1]);
    assert_eq!(ops::remainder(&a, &b).unwrap().to_vec::<i32>().unwrap(), [0, 1, 0, 0, 0, 5 + i32::MIN]);
    let (quotient, remainder) = ops::divmod(&a, &b).unwrap();
    assert_eq!(quotient.to_vec::<i32>().unwrap(), [0, -4, i32::MIN, 0, 7, -1]);
    assert_eq!(remainder.to_vec::<i32>().unwrap(), [0, 1, 0, 0, 0, 5 + i32::MIN]);
    assert_eq!(floats(&a % 0), [0.0; 6]);
    assert_eq!(ops::floor_divide(&a, -1).unwrap().to_vec::<i32>().unwrap()[..3], [-7, 7, i32::MIN]);
    assert_eq!((&a % 4).unwrap().to_vec::<i32>().unwrap(), [3, 1, 0, 0, 1, 1]);
    let bytes = Array::from_slice(&[200u8, 255], &[2]).unwrap();
    assert_eq!(ops::floor_divide(&bytes, 255).unwrap().to_vec::<u8>().unwrap(), [0, 1]);
    assert_eq!(ops::floor_divide(&bytes, ops::zeros_like(&bytes)).unwrap().to_vec::<u8>().unwrap(), [0, 0]);
    let flags = Array::from_slice(&[true, false], &[2]).unwrap();
    ops::floor_divide(&flags, &flags).unwrap().eval().unwrap();
    let wide = Array::from_slice(&[i64::MIN], &[1]).unwrap();
    assert_eq!(ops::floor_divide(&wide, ints(&[-1])).unwrap().to_vec::<i64>().unwrap(), [i64::MIN]);
    assert_eq!(floats(ops::floor_divide(ramp(&[2]), 0.0))[1], f32::INFINITY);
}

#[test]
fn what_cannot_be_allocated_is_refused() {
    let big = 1 << 30;
    refused(ops::zeros(&[big, 1 << 20], Dtype::Float32));
    refused(ops::full(&[big, big, 16], 1.0, Dtype::Float32));
    refused(ops::broadcast_to(&ramp(&[1]), &[big, big, big]));
    refused(ops::tile(&ramp(&[1]), &[big, big]));
    refused(ops::outer(&ops::zeros(&[big], Dtype::Bool).unwrap(), &ops::zeros(&[big], Dtype::Bool).unwrap()));
    refused(ops::eye(i32::MAX, i32::MAX, i32::MIN, Dtype::Bool));
    refused(ops::diag(&ramp(&[2]), i32::MIN));
    refused(ops::reshape(&ramp(&[6]), &[-2, -3]));
    refused(ops::unflatten(&ramp(&[6]), 0, &[-2, -3]));
    assert!(ops::zeros(&[-1], Dtype::Float32).is_err());
}

#[test]
fn what_mlx_would_divide_by_zero_is_refused() {
    let x = ramp(&[4]);
    refused(ops::slice(&x, &[0], &[4], &[0]));
    refused(ops::slice_update(&x, &x, &[0], &[4], &[0]));
    assert_eq!(floats(ops::slice(&x, &[3], &[-9], &[i32::MIN])), [3.0]);
    assert_eq!(floats(ops::slice(&x, &[1], &[i32::MAX], &[i32::MAX])), [1.0]);
    assert!(ops::slice(&x, &[0], &[1], &[1, 1]).is_err());
    refused(ops::unflatten(&ramp(&[0]), 0, &[0, -1]));
    refused(ops::conv1d(&ramp(&[1, 4, 2]), &ramp(&[1, 2, 2]), Conv { groups: 0, ..Conv::default() }));
    refused(ops::conv1d(&ramp(&[1, 4, 0]), &ramp(&[3, 2, 0]), Conv::default()));
    refused(ops::conv2d(
        &ramp(&[1, 4, 4, 2]),
        &ramp(&[1, 2, 2, 2]),
        Conv { stride: [1, 0], ..Conv::default() },
    ));
    let cut = ConvGeneral { padding_low: &[i32::MIN], ..ConvGeneral::default() };
    refused(ops::conv_general(&ramp(&[1, 4, 2]), &ramp(&[1, 2, 2]), cut));
    let how = Quantization::affine(32, 4);
    let q = ops::quantize(&ramp(&[4, 32]), how, None).unwrap();
    let none =
        ops::quantized_matmul(&ramp(&[0, 32]), &q.weight, &q.scales, q.biases.as_ref(), true, how).unwrap();
    assert_eq!((none.shape(), none.dtype()), (&[0, 4][..], Dtype::Float32));
    assert_eq!(floats(ops::number_of_elements(&Array::from(1), .., false, Dtype::Int32)), [1.0]);
    refused(ops::number_of_elements(&Array::from(1), 0, false, Dtype::Int32));
}

#[test]
fn empty_arrays_have_empty_results() {
    let empty = ramp(&[3, 0]);
    for sorted in [ops::sort(&empty, -1), ops::argsort(&empty, -1), ops::cumsum(&empty, -1, true, false)] {
        assert_eq!(floats(sorted), [0f32; 0]);
    }
    assert_eq!(ops::cummax(&empty, None, false, true).unwrap().to_vec::<f32>().unwrap(), [0f32; 0]);
    assert_eq!(floats(ops::scatter(&empty, [&ints(&[2])], &ramp(&[1, 1, 0]), &[0])), [0f32; 0]);
    assert_eq!(floats(ops::topk(&empty, 0, -1)), [0f32; 0]);
    refused(ops::quantize(&ramp(&[0, 32]), Quantization::affine(32, 4), None));
}

#[test]
fn extremes_of_integers_do_not_overflow() {
    assert_eq!(floats(ops::tri(2, 2, i32::MIN, Dtype::Float32)), [0.0; 4]);
    assert_eq!(floats(ops::tri(2, 2, i32::MAX, Dtype::Float32)), [1.0; 4]);
    assert_eq!(floats(ops::triu(&ramp(&[2, 2]), i32::MIN)), [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(floats(ops::tril(&ramp(&[2, 2]), i32::MIN)), [0.0; 4]);
    assert_eq!(ops::diagonal(&ramp(&[2, 2]), i32::MIN, 0, 1).unwrap().shape(), [0]);
    assert_eq!(floats(ops::trace(&ramp(&[2, 2]), i32::MAX, 0, 1, Dtype::Float32)), [0.0]);
    assert_eq!(floats(ops::roll(&ramp(&[3]), &[i32::MIN], 0)), [2.0, 0.0, 1.0]);
    assert_eq!(ops::diff(&ramp(&[3]), i32::MAX, 0).unwrap().shape(), [0]);
    assert_eq!(floats(ops::argmax(&Array::from(3.0f32), None, true)), [0.0]);
    for k in [i32::MIN, i32::MAX] {
        assert_eq!(floats(ops::eye(2, 2, k, Dtype::Float32)), [0.0; 4]);
        assert!(ops::partition(&ramp(&[3]), k, 0).is_err());
        assert!(ops::topk(&ramp(&[3]), k, 0).is_err());
        assert!(ops::expand_dims(&ramp(&[3]), k).is_err());
        assert!(ops::sum(&ramp(&[3]), k, false).is_err());
    }
}

#[test]
fn padding_needs_a_pair_for_every_axis() {
    let x = ramp(&[1, 3]);
    assert_eq!(
        floats(ops::pad(&x, &[(0, 0), (2, 2)], PadMode::Reflect, 0)),
        [2.0, 1.0, 0.0, 1.0, 2.0, 1.0, 0.0]
    );
    assert_eq!(floats(ops::pad(&x, &[(0, 0), (2, 0)], PadMode::Symmetric, 0)), [1.0, 0.0, 0.0, 1.0, 2.0]);
    assert_eq!(floats(ops::pad(&x, &[(0, 0), (1, 1)], PadMode::Edge, 0)), [0.0, 0.0, 1.0, 2.0, 2.0]);
    assert_eq!(floats(ops::pad(&x, &[(0, 0), (1, 0)], PadMode::Constant, 7)), [7.0, 0.0, 1.0, 2.0]);
    refused(ops::pad(&x, &[(1, 1)], PadMode::Constant, 0));
    refused(ops::pad(&x, &[(0, 0), (1, 1)], PadMode::Constant, ramp(&[2])));
    assert!(ops::pad(&x, &[(0, 0), (-1, 1)], PadMode::Constant, 0).is_err());
    assert!(ops::pad(&ramp(&[0]), &[(1, 1)], PadMode::Reflect, 0).is_err());
}

#[test]
fn products_of_picked_matrices_wrap_their_indices() {
    let (a, b) = (ramp(&[2, 2, 3]), ramp(&[3, 3, 2]));
    let wrapped = ops::gather_mm(&a, &b, Some(&ints(&[3, -1])), Some(&ints(&[5, -3])), false);
    let plain = ops::gather_mm(&a, &b, Some(&ints(&[1, 1])), Some(&ints(&[2, 0])), false);
    assert_eq!(floats(wrapped), floats(plain));
    let how = Quantization::from(QuantizationMode::Mxfp4);
    let q = ops::quantize(&ramp(&[2, 4, 32]), how, None).unwrap();
    let x = ramp(&[2, 1, 32]);
    let pick = |rhs: &[i32]| {
        floats(ops::gather_qmm(&x, &q.weight, &q.scales, None, None, Some(&ints(rhs)), true, how, false))
    };
    assert_eq!(pick(&[9, -2]), pick(&[1, 0]));
    let segments = Array::from_slice(&[-5i64, 1, 1, 1 << 40, 5, 9], &[3, 2]).unwrap();
    let parts = floats(ops::segmented_mm(&ramp(&[1, 3]), &ramp(&[3, 1]), &segments));
    assert_eq!(parts, [0.0, 5.0, 0.0]);
    refused(ops::qqmm(&ramp(&[1, 64]), &q.weight, None, how, None));
    refused(ops::qqmm(&ramp(&[1, 64]), &ramp(&[2, 64]), None, Quantization::affine(64, 4), None));
    refused(ops::qqmm(&ramp(&[1, 33]), &ramp(&[2, 33]), None, how, None));
}

#[test]
fn text_arguments_are_checked() {
    let x = ramp(&[2, 2]);
    assert_eq!(floats(ops::einsum("ij,jk->ik", [&x, &x])), [2.0, 3.0, 6.0, 11.0]);
    for subscripts in
        ["", "->", "ij", "ij,jk->iz", "i,j->ij", ",", "ij,jk,kl->il", "i\0j", "ij,jk->", "..j,jk->k", "é,jk"]
    {
        let _ = ops::einsum(subscripts, [&x, &x]).and_then(|y| y.eval());
    }
    assert!(ops::einsum("ij,jk->iz", [&x, &x]).is_err());
    assert!(ops::einsum("i\0j", [&x]).is_err());
    assert!(ops::einsum("", []).is_err());
    assert!(ops::concatenate([], 0).is_err());
    assert!(ops::stack([], 0).is_err());
    assert!(ops::depends([], [&x]).unwrap().is_empty());
}
