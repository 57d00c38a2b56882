//! Functions that go to a file and come back.

use mlxport::transforms::{FunctionExporter, export_function, graph_to_dot, import_function};
use mlxport::{Array, Error, ops};

#[test]
fn a_function_comes_back_with_what_it_captured() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("100%s%n.mlxfn");
    // Captured in column order and as a broadcast: the memory of neither is row-major.
    let w = Array::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]).unwrap();
    let w = ops::transpose(&w, [1, 0]).unwrap();
    let b = ops::broadcast_to(&Array::from(0.5f32), &[2]).unwrap();
    mlxport::transforms::eval([&w, &b]).unwrap();
    let f = |x: &[Array]| Ok([(ops::matmul(&x[0], &w)? + &b)?, b.clone()]);
    let x = Array::from_slice(&[1.0f32, 0.0, -1.0], &[1, 3]).unwrap();
    export_function(&path, f, [&x], false).unwrap();
    let g = import_function(&path).unwrap();
    let values = g.call([&x]).unwrap();
    assert_eq!(values[0].to_vec::<f32>().unwrap(), [-1.5, -1.5]);
    assert_eq!(values[1].to_vec::<f32>().unwrap(), [0.5, 0.5]);
    export_function(&path, |y| &y[0] * &x, [&x], false).unwrap();
    let squares = import_function(&path).unwrap().call([&x]).unwrap();
    assert_eq!(squares[0].to_vec::<f32>().unwrap(), [1.0, 0.0, 1.0]);
    let wide = ops::zeros(&[2, 3], mlxport::Dtype::Float32).unwrap();
    assert!(matches!(g.call([&wide]), Err(Error::Mlx { .. })));
}

#[test]
fn a_shapeless_function_takes_other_shapes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.mlxfn");
    let x = Array::from_slice(&[1.0f32, 2.0], &[2]).unwrap();
    export_function(&path, |x| ops::sum(&ops::exp(&x[0])?, 0, false), [&x], true).unwrap();
    let g = import_function(&path).unwrap();
    let y = Array::from_slice(&[0.0f32; 5], &[5]).unwrap();
    assert_eq!(g.call([&y]).unwrap()[0].item::<f32>().unwrap(), 5.0);
}

#[test]
fn a_file_holds_several_traces_and_named_arguments() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.mlxfn");
    let f = |args: &[Array], named: &std::collections::BTreeMap<String, Array>| match named.get("scale") {
        Some(scale) => &args[0] * scale,
        None => Ok(args[0].clone()),
    };
    let (x, y) = (Array::from(3.0f32), Array::from_slice(&[1i32, 2], &[2]).unwrap());
    let exporter = FunctionExporter::with_kwargs(&path, f, false).unwrap();
    exporter.trace([&x]).unwrap();
    exporter.trace_with_kwargs([&y], [("scale", &y)]).unwrap();
    assert!(matches!(exporter.trace([&x]), Err(Error::Mlx { .. })));
    assert!(!path.exists());
    exporter.finish().unwrap();
    let g = import_function(&path).unwrap();
    assert_eq!(g.call([&x]).unwrap()[0].item::<f32>().unwrap(), 3.0);
    let z = g.call_with_kwargs([&y], [("scale", &y)]).unwrap();
    assert_eq!(z[0].to_vec::<i32>().unwrap(), [1, 4]);
    assert!(matches!(g.call_with_kwargs([&y], [("factor", &y)]), Err(Error::Mlx { .. })));
}

#[test]
fn what_cannot_be_written_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.mlxfn");
    let x = Array::from(1.0f32);
    let failed = export_function(&path, |_| Err::<Array, _>(Error::argument("test", "no")), [&x], false);
    assert!(matches!(failed, Err(Error::Argument { op: "test", .. })));
    drop(FunctionExporter::new(&path, |x| Ok(x[0].clone()), false).unwrap());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(matches!(
        export_function(dir.path().join("no/f"), |x| Ok(x[0].clone()), [&x], false),
        Err(Error::Io { .. })
    ));
    assert!(matches!(import_function(&path), Err(Error::Mlx { op: "import_function", .. })));
}

#[test]
fn a_graph_is_a_picture() {
    let (x, y) = (Array::from(1.0f32), Array::from(2.0f32));
    let z = (ops::exp(&x).unwrap() * &y).unwrap();
    let dot = graph_to_dot([&z], [("in\"put", &x)]).unwrap();
    assert!(dot.starts_with("digraph"), "{dot}");
    for part in ["Exp", "Multiply", "in\\\"put"] {
        assert!(dot.contains(part), "{part} in {dot}");
    }
}
