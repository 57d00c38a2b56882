//! Indexing against NumPy, and the bounds that NumPy's rules leave to us.

use half::f16;
use mlxport::array::Index::{self, Ellipsis, NewAxis};
use mlxport::array::{Element, Slice, strided};
use mlxport::{Array, Dtype, Error, transforms};
use serde_json::Value;

use support::{f32_array, to_f64};

fn ints(value: &Value) -> Vec<i32> {
    value.as_array().unwrap().iter().map(|v| v.as_i64().unwrap() as i32).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn index(value: &Value) -> Index {
    match value {
        Value::Null => NewAxis,
        Value::String(_) => Ellipsis,
        Value::Number(n) => Index::At(n.as_i64().unwrap() as i32),
        entry => {
            if let Some(range) = entry.get("range") {
                let part = |i: usize| range[i].as_i64().map(|v| v as i32);
                return Index::Slice(Slice { start: part(0), stop: part(1), step: part(2).unwrap_or(1) });
            }
            if let Some(list) = entry.get("list") {
                return Index::List(ints(list));
            }
            let shape = ints(&entry["shape"]);
            Index::Array(Array::from_slice(&ints(&entry["array"]), &shape).unwrap())
        }
    }
}

/// Written by `tests/oracle/indexing.py`.
fn cases() -> Vec<Value> {
    serde_json::from_str(include_str!("../fixtures/indexing.json")).unwrap()
}

#[test]
fn parts_are_those_of_numpy() {
    for case in cases() {
        let shape = ints(&case["shape"]);
        let values: Vec<f64> = (0..shape.iter().product()).map(f64::from).collect();
        let x = f32_array(&values, &shape);
        let indices: Vec<Index> = case["index"].as_array().unwrap().iter().map(index).collect();
        let part = x.index(indices);
        if case.get("error").is_some() {
            assert!(part.is_err(), "{case}");
            continue;
        }
        let part = part.unwrap_or_else(|e| panic!("{e}: {case}"));
        assert_eq!(part.shape(), ints(&case["part"]), "{case}");
        assert_eq!(to_f64(&part), floats(&case["values"]), "{case}");
    }
}

#[test]
fn updates_are_those_of_numpy() {
    for case in cases() {
        let shape = ints(&case["shape"]);
        let values: Vec<f64> = (0..shape.iter().product()).map(f64::from).collect();
        let x = f32_array(&values, &shape);
        let indices: Vec<Index> = case["index"].as_array().unwrap().iter().map(index).collect();
        if case.get("error").is_some() {
            assert!(x.set_index(indices.clone(), 0).is_err(), "{case}");
            assert!(x.at(indices).add(0).is_err(), "{case}");
            continue;
        }
        let value = f32_array(&floats(&case["value"]), &ints(&case["value_shape"]));
        let part = || x.at(indices.clone());
        let updated = match case["op"].as_str().unwrap() {
            "add" => part().add(&value),
            "subtract" => part().subtract(&value),
            "multiply" => part().multiply(&value),
            "maximum" => part().maximum(&value),
            "minimum" => part().minimum(&value),
            _ => x.set_index(indices, &value),
        };
        let updated = updated.unwrap_or_else(|e| panic!("{e}: {case}"));
        assert_eq!(updated.shape(), shape, "{case}");
        assert_eq!(to_f64(&updated), floats(&case["updated"]), "{case}");
    }
}

fn numbers(n: i32) -> Array {
    Array::from_slice(&(0..n).collect::<Vec<i32>>(), &[n]).unwrap()
}

#[test]
fn every_kind_of_rust_range_is_an_index() {
    let x = numbers(6);
    let part = |i: Index| x.index(i).unwrap().to_vec::<i32>().unwrap();
    assert_eq!(part((..).into()), [0, 1, 2, 3, 4, 5]);
    assert_eq!(part((1..3).into()), [1, 2]);
    assert_eq!(part((-2..).into()), [4, 5]);
    assert_eq!(part((..-4).into()), [0, 1]);
    assert_eq!(part((1..=3).into()), [1, 2, 3]);
    assert_eq!(part((3..=-1).into()), [3, 4, 5]);
    assert_eq!(part((..=1).into()), [0, 1]);
    assert_eq!(part((..=i32::MAX).into()), [0, 1, 2, 3, 4, 5]);
    assert_eq!(part(strided(4.., -2).into()), [4, 2, 0]);
    assert_eq!(part(vec![5, -6].into()), [5, 0]);
    assert_eq!(x.index(()).unwrap().to_vec::<i32>().unwrap(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(x.index(&[NewAxis, Index::At(2)][..]).unwrap().shape(), [1]);
    let extreme = |start, stop, step| part(strided(start..stop, step).into());
    assert_eq!(extreme(i32::MIN, i32::MAX, 1), [0, 1, 2, 3, 4, 5]);
    assert_eq!(extreme(i32::MAX, i32::MIN, -1), [5, 4, 3, 2, 1, 0]);
    assert_eq!(extreme(i32::MIN, i32::MAX, i32::MAX), [0]);
    assert_eq!(extreme(i32::MAX, i32::MIN, i32::MIN), [5]);
    assert!(extreme(i32::MAX, i32::MIN, 1).is_empty());
}

#[test]
fn what_is_no_index_is_refused() {
    let x = f32_array(&[0.0; 12], &[3, 4]);
    let float = f32_array(&[0.0], &[1]);
    let mask = Array::from_slice(&[true, false, true], &[3]).unwrap();
    let refused: [Vec<Index>; 9] = [
        vec![Index::At(3)],
        vec![Index::At(-4)],
        vec![Index::At(0); 3],
        vec![Ellipsis, Ellipsis],
        vec![Index::List(vec![0, 3])],
        vec![strided(.., 0).into()],
        vec![(&float).into()],
        vec![(&mask).into()],
        vec![[0, 1].into(), [0, 1, 2].into()],
    ];
    for (i, indices) in refused.into_iter().enumerate() {
        assert!(x.index(indices.clone()).is_err(), "{indices:?}");
        // A mask alone can be assigned to.
        assert!(i == 7 || x.set_index(indices.clone(), 0.0).is_err(), "{indices:?}");
        assert!(x.at(indices.clone()).add(0.0).is_err(), "{indices:?}");
    }
    assert!(x.set_index((&mask, ..), 0.0).is_err());
    assert!(matches!(Array::from(1.0f32).index(0), Err(Error::Argument { .. })));
    assert!(x.set_index(0, f32_array(&[0.0; 3], &[3])).is_err());
    assert!(x.set_index([0], f32_array(&[0.0; 8], &[2, 4])).is_err());
    assert!(numbers(3).at(0).divide(2).is_err());
    let empty = f32_array(&[], &[0, 2]);
    assert!(empty.index(numbers(1)).is_err());
    assert_eq!(empty.index(numbers(0)).unwrap().shape(), [0, 2]);
}

#[test]
fn index_arrays_count_modulo_the_size() {
    let x = numbers(300);
    fn check<T: Element + Into<i128>>(x: &Array, positions: &[T]) {
        let expected: Vec<i32> = positions.iter().map(|&p| p.into().rem_euclid(300) as i32).collect();
        let positions = Array::from_slice(positions, &[positions.len() as i32]).unwrap();
        assert_eq!(x.index(&positions).unwrap().to_vec::<i32>().unwrap(), expected, "{positions:?}");
        let updated = x.set_index(&positions, -7).unwrap().to_vec::<i32>().unwrap();
        let wrong = updated.iter().zip(0..).find(|&(&v, i)| (v == -7) != expected.contains(&i));
        assert_eq!(wrong, None, "{positions:?}");
    }
    check(&x, &[299, 300, i32::MAX, -300, -301, i32::MIN]);
    check(&x, &[i64::MAX, i64::MIN, 1 << 32, -1]);
    check(&x, &[u64::MAX, 300, 1 << 63, 4]);
    check(&x, &[u32::MAX, 300, 5]);
    check(&x, &[u16::MAX, 300, 5]);
    check(&x, &[i16::MAX, i16::MIN, 5]);
    check(&x, &[255u8, 0]);
    check(&x, &[127i8, -128, -1]);
    for n in [127, 128, 129, 255, 256, 257] {
        let x = numbers(n);
        let at = |i: Array| x.index(&i).unwrap().item::<i32>().unwrap();
        assert_eq!(at(Array::from(i8::MIN)), (-128i32).rem_euclid(n));
        assert_eq!(at(Array::from(u8::MAX)), 255 % n);
    }
    // int64 and uint64 promote to a float.
    let (a, b) =
        (Array::from_slice(&[3i64, -1], &[2]).unwrap(), Array::from_slice(&[0u64, 301], &[2]).unwrap());
    let square = mlxport::ops::reshape(&x, &[20, 15]).unwrap();
    assert_eq!(square.index((&a, &b)).unwrap().to_vec::<i32>().unwrap(), [45, 286]);
}

#[test]
fn masks_choose_what_is_set() {
    let x = numbers(6);
    let mask = Array::from_slice(&[true, false, true, true, false, false], &[6]).unwrap();
    let set = |value: &Array| x.set_index(&mask, value).unwrap().to_vec::<i32>();
    assert_eq!(set(&Array::from(9i32)).unwrap(), [9, 1, 9, 9, 4, 5]);
    assert_eq!(set(&numbers(1)).unwrap(), [0, 1, 0, 0, 4, 5]);
    assert_eq!(set(&(numbers(3) + 10).unwrap()).unwrap(), [10, 1, 11, 12, 4, 5]);
    assert!(set(&numbers(2)).is_err());
    let rows = f32_array(&[0.0; 6], &[3, 2]);
    let mask = Array::from_slice(&[true, false, true], &[3]).unwrap();
    let two = f32_array(&[1.0, 2.0], &[2]);
    let set = |value: &Array| to_f64(&rows.set_index(&mask, value).unwrap());
    assert_eq!(set(&two), [1.0, 2.0, 0.0, 0.0, 1.0, 2.0]);
    assert_eq!(set(&f32_array(&[1.0, 2.0, 3.0, 4.0], &[2, 2])), [1.0, 2.0, 0.0, 0.0, 3.0, 4.0]);
    let long = Array::from_slice(&[true; 4], &[4]).unwrap();
    assert!(rows.set_index(&long, 1.0).is_err());
}

#[test]
fn values_are_cast_to_the_dtype_of_the_array() {
    let x = Array::from_slice(&[f16::ONE; 3], &[3]).unwrap();
    let updated = x.set_index(0, numbers(1)).unwrap();
    assert_eq!(updated.to_vec::<f16>().unwrap(), [0.0, 1.0, 1.0].map(f16::from_f32));
    let updated = x.at([1, 1]).divide(4).unwrap();
    assert_eq!((updated.dtype(), to_f64(&updated)), (Dtype::Float16, vec![1.0, 0.0625, 1.0]));
}

#[test]
fn gradients_flow_through_parts_and_updates() {
    let x = f32_array(&[1.0, 2.0, 3.0, 4.0], &[2, 2]);
    let gradient = |f: &dyn Fn(&Array) -> mlxport::Result<Array>| {
        let value = |xs: &[Array]| mlxport::ops::sum(&f(&xs[0])?, .., false);
        to_f64(&transforms::value_and_grad(value, [&x]).unwrap().1[0])
    };
    assert_eq!(gradient(&|x| x.index(([0, 0, 1], 1))), [0.0, 2.0, 0.0, 1.0]);
    assert_eq!(gradient(&|x| x.index((1, strided(.., -1)))), [0.0, 0.0, 1.0, 1.0]);
    assert_eq!(gradient(&|x| x.set_index((.., 0), 5.0)), [0.0, 1.0, 0.0, 1.0]);
    assert_eq!(gradient(&|x| x.at([0]).add(5.0)), [1.0; 4]);
    assert_eq!(gradient(&|x| x.at((.., 0)).multiply(5.0)), [5.0, 1.0, 5.0, 1.0]);
}
