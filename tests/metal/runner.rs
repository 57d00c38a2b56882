//! What the runner computes, and what it catches.

use metal_host::{Error, Fault, Grid, Shader};

const SUM: &str = r#"
#include <metal_stdlib>
using namespace metal;

template <typename T>
[[kernel]] void row_sum(
    const device T* x [[buffer(0)]],
    device float* out [[buffer(1)]],
    constant uint& n [[buffer(2)]],
    uint row [[threadgroup_position_in_grid]],
    uint lid [[thread_position_in_threadgroup]],
    uint size [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint group [[simdgroup_index_in_threadgroup]],
    uint groups [[simdgroups_per_threadgroup]]) {
  threadgroup float partial[32];
  float acc = 0;
  for (uint i = lid; i < n; i += size) {
    acc += float(x[row * n + i]);
  }
  acc = simd_sum(acc);
  if (lane == 0) partial[group] = acc;
  BARRIER
  if (lid == 0) {
    float total = 0;
    for (uint g = 0; g < groups; g++) total += partial[g];
    out[row] = total;
  }
}
template [[host_name("row_sum_float")]] [[kernel]] decltype(row_sum<float>) row_sum<float>;
"#;

fn sum(barrier: &str) -> Shader {
    Shader::from_source("sum.metal", SUM.replace("BARRIER", barrier))
}

#[test]
fn threads_meet_at_barriers_and_sum_over_simdgroups() {
    let x: Vec<f32> = (0..3 * 1000).map(|i| (i % 17) as f32).collect();
    let shader = sum("threadgroup_barrier(mem_flags::mem_threadgroup);");
    for kernel in
        [shader.kernel("row_sum", &["float"]).unwrap(), shader.kernel("row_sum_float", &[]).unwrap()]
    {
        let kernel = kernel.input(&x).output::<f32>(3).scalar(1000u32);
        let out = kernel.launch_every_order(Grid::Groups([3, 1, 1]), [200, 1, 1]).unwrap();
        let want: Vec<f32> = x.chunks(1000).map(|row| row.iter().sum()).collect();
        assert_eq!(out.read::<f32>(0), want);
    }
}

#[test]
fn a_missing_barrier_is_a_race() {
    let kernel = sum("").kernel("row_sum", &["float"]).unwrap();
    let error =
        kernel.input(&[1f32; 64]).output::<f32>(1).scalar(64u32).launch(Grid::Groups([1, 1, 1]), [64, 1, 1]);
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Fault { fault: Fault::Race | Fault::Uninitialized, .. }), "{error}");
    println!("{error}");
}
