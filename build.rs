//! Builds MLX from pinned sources and links it. Each step is a module in `build/`.

#[path = "build/bindings.rs"]
mod bindings;
#[path = "build/cache.rs"]
mod cache;
#[path = "build/metal.rs"]
mod metal;
#[path = "build/mlx.rs"]
mod mlx;
#[path = "build/native.rs"]
mod native;
#[path = "build/plan.rs"]
mod plan;
#[path = "build/prerequisites.rs"]
mod prerequisites;
#[path = "build/sources.rs"]
mod sources;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    match steps() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("\n{message}\n");
            ExitCode::FAILURE
        }
    }
}

fn steps() -> Result<(), String> {
    let root = PathBuf::from(var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(var("OUT_DIR")?);
    let target = plan::Target {
        os: var("CARGO_CFG_TARGET_OS")?,
        arch: var("CARGO_CFG_TARGET_ARCH")?,
        cross: var("HOST")? != var("TARGET")?,
    };
    let features = plan::Features {
        portable: env::var_os("CARGO_FEATURE_PORTABLE").is_some(),
        cuda: env::var_os("CARGO_FEATURE_CUDA").is_some(),
    };
    rerun_when_changed(&root, &target);

    target.check(features)?;
    prerequisites::check(&target, features)?;
    let sources = find_sources(&root.join("vendor"))?;
    let prefix = build_mlx(&root, &sources, &target, features)?;
    bindings::generate(&sources.mlxc.path, &root.join("native"), &out.join("bindings.rs"))?;
    println!("cargo:rustc-env=MLXPORT_BINDINGS={}", out.join("bindings.rs").display());
    native::build(&root.join("native"), &sources.mlx.path, &sources.mlxc.path, &target, features);
    if target.is_macos() {
        for shader in metal::shaders(&root.join("metal"))? {
            let mut xcrun = Command::new("xcrun");
            xcrun.args(metal::arguments(&shader, &out));
            mlx::run(xcrun, &format!("compiling {}", shader.display()))?;
        }
    }
    link(&prefix, &target, features);
    Ok(())
}

fn find_sources(vendor: &Path) -> Result<mlx::Sources, String> {
    let pins = sources::read_pins(vendor)?;
    let find = |name: &str, over: Option<&str>| {
        let pin = pins.get(name).ok_or_else(|| format!("vendor/pins.json has no entry {name}"))?;
        let over = over.and_then(env::var_os).map(PathBuf::from);
        sources::locate(vendor, name, pin, over)
    };
    Ok(mlx::Sources {
        mlx: find("mlx", Some("MLXPORT_MLX_SOURCE"))?,
        mlxc: find("mlx-c", Some("MLXPORT_MLXC_SOURCE"))?,
        fmt: find("fmt", None)?,
        json: find("json", None)?,
        metal_cpp: find("metal-cpp", None)?,
    })
}

fn build_mlx(
    root: &Path,
    sources: &mlx::Sources,
    target: &plan::Target,
    features: plan::Features,
) -> Result<PathBuf, String> {
    let native = root.join("native");
    let read = |name: &str| {
        let path = native.join(name);
        std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))
    };
    let definitions = format!("{:?}", plan::cmake_definitions(target, features));
    let compiler = prerequisites::compiler_identity(plan::cxx_flags(target, features));
    let key = cache::key(&[
        ("mlx", &sources.mlx.sha256),
        ("mlx-c", &sources.mlxc.sha256),
        ("fmt", &sources.fmt.sha256),
        ("json", &sources.json.sha256),
        ("metal-cpp", &sources.metal_cpp.sha256),
        ("target", &format!("{}-{}", target.os, target.arch)),
        ("definitions", &definitions),
        ("compiler", &compiler),
        ("cmake", &read("mlxc.cmake")?),
        ("compat", &read("mlxc_compat.h")?),
    ]);
    let cache = cache::folder(|name| env::var(name).ok(), target.is_macos())?;
    let jobs = env::var("NUM_JOBS").unwrap_or_else(|_| "2".into());
    cache::get_or_build(&cache, &key, |staging| {
        mlx::build(staging, sources, &native, target, features, &jobs)
    })
}

fn link(prefix: &Path, target: &plan::Target, features: plan::Features) {
    println!("cargo:rustc-link-search=native={}", prefix.join("lib").display());
    for lib in plan::link_libraries(target, features) {
        match lib {
            plan::Link::Static(name) => println!("cargo:rustc-link-lib=static={name}"),
            plan::Link::Dynamic(name) => println!("cargo:rustc-link-lib=dylib={name}"),
            plan::Link::Framework(name) => println!("cargo:rustc-link-lib=framework={name}"),
        }
    }
    if target.is_macos() {
        // MLX builds this one on newer SDKs only.
        if prefix.join("lib/libjaccl.a").is_file() {
            println!("cargo:rustc-link-lib=static=jaccl");
        }
        if let Some(folder) = prerequisites::clang_runtime_folder() {
            println!("cargo:rustc-link-search=native={folder}");
        }
    }
    let metallib = prefix.join("lib/mlx.metallib");
    if metallib.is_file() {
        println!("cargo:rustc-env=MLXPORT_METALLIB={}", metallib.display());
    }
}

fn rerun_when_changed(root: &Path, target: &plan::Target) {
    for path in ["build.rs", "build", "vendor", "native"] {
        println!("cargo:rerun-if-changed={}", root.join(path).display());
    }
    if target.is_macos() {
        println!("cargo:rerun-if-changed={}", root.join("metal").display());
    }
    for name in [
        "MLXPORT_MLX_SOURCE",
        "MLXPORT_MLXC_SOURCE",
        "MLXPORT_CACHE_DIR",
        "XDG_CACHE_HOME",
        "CXX",
        "LIBCLANG_PATH",
    ] {
        println!("cargo:rerun-if-env-changed={name}");
    }
}

fn var(name: &str) -> Result<String, String> {
    env::var(name).map_err(|e| format!("{name}: {e}"))
}
