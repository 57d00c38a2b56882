//! Each detector catches a shader that was broken for it, and passes its correct twin.

use metal_host::{Error, Fault, Grid, Kernel, Order, Outputs, Result, Shader};

const ONE: Grid = Grid::Groups([1, 1, 1]);

fn compile(text: &str) -> Kernel {
    let head = "#include <metal_stdlib>\nusing namespace metal;\n";
    Shader::from_source("planted.metal", format!("{head}{text}")).kernel("planted", &[]).unwrap()
}

/// The fault, its message, and the line of the shader that it names.
#[track_caller]
fn fault(result: Result<Outputs>) -> (Fault, String, Option<String>) {
    match result.unwrap_err() {
        Error::Fault { fault, message, place, .. } => (fault, message, place),
        other => panic!("{other}"),
    }
}

/// A sum of each row over a threadgroup; `BARRIER` and `PLACE` are filled in.
const ROW_SUM: &str = r#"
[[kernel]] void planted(
    const device float* x [[buffer(0)]],
    device float* out [[buffer(1)]],
    uint row [[threadgroup_position_in_grid]],
    uint lid [[thread_position_in_threadgroup]],
    uint size [[threads_per_threadgroup]]) {
  threadgroup float partial[64];
  PLACE = x[row * size + lid];
  BARRIER
  if (lid == 0) {
    float total = 0;
    for (uint i = 0; i < size; i++) total += partial[i];
    out[row] = total;
  }
}
"#;

fn row_sum(barrier: &str, place: &str) -> Kernel {
    let x: Vec<f32> = (0..128).map(|i| i as f32).collect();
    compile(&ROW_SUM.replace("BARRIER", barrier).replace("PLACE", place)).input(&x).output::<f32>(2)
}

const BARRIER: &str = "threadgroup_barrier(mem_flags::mem_threadgroup);";

#[test]
fn a_barrier_orders_threadgroup_memory() {
    let rows = Grid::Groups([2, 1, 1]);
    let sums = row_sum(BARRIER, "partial[lid]").launch_every_order(rows, [64, 1, 1]).unwrap().read::<f32>(0);
    assert_eq!(sums, [2016.0, 6112.0]);

    // Forwards the reader comes before the writers, backwards after them; one is seen as a read of nothing.
    for order in [Order::Forward, Order::Reverse, Order::Random(3)] {
        let (kind, message, place) = fault(row_sum("", "partial[lid]").order(order).launch(rows, [64, 1, 1]));
        let expected = if order == Order::Reverse { Fault::Race } else { kind };
        assert_eq!(kind, expected, "{message}");
        assert!(matches!(kind, Fault::Race | Fault::Uninitialized), "{message}");
        assert!(message.contains("threadgroup variable `partial`"), "{message}");
        assert_eq!(place.as_deref(), Some("planted.metal:15"), "{message}");
    }

    // A barrier for the other kind of memory orders the threads, not what they wrote.
    let kernel = row_sum("threadgroup_barrier(mem_flags::mem_device);", "partial[lid]");
    assert_eq!(fault(kernel.launch(rows, [64, 1, 1])).0, Fault::Race);
    // One of the simdgroup orders half of the threads.
    let kernel = row_sum("simdgroup_barrier(mem_flags::mem_threadgroup);", "partial[lid]");
    assert_eq!(fault(kernel.clone().order(Order::Reverse).launch(rows, [64, 1, 1])).0, Fault::Race);
    let half = row_sum("simdgroup_barrier(mem_flags::mem_threadgroup);", "partial[lid]");
    half.launch_every_order(Grid::Groups([2, 1, 1]), [32, 1, 1]).unwrap();
}

#[test]
fn accesses_stay_inside_threadgroup_arrays() {
    let (kind, message, place) = fault(row_sum(BARRIER, "*(partial + lid + 1)").launch(ONE, [64, 1, 1]));
    assert_eq!(kind, Fault::Bounds);
    assert!(message.contains("byte 256 of threadgroup variable `partial`, which has 256 bytes"), "{message}");
    assert_eq!(place.as_deref(), Some("planted.metal:11"));
    let (_, message, _) = fault(row_sum(BARRIER, "partial[lid + 1]").launch(ONE, [64, 1, 1]));
    assert_eq!(message, "index 64 of an array of type 'float [64]'");
}

#[test]
fn accesses_stay_inside_buffers() {
    let double = |index: &str| {
        compile(&format!(
            "[[kernel]] void planted(const device float* x, device half* y, uint i [[thread_position_in_grid]]) {{\n\
             y[i] = half(2 * x[{index}]);\n}}"
        ))
    };
    let x = [1.0f32, 2.0, 3.0];
    let run = |index: &str, length: usize| {
        double(index).input(&x).output::<half::f16>(length).launch(Grid::Threads([3, 1, 1]), [2, 1, 1])
    };
    assert_eq!(run("i", 3).unwrap().read::<half::f16>(0), [2.0, 4.0, 6.0].map(half::f16::from_f32));

    let Error::Fault { kernel, fault: kind, thread, message, place, .. } = run("i", 2).unwrap_err() else {
        panic!()
    };
    assert_eq!((kernel.as_str(), kind, thread), ("planted", Fault::Bounds, [2, 0, 0]));
    assert_eq!(message, "a write of 2 bytes at byte 4 of buffer 1, which has 4 bytes");
    assert_eq!(place.as_deref(), Some("planted.metal:4"));
    let (_, message, _) = fault(run("i + 1", 3));
    assert_eq!(message, "a read of 4 bytes at byte 12 of buffer 0, which has 12 bytes");
    let (_, message, _) = fault(run("int(i) - 1", 3));
    assert_eq!(message, "a read of 4 bytes at byte -4 of buffer 0, which has 12 bytes");
    // A wider type reads past the end too.
    let wide = "[[kernel]] void planted(const device float* x, device float* y) { y[0] = ((device float2*)x)[1].x; }";
    compile(wide).input(&[1.0f32; 4]).output::<f32>(1).launch(ONE, [1, 1, 1]).unwrap();
    let wide = wide.replace(".x;", ".y;");
    let (_, message, _) = fault(compile(&wide).input(&x).output::<f32>(1).launch(ONE, [1, 1, 1]));
    assert_eq!(message, "a read of 4 bytes at byte 12 of buffer 0, which has 12 bytes");
}

#[test]
fn indices_stay_inside_arrays_of_a_thread() {
    let run = |n: i32| {
        let text = "[[kernel]] void planted(device float* y, constant int& n) {\n float a[8] = {0};\n\
                    for (int i = n; i < 8; i++)\n a[i] = i;\n y[0] = a[7]; }";
        compile(text).output::<f32>(1).scalar(n).launch(ONE, [1, 1, 1])
    };
    assert_eq!(run(0).unwrap().read::<f32>(0), [7.0]);
    let (kind, message, place) = fault(run(-3));
    assert_eq!(kind, Fault::Bounds);
    assert_eq!(message, "index -3 of an array of type 'float [8]'");
    assert_eq!(place.as_deref(), Some("planted.metal:6"));
}

#[test]
fn threadgroups_do_not_share_bytes() {
    let text = |target: &str| {
        format!(
            "[[kernel]] void planted(device int* y, uint g [[threadgroup_position_in_grid]], \
             uint i [[thread_position_in_grid]]) {{\n {target}\n}}"
        )
    };
    let run =
        |target: &str| compile(&text(target)).output::<i32>(128).launch(Grid::Groups([4, 1, 1]), [32, 1, 1]);
    run("y[i] = int(g);").unwrap();
    let (kind, message, place) = fault(run("y[i % 32] = int(g);"));
    assert_eq!(kind, Fault::Race);
    assert!(
        message.starts_with(
            "buffer 0 byte 0: thread 0 of threadgroup 1 writes, thread 0 of threadgroup 0 wrote"
        )
    );
    assert_eq!(place.as_deref(), Some("planted.metal:4"));
}

#[test]
fn a_race_of_bytes_is_seen_and_neighbouring_bytes_are_none() {
    let run = |index: &str| {
        let text = format!(
            "[[kernel]] void planted(device uchar* y, uint i [[thread_position_in_grid]]) {{ y[{index}] = 1; }}"
        );
        compile(&text).output::<u8>(64).launch(Grid::Threads([64, 1, 1]), [64, 1, 1])
    };
    run("i").unwrap();
    assert_eq!(fault(run("i / 2")).0, Fault::Race);
}

#[test]
fn equal_writes_are_races_unless_they_are_allowed() {
    let text =
        "[[kernel]] void planted(device int* y, uint i [[thread_position_in_grid]]) {\n y[i / 2] = VALUE;\n}";
    let run = |value: &str| compile(&text.replace("VALUE", value)).output::<i32>(32);
    let all = Grid::Threads([64, 1, 1]);
    assert_eq!(fault(run("i / 2").launch(all, [64, 1, 1])).0, Fault::Race);
    let equal = run("i / 2").equal_writes().launch_every_order(all, [64, 1, 1]).unwrap();
    assert_eq!(equal.read::<i32>(0), (0..32).collect::<Vec<_>>());
    let (kind, message, _) = fault(run("i < 63 ? i / 2 : 77").equal_writes().launch(all, [64, 1, 1]));
    assert_eq!(kind, Fault::Race);
    assert!(
        message.starts_with("buffer 0 byte 124: thread 63 of threadgroup 0 writes another value"),
        "{message}"
    );
}

#[test]
fn reading_then_writing_in_place_is_a_race_between_threads() {
    let text = "[[kernel]] void planted(device float* x, uint i [[thread_position_in_threadgroup]]) {\n\
                float v = x[(i + 1) % 64];\n BARRIER\n x[i] = v;\n}";
    let run = |barrier: &str| {
        let x: Vec<f32> = (0..64).map(|i| i as f32).collect();
        compile(&text.replace("BARRIER", barrier))
            .buffer(metal_host::Buffer::in_out(&x))
            .launch_every_order(ONE, [64, 1, 1])
    };
    let rotated = run("threadgroup_barrier(mem_flags::mem_device);").unwrap().read::<f32>(0);
    assert_eq!((rotated[0], rotated[63]), (1.0, 0.0));
    assert_eq!(fault(run("")).0, Fault::Race);
}

#[test]
fn atomics_are_no_races_among_themselves() {
    let run = |add: &str| {
        let text = format!(
            "[[kernel]] void planted(device atomic_uint* n, uint i [[thread_position_in_grid]]) {{\n {add}\n}}"
        );
        compile(&text)
            .buffer(metal_host::Buffer::in_out(&[0u32]))
            .launch_every_order(Grid::Groups([3, 1, 1]), [64, 1, 1])
    };
    let counted = run("atomic_fetch_add_explicit(n, i, memory_order_relaxed);").unwrap();
    assert_eq!(counted.read::<u32>(0), [192 * 191 / 2]);
    // A loop around a compare-and-exchange, which may fail for no reason.
    let counted = run("uint old = atomic_load_explicit(n, memory_order_relaxed);\n\
                       while (!atomic_compare_exchange_weak_explicit(n, &old, old + 1, memory_order_relaxed, memory_order_relaxed)) {}");
    assert_eq!(counted.unwrap().read::<u32>(0), [192]);
    assert_eq!(fault(run("*(device uint*)n += 1;")).0, Fault::Race);
    let mixed =
        "if (i == 0) *(device uint*)n = 1; else atomic_fetch_add_explicit(n, 1, memory_order_relaxed);";
    assert_eq!(fault(run(mixed)).0, Fault::Race);
}

#[test]
fn every_thread_reaches_the_same_barrier() {
    let run = |body: &str| {
        let text = format!(
            "[[kernel]] void planted(device int* y, uint i [[thread_position_in_threadgroup]]) {{\n{body}\ny[i] = 1;\n}}"
        );
        compile(&text).output::<i32>(64).launch_every_order(ONE, [64, 1, 1])
    };
    run(BARRIER).unwrap();
    run(&format!("for (int k = 0; k < 5; k++) {{ {BARRIER} }}")).unwrap();

    let (kind, message, _) = fault(run(&format!("if (i < 40) return;\n{BARRIER}")));
    assert_eq!(kind, Fault::Divergence);
    assert_eq!(
        message,
        "threadgroup 0: thread 40 waits at threadgroup_barrier in planted.metal:5, thread 0 has ended"
    );
    let (kind, message, _) = fault(run(&format!("if (i < 40) {{\n{BARRIER}\n}} else {{\n{BARRIER}\n}}")));
    assert_eq!(kind, Fault::Divergence);
    assert!(message.contains("planted.metal:5") && message.contains("planted.metal:7"), "{message}");
    let (kind, ..) = fault(run(&format!("for (uint k = 0; k < i; k++) {{ {BARRIER} }}")));
    assert_eq!(kind, Fault::Divergence);
}

#[test]
fn every_lane_reaches_the_same_simdgroup_operation() {
    let text = |body: &str| {
        compile(&format!(
            "[[kernel]] void planted(device int* y, uint i [[thread_position_in_threadgroup]]) {{\n\
             int s = 0;\n{body}\ny[i] = s;\n}}"
        ))
        .output::<i32>(64)
    };
    let uniform = text("if (i < 32) s = simd_sum(1);").launch_every_order(ONE, [64, 1, 1]).unwrap();
    assert_eq!(uniform.read::<i32>(0), [[32; 32], [0; 32]].concat());

    let divergent = text("if (i < 40) {\ns = simd_sum(1);\n} else {\ns = simd_sum(100);\n}");
    let (kind, message, _) = fault(divergent.launch(ONE, [64, 1, 1]));
    assert_eq!(kind, Fault::Divergence);
    assert!(message.contains("waits at simd_sum in planted.metal:6"), "{message}");
    let lanes = divergent.divergent_simd().launch_every_order(ONE, [64, 1, 1]).unwrap().read::<i32>(0);
    assert_eq!((lanes[31], lanes[39], lanes[40]), (32, 8, 2400));
    // Threads that have ended take no part, which is no fault.
    let ended = text("if (i >= 50) { y[i] = 0; return; }\ns = simd_sum(1);");
    let lanes = ended.launch_every_order(ONE, [64, 1, 1]).unwrap().read::<i32>(0);
    assert_eq!((lanes[0], lanes[49], lanes[50]), (32, 18, 0));
}

#[test]
fn memory_is_written_before_it_is_read() {
    let run = |first: &str| {
        let text = format!(
            "[[kernel]] void planted(device float* y, uint i [[thread_position_in_grid]]) {{\n{first}\ny[i] += 1;\n}}"
        );
        compile(&text).output::<f32>(4).launch(Grid::Threads([4, 1, 1]), [4, 1, 1])
    };
    assert_eq!(run("y[i] = 0;").unwrap().read::<f32>(0), [1.0; 4]);
    let (kind, message, _) = fault(run(""));
    assert_eq!(kind, Fault::Uninitialized);
    assert_eq!(message, "a read of byte 0 of buffer 0, which nothing has written");
}

#[test]
fn constant_memory_is_not_written_and_missing_buffers_are_not_read() {
    let text = "constant bool given [[function_constant(0)]];\n\
        [[kernel]] void planted(const device float* x [[buffer(0)]], device float* y [[buffer(1)]], \
        const device float* extra [[buffer(2), function_constant(given)]]) { y[0] = x[0] + (given ? extra[0] : 0.0f); }";
    let kernel = compile(text).input(&[1.0f32]).output::<f32>(1);
    assert_eq!(kernel.launch(ONE, [1, 1, 1]).unwrap().read::<f32>(0), [1.0]);
    let with = kernel.clone().constant(0, 1u8).input(&[2.0f32]).launch(ONE, [1, 1, 1]).unwrap();
    assert_eq!(with.read::<f32>(0), [3.0]);
    assert_eq!(fault(kernel.constant(0, 1u8).launch(ONE, [1, 1, 1])).0, Fault::Wild);

    let text = "[[kernel]] void planted(const device float* x, device float* y) { ((device float*)x)[0] = y[0] = 1; }";
    let (kind, message, _) = fault(compile(text).input(&[1.0f32]).output::<f32>(1).launch(ONE, [1, 1, 1]));
    assert_eq!(kind, Fault::Other);
    assert_eq!(message, "a write to buffer 0, which the kernel takes as const");
}

#[test]
fn metals_limits_hold() {
    let text = |n: u32| {
        compile(&format!(
            "[[kernel]] void planted(device float* y, uint i [[thread_index_in_threadgroup]]) {{\n\
             threadgroup float a[{n}];\n a[i] = 1; y[i] = a[i];\n}}"
        ))
        .output::<f32>(2048)
    };
    text(8192).launch(ONE, [1024, 1, 1]).unwrap();
    assert_eq!(fault(text(8193).launch(ONE, [32, 1, 1])).0, Fault::Limit);
    assert_eq!(fault(text(2048).launch(ONE, [1025, 1, 1])).0, Fault::Limit);
}

#[test]
fn results_that_depend_on_the_order_of_threads_show() {
    let run = |index: &str| {
        let text = format!(
            "[[kernel]] void planted(device atomic_uint* n, device uint* y, uint i [[thread_position_in_grid]]) {{\n\
             uint at = atomic_fetch_add_explicit(n, 1, memory_order_relaxed);\n y[{index}] = i;\n}}"
        );
        let kernel = compile(&text).buffer(metal_host::Buffer::in_out(&[0u32])).output::<u32>(64);
        kernel.launch_every_order(Grid::Threads([64, 1, 1]), [64, 1, 1])
    };
    run("i").unwrap();
    assert!(matches!(run("at"), Err(Error::OrderDependent { output: 1, .. })));
}

#[test]
fn a_shader_that_is_wrong_says_where() {
    let shader = |text: &str| {
        let head = "#include <metal_stdlib>\nusing namespace metal;\n";
        Shader::from_source("planted.metal", format!("{head}[[kernel]] void planted({text}"))
    };
    // As in Metal, a float does not turn into a bfloat by itself.
    let good = "device bfloat* y, constant float& x) {\n y[0] = bfloat(x); }";
    shader(good).kernel("planted", &[]).unwrap();
    let error = shader(&good.replace("bfloat(x)", "x")).kernel("planted", &[]).unwrap_err();
    assert!(matches!(&error, Error::Compile { log, .. } if log.contains("planted.metal:4")), "{error}");
    assert!(matches!(shader(good).kernel("other", &[]), Err(Error::Source { .. })));
    assert!(matches!(
        shader("uint i [[front_facing]]) {}").kernel("planted", &[]),
        Err(Error::Argument { .. })
    ));
    let kernel = shader(good).kernel("planted", &[]).unwrap();
    assert!(matches!(
        kernel.buffer_at(7, metal_host::Buffer::input(&[1])).launch(ONE, [1, 1, 1]),
        Err(Error::Argument { .. })
    ));
}
