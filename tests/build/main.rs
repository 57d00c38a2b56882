//! The decisions of the native build, for every target, and the cache that must never be half-filled.

#[path = "../../build/cache.rs"]
mod cache;
#[path = "../../build/metal.rs"]
mod metal;
#[path = "../../build/plan.rs"]
mod plan;
#[path = "../../build/sources.rs"]
#[allow(dead_code)] // the build script uses the rest
mod sources;

use std::fs;
use std::path::Path;

use plan::{Features, Link, Need, Target};

fn target(os: &str, arch: &str) -> Target {
    Target { os: os.into(), arch: arch.into(), cross: false }
}

fn definition(target: &Target, features: Features, key: &str) -> Option<String> {
    let defs = plan::cmake_definitions(target, features);
    defs.into_iter().find(|(k, _)| k == key).map(|(_, v)| v)
}

const PLAIN: Features = Features { portable: false, cuda: false };
const PORTABLE: Features = Features { portable: true, cuda: false };
const CUDA: Features = Features { portable: false, cuda: true };

#[test]
fn linux_builds_the_cpu_backend_with_openblas() {
    for arch in ["x86_64", "aarch64"] {
        let linux = target("linux", arch);
        assert_eq!(linux.check(PLAIN), Ok(()));
        assert_eq!(definition(&linux, PLAIN, "MLX_BUILD_METAL").as_deref(), Some("OFF"));
        assert_eq!(definition(&linux, PLAIN, "MLX_BUILD_CUDA").as_deref(), Some("OFF"));
        assert_eq!(definition(&linux, PLAIN, "BLA_VENDOR").as_deref(), Some("OpenBLAS"));
        let libs = plan::link_libraries(&linux, PLAIN);
        assert_eq!(libs[..3], [Link::Static("mlxc"), Link::Static("mlx"), Link::Dynamic("openblas")]);
        assert!(libs.contains(&Link::Dynamic("stdc++")));
        assert!(!libs.iter().any(|l| matches!(l, Link::Framework(_))));
    }
}

#[test]
fn macos_builds_metal_with_accelerate() {
    let mac = target("macos", "aarch64");
    assert_eq!(mac.check(PLAIN), Ok(()));
    assert_eq!(definition(&mac, PLAIN, "MLX_BUILD_METAL").as_deref(), Some("ON"));
    assert_eq!(definition(&mac, PLAIN, "BLA_VENDOR"), None);
    assert_eq!(definition(&mac, PLAIN, "CMAKE_CXX_FLAGS"), None);
    let libs = plan::link_libraries(&mac, PLAIN);
    assert!(libs.contains(&Link::Framework("Metal")) && libs.contains(&Link::Framework("Accelerate")));
    assert!(!libs.contains(&Link::Dynamic("openblas")));
    assert!(libs.contains(&Link::Static("clang_rt.osx")));
}

#[test]
fn clang_tells_where_its_run_time_is() {
    let printed = "programs: =/x/bin\nlibraries: =/x/lib/clang/17:/x/usr/lib\n";
    assert_eq!(plan::clang_runtime(printed).as_deref(), Some("/x/lib/clang/17/lib/darwin"));
    assert_eq!(plan::clang_runtime("libraries: =\n"), None);
    assert_eq!(plan::clang_runtime("error"), None);
}

#[test]
fn native_instructions_unless_the_result_must_run_elsewhere() {
    let linux = target("linux", "x86_64");
    assert_eq!(definition(&linux, PLAIN, "CMAKE_CXX_FLAGS").as_deref(), Some("-march=native"));
    assert_eq!(definition(&linux, PORTABLE, "CMAKE_CXX_FLAGS"), None);
    let cross = Target { cross: true, ..linux };
    assert_eq!(definition(&cross, PLAIN, "CMAKE_CXX_FLAGS"), None);
}

#[test]
fn cuda_is_a_linux_feature() {
    let linux = target("linux", "x86_64");
    assert_eq!(definition(&linux, CUDA, "MLX_BUILD_CUDA").as_deref(), Some("ON"));
    assert!(plan::link_libraries(&linux, CUDA).contains(&Link::Dynamic("cublasLt")));
    assert!(Need::all(&linux, CUDA).contains(&Need::CudaToolkit));
    assert!(target("macos", "aarch64").check(CUDA).unwrap_err().contains("Metal"));
}

#[test]
fn other_targets_are_refused_by_name() {
    for (os, arch) in [("windows", "x86_64"), ("macos", "x86_64"), ("linux", "riscv64")] {
        let message = target(os, arch).check(PLAIN).unwrap_err();
        assert!(message.contains(&format!("{os}-{arch}")), "{message}");
    }
}

#[test]
fn a_missing_prerequisite_names_its_package_and_command() {
    let (linux, mac) = (target("linux", "x86_64"), target("macos", "aarch64"));
    let cases = [
        (Need::Cmake, &linux, "apt-get install -y cmake"),
        (Need::Cmake, &mac, "brew install cmake"),
        (Need::Cxx, &linux, "apt-get install -y g++"),
        (Need::Cxx, &mac, "xcode-select --install"),
        (Need::Libclang, &linux, "libclang-dev"),
        (Need::Libclang, &mac, "brew install llvm"),
        (Need::Blas, &linux, "libopenblas-dev liblapacke-dev"),
        (Need::MetalToolchain, &mac, "xcodebuild -downloadComponent MetalToolchain"),
    ];
    for (need, on, expected) in cases {
        let message = need.message(on);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn cache_folder_follows_the_environment() {
    let env = |set: &'static [(&str, &str)]| {
        move |name: &str| set.iter().find(|(k, _)| *k == name).map(|(_, v)| v.to_string())
    };
    let folder = |set, macos| cache::folder(env(set), macos).map(|p| p.display().to_string());
    assert_eq!(folder(&[("MLXPORT_CACHE_DIR", "/a"), ("HOME", "/h")], false), Ok("/a".into()));
    assert_eq!(folder(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")], false), Ok("/x/mlxport".into()));
    assert_eq!(folder(&[("XDG_CACHE_HOME", ""), ("HOME", "/h")], false), Ok("/h/.cache/mlxport".into()));
    assert_eq!(folder(&[("HOME", "/h")], true), Ok("/h/Library/Caches/mlxport".into()));
    assert!(folder(&[], false).unwrap_err().contains("MLXPORT_CACHE_DIR"));
}

#[test]
fn cache_keys_tell_parts_apart() {
    let key = |parts: &[(&str, &str)]| cache::key(parts);
    assert_eq!(key(&[("a", "1")]), key(&[("a", "1")]));
    assert_ne!(key(&[("a", "1")]), key(&[("a", "2")]));
    assert_ne!(key(&[("a", "1b 1\nx")]), key(&[("a", "1"), ("b", "x")]));
}

#[test]
fn a_failed_or_interrupted_build_leaves_nothing_that_passes_for_whole() {
    let dir = tempfile::tempdir().unwrap();
    let failed = cache::get_or_build(dir.path(), "k", |staging| {
        fs::write(staging.join("half"), "").unwrap();
        Err("no compiler".into())
    });
    assert_eq!(failed, Err("no compiler".into()));
    assert!(!dir.path().join("k").exists() && !dir.path().join("k.partial").exists());

    // A killed build leaves its staging folder; the next one starts from an empty one.
    fs::create_dir(dir.path().join("k.partial")).unwrap();
    fs::write(dir.path().join("k.partial/half"), "").unwrap();
    let done = cache::get_or_build(dir.path(), "k", |staging| {
        assert!(!staging.join("half").exists());
        fs::write(staging.join("whole"), "").map_err(|e| e.to_string())
    })
    .unwrap();
    assert!(done.join("whole").exists());
    let again = cache::get_or_build(dir.path(), "k", |_| Err("built twice".into()));
    assert_eq!(again, Ok(done));
}

#[test]
fn a_changed_source_stops_the_build_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("b.h"), "one").unwrap();
    fs::write(dir.path().join("sub/a.h"), "two").unwrap();
    let digest = sources::digest(dir.path()).unwrap();
    let pin = sources::Pin {
        version: "1.2.3".into(),
        manifest: String::new(),
        package: "p".into(),
        path: String::new(),
        sha256: digest.clone(),
    };
    assert_eq!(sources::verify("mlx", &pin, dir.path(), &digest), Ok(()));
    for change in [("sub/a.h", "twp"), ("new.h", "")] {
        fs::write(dir.path().join(change.0), change.1).unwrap();
        let found = sources::digest(dir.path()).unwrap();
        let message = sources::verify("mlx", &pin, dir.path(), &found).unwrap_err();
        assert!(message.contains("sources of mlx 1.2.3 were changed"), "{message}");
        fs::write(dir.path().join("sub/a.h"), "two").unwrap();
    }
}

#[test]
fn the_pins_are_whole() {
    let vendor = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("vendor");
    let pins = sources::read_pins(&vendor).unwrap();
    assert_eq!(pins.keys().collect::<Vec<_>>(), ["fmt", "json", "metal-cpp", "mlx", "mlx-c"]);
    for (name, pin) in pins {
        assert_eq!(pin.sha256.len(), 64, "{name}");
        let lock = fs::read_to_string(vendor.join(&pin.manifest).join("Cargo.lock")).unwrap();
        assert!(lock.contains(&format!("name = \"{}\"", pin.package)), "{name}");
    }
}

#[test]
fn shaders_are_compiled_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["b.metal", "a.metal", "README.md"] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    fs::create_dir(folder.path().join("host")).unwrap();
    let shaders = metal::shaders(folder.path()).unwrap();
    assert_eq!(shaders, ["a.metal", "b.metal"].map(|name| folder.path().join(name)));
    assert!(metal::shaders(&folder.path().join("none")).unwrap_err().contains("none"));

    let arguments = metal::arguments(Path::new("metal/swiglu.metal"), Path::new("out"));
    assert_eq!(arguments[arguments.len() - 3..], ["metal/swiglu.metal", "-o", "out/swiglu.air"]);
    assert!(arguments.contains(&"-std=metal3.1".into()) && arguments.contains(&"-fno-fast-math".into()));
}
