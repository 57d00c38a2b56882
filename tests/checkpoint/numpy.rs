//! `.npy` and `.npz`: files that NumPy has written (`tests/oracle/numpy_files.py`), what we write,
//! and files that are not as they should be.

use std::collections::BTreeMap;
use std::path::PathBuf;

use half::f16;
use mlxport::io::{load_npy, load_npz, save_npy, save_npz};
use mlxport::{Dtype, HostTensor};
use num_complex::Complex32;

use crate::raw;

fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/fixtures/numpy", name].iter().collect()
}

/// The 2 x 3 elements of each dtype, by NumPy's name of it.
fn samples() -> BTreeMap<String, HostTensor> {
    let i = [0u8, 1, 2, 3, 4, 5];
    fn tensor<T: mlxport::array::Element>(values: [T; 6]) -> HostTensor {
        HostTensor::from_slice(&values, &[2, 3]).unwrap()
    }
    let samples = [
        ("b1", tensor(i.map(|i| i % 2 == 1))),
        ("u1", tensor(i.map(|i| i + 200))),
        ("u2", tensor(i.map(|i| u16::from(i) + 200))),
        ("u4", tensor(i.map(|i| u32::from(i) + 200))),
        ("u8", tensor(i.map(|i| u64::from(i) + 200))),
        ("i1", tensor(i.map(|i| i as i8 - 2))),
        ("i2", tensor(i.map(|i| i16::from(i) - 2))),
        ("i4", tensor(i.map(|i| i32::from(i) - 2))),
        ("i8", tensor(i.map(|i| i64::from(i) - 2))),
        ("f2", tensor(i.map(|i| f16::from_f32(f32::from(i) - 2.0)))),
        ("f4", tensor(i.map(|i| f32::from(i) - 2.0))),
        ("f8", tensor(i.map(|i| f64::from(i) - 2.0))),
        ("c8", tensor(i.map(|i| Complex32::new(i.into(), 0.0 - f32::from(i))))),
    ];
    samples.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect()
}

#[test]
fn archives_of_numpy_are_read() {
    for file in ["stored.npz", "compressed.npz"] {
        let mut tensors = load_npz(fixture(file)).unwrap();
        for (name, expected) in samples() {
            assert_eq!(tensors.remove(&name).unwrap(), expected, "{name} in {file}");
            assert_eq!(tensors.remove(&format!("big_{name}")).unwrap(), expected, "big_{name} in {file}");
        }
        let fortran = tensors.remove("fortran").unwrap();
        assert_eq!(fortran.shape(), [2, 3, 4]);
        assert_eq!(fortran.to_vec::<i32>().unwrap(), (0..24).collect::<Vec<_>>());
        let scalar = tensors.remove("scalar").unwrap();
        assert_eq!((scalar.shape(), scalar.to_vec().unwrap()), (&[][..], vec![2.5f32]));
        assert_eq!(tensors.remove("empty").unwrap().shape(), [0, 3]);
        assert!(tensors.is_empty());
    }
}

#[test]
fn single_files_of_numpy_are_read_and_written_alike() {
    let expected = &samples()["f4"];
    assert_eq!(load_npy(fixture("one.npy")).unwrap(), *expected);
    assert_eq!(load_npy(fixture("version2.npy")).unwrap(), samples()["i8"]);
    let dir = raw::dir();
    let path = dir.path().join("x.npy");
    save_npy(&path, expected).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(fixture("one.npy")).unwrap());
}

#[test]
fn what_is_written_is_read_back() {
    let dir = raw::dir();
    let mut tensors = samples();
    tensors.insert("scalar".into(), HostTensor::from_slice(&[1u8], &[]).unwrap());
    tensors.insert("empty".into(), HostTensor::from_slice::<f64>(&[], &[3, 0]).unwrap());
    tensors.insert("vector".into(), HostTensor::from_slice(&[1i64, 2], &[2]).unwrap());
    for compress in [false, true] {
        let (path, again) = (dir.path().join("x.npz"), dir.path().join("y.npz"));
        save_npz(&path, &tensors, compress).unwrap();
        save_npz(&again, &tensors, compress).unwrap();
        assert_eq!(load_npz(&path).unwrap(), tensors);
        assert_eq!(std::fs::read(path).unwrap(), std::fs::read(again).unwrap());
    }
}

#[test]
fn bfloat16_says_what_to_do() {
    let dir = raw::dir();
    let tensor = HostTensor::new(vec![0, 0], &[1], Dtype::Bfloat16).unwrap();
    let error = save_npy(dir.path().join("x.npy"), &tensor).unwrap_err().to_string();
    assert!(error.contains("no bfloat16: convert to float32"), "{error}");
    let error =
        save_npz(dir.path().join("x.npz"), &BTreeMap::from([("w".into(), tensor)]), false).unwrap_err();
    assert!(error.to_string().contains("`w`"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn dtypes_that_mlx_lacks_are_refused() {
    for (name, because) in [
        ("complex128", "`<c16`"),
        ("text", "`<U2`"),
        ("record", "not structures"),
        ("void2", "perhaps of bfloat16"),
    ] {
        let error = load_npy(fixture(&format!("refused_{name}.npy"))).unwrap_err().to_string();
        assert!(error.contains(because), "{error}");
    }
}

/// A file of version 1 with this header and data.
fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\0", &length[..], header.as_bytes(), data].concat()
}

#[track_caller]
fn refused(bytes: &[u8], because: &str) {
    let dir = raw::dir();
    let path = dir.path().join("x.npy");
    std::fs::write(&path, bytes).unwrap();
    let error = load_npy(&path).unwrap_err().to_string();
    assert!(error.contains(because) && error.contains("x.npy"), "{error}");
}

#[test]
fn headers_that_are_wrong_are_refused() {
    fn header(descr: &str, order: &str, shape: &str) -> Vec<u8> {
        npy(&format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"), &[0; 8])
    }
    assert!(load_npy(fixture("absent.npy")).is_err());
    refused(b"", "cut off in the header");
    refused(b"PK\x03\x04abcdefgh", "not an .npy file");
    refused(b"\x93NUMPY\x09\0abcdefgh", "version 9");
    refused(b"\x93NUMPY\x02\0\xff\xff\xff\xff", "the header claims 4294967295 bytes");
    refused(b"\x93NUMPY\x01\0\xff\xffabc", "cut off in the header");
    refused(&npy("\u{0}", &[]), "where `{` belongs");
    refused(&npy("{}", &[]), "lacks `descr`");
    refused(&npy(&"(".repeat(60_000), &[]), "where `{` belongs");
    refused(&header("'<f4'", "False", "(2"), "`}` is not a size");
    refused(&header("'<f4'", "0", "(2,)"), "where `False` belongs");
    refused(&header("'<f4'", "False", "(-2,)"), "`-2,), }` is not a size");
    refused(&header("'<f4'", "False", "(2.0,)"), "where `)` belongs");
    refused(&header("'<f4'", "False", "(99999999999,)"), "not a size");
    refused(&header("'<f4'", "False", "(2147483647, 2147483647, 2147483647)"), "cut off");
    refused(&header("'<f4'", "False", &format!("({})", "1,".repeat(65))), "65 dimensions");
    refused(&header("'<f4'", "False", "(3,)"), "cut off");
    refused(&header("'<f4'", "False", "(1,)"), "bytes after");
    refused(&header("'f4'", "False", "(2,)"), "f4");
    refused(&header("'?f4'", "False", "(2,)"), "not a dtype");
    refused(&header("'|O'", "False", "(1,)"), "`|O`");
    refused(&header("'|b1', 'descr': '|b1'", "False", "(1,)"), "`descr` twice");
    refused(&header("'|b1'", "False, 'x': 1", "(1,)"), "key `x`");
    let bools = npy("{'descr': '|b1', 'fortran_order': False, 'shape': (2,)}", &[1, 2]);
    refused(&bools, "neither 0 nor 1");
}

#[test]
fn archives_that_are_wrong_are_refused() {
    let dir = raw::dir();
    let path = dir.path().join("x.npz");
    for bytes in [&b""[..], b"PK\x05\x06", b"\x93NUMPY"] {
        std::fs::write(&path, bytes).unwrap();
        assert!(load_npz(&path).unwrap_err().to_string().contains("x.npz"));
    }
    let whole = std::fs::read(fixture("stored.npz")).unwrap();
    for cut in (0..whole.len()).step_by(97) {
        std::fs::write(&path, &whole[..cut]).unwrap();
        assert!(load_npz(&path).is_err(), "{cut}");
    }
}
