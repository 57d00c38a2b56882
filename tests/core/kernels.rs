//! Kernels that the caller writes, and captures, where the machine lacks the backend.

use mlxport::fast::{KernelSource, Launch, TemplateArg, cuda_kernel, metal_kernel};
use mlxport::{Device, Dtype, Error, Result, metal, with_device};

use support::{f32_array, to_f64};

const DOUBLE: KernelSource<'_> = KernelSource {
    name: "double",
    inputs: &["x"],
    outputs: &["y"],
    body: "uint i = thread_position_in_grid.x; y[i] = FACTOR * x[i];",
    header: "",
    ensure_row_contiguous: true,
};

const LAUNCH: Launch<'_> = Launch {
    grid: [3, 1, 1],
    thread_group: [3, 1, 1],
    outputs: &[(&[3], Dtype::Float32)],
    template: &[("FACTOR", TemplateArg::Int(2))],
    init_value: None,
    verbose: false,
};

#[track_caller]
fn assert_unsupported<T: std::fmt::Debug>(result: Result<T>, backend: &str) {
    match result {
        Err(Error::Unsupported { what, why }) => assert!(format!("{what} {why}").contains(backend)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_metal_kernel_computes_or_names_what_is_missing() {
    let x = f32_array(&[1.0, 2.0, 3.0], &[3]);
    // SAFETY: one thread per element of both arrays.
    let kernel = unsafe { metal_kernel(&DOUBLE, false) }.unwrap();
    if !metal::is_available() {
        return assert_unsupported(kernel.apply(&[&x], &LAUNCH), "Metal");
    }
    let y = with_device(Device::gpu(), || kernel.apply(&[&x], &LAUNCH)).unwrap().unwrap();
    assert_eq!(to_f64(&y[0]), [2.0, 4.0, 6.0]);
}

#[test]
fn a_cuda_kernel_computes_or_names_what_is_missing() {
    let x = f32_array(&[1.0, 2.0, 3.0], &[3]);
    let source = KernelSource { body: "y[threadIdx.x] = FACTOR * x[threadIdx.x];", ..DOUBLE };
    // SAFETY: one thread per element of both arrays.
    let kernel = unsafe { cuda_kernel(&source, 0) }.unwrap();
    if metal::is_available() || !Device::gpu().is_available() {
        return assert_unsupported(kernel.apply(&[&x], &LAUNCH), "CUDA");
    }
    let y = with_device(Device::gpu(), || kernel.apply(&[&x], &LAUNCH)).unwrap().unwrap();
    assert_eq!(to_f64(&y[0]), [2.0, 4.0, 6.0]);
}

#[test]
fn text_that_is_no_kernel_is_refused() {
    for source in [
        KernelSource { outputs: &[], ..DOUBLE },
        KernelSource { name: "nul\0", ..DOUBLE },
        KernelSource { inputs: &["\0"], ..DOUBLE },
    ] {
        // SAFETY: no kernel is made.
        unsafe {
            assert!(metal_kernel(&source, false).is_err());
            assert!(cuda_kernel(&source, 0).is_err());
        }
    }
}

#[test]
fn a_capture_needs_metal() {
    if !metal::is_available() {
        assert_unsupported(metal::start_capture("trace.gputrace"), "Metal");
        assert_unsupported(metal::stop_capture(), "Metal");
    }
}
