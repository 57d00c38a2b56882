//! What to build and link for a target: decisions only, no side effects.

/// A cargo target, reduced to what decides the native build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub os: String,
    pub arch: String,
    /// Built for another machine than the one that builds.
    pub cross: bool,
}

/// Cargo features that change the native build.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// Only instructions that every CPU of the target has.
    pub portable: bool,
    /// MLX's CUDA backend (Linux).
    pub cuda: bool,
}

/// A library for the linker, in link order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Static(&'static str),
    Dynamic(&'static str),
    Framework(&'static str),
}

impl Target {
    pub fn is_macos(&self) -> bool {
        self.os == "macos"
    }

    /// Targets that MLX's own build supports.
    pub fn check(&self, features: Features) -> Result<(), String> {
        match (self.os.as_str(), self.arch.as_str()) {
            ("linux", "x86_64" | "aarch64") => Ok(()),
            ("macos", "aarch64") if features.cuda => {
                Err("feature `cuda` needs Linux; drop it on macOS, where Metal is used".into())
            }
            ("macos", "aarch64") => Ok(()),
            (os, arch) => Err(format!(
                "MLX is not built for {os}-{arch}; supported: linux-x86_64, linux-aarch64, macos-aarch64"
            )),
        }
    }
}

/// Extra C++ flags: this machine's instructions, unless the result must run elsewhere.
pub fn cxx_flags(target: &Target, features: Features) -> Option<&'static str> {
    (target.os == "linux" && !features.portable && !target.cross).then_some("-march=native")
}

/// Definitions for MLX's CMake, without the paths of sources.
pub fn cmake_definitions(target: &Target, features: Features) -> Vec<(String, String)> {
    let on = |yes: bool| if yes { "ON" } else { "OFF" };
    let mut defs = vec![
        ("CMAKE_BUILD_TYPE", "Release"),
        ("BUILD_SHARED_LIBS", "OFF"),
        ("MLX_BUILD_METAL", on(target.is_macos())),
        ("MLX_BUILD_CUDA", on(features.cuda)),
        ("MLX_BUILD_CPU", "ON"),
        ("MLX_BUILD_GGUF", "OFF"),
        ("MLX_BUILD_SAFETENSORS", "ON"),
        ("MLX_BUILD_TESTS", "OFF"),
        ("MLX_BUILD_EXAMPLES", "OFF"),
        ("MLX_BUILD_BENCHMARKS", "OFF"),
        ("MLX_BUILD_PYTHON_BINDINGS", "OFF"),
        ("MLX_C_BUILD_EXAMPLES", "OFF"),
    ];
    if !target.is_macos() {
        // Never the reference BLAS, which is 30 times slower.
        defs.push(("BLA_VENDOR", "OpenBLAS"));
    }
    if let Some(flags) = cxx_flags(target, features) {
        defs.push(("CMAKE_CXX_FLAGS", flags));
    }
    defs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// What the final program links besides our own native code, in order.
pub fn link_libraries(target: &Target, features: Features) -> Vec<Link> {
    use Link::*;
    let mut libs = vec![Static("mlxc"), Static("mlx")];
    if target.is_macos() {
        libs.extend(["Metal", "Foundation", "QuartzCore", "Accelerate"].map(Framework));
        // Rust links without clang's run time, where MLX's checks for the macOS version live.
        libs.extend([Dynamic("c++"), Static("clang_rt.osx")]);
        return libs;
    }
    libs.push(Dynamic("openblas"));
    if features.cuda {
        libs.extend(["cudart", "cublasLt", "cufft", "cudnn", "nvrtc", "cuda"].map(Dynamic));
    }
    libs.extend(["stdc++", "dl", "pthread", "m"].map(Dynamic));
    libs
}

/// The folder of clang's run-time libraries, from what `clang --print-search-dirs` prints.
pub fn clang_runtime(search_dirs: &str) -> Option<String> {
    let line = search_dirs.lines().find_map(|l| l.strip_prefix("libraries: ="))?;
    let first = line.split(':').next().filter(|dir| !dir.is_empty())?;
    Some(format!("{first}/lib/darwin"))
}

/// How a missing prerequisite is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Cmake,
    Cxx,
    Libclang,
    Blas,
    MetalToolchain,
    CudaToolkit,
}

impl Need {
    pub fn all(target: &Target, features: Features) -> Vec<Need> {
        let mut needs = vec![Need::Cmake, Need::Cxx, Need::Libclang];
        if target.is_macos() {
            needs.push(Need::MetalToolchain);
        } else {
            needs.push(Need::Blas);
        }
        if features.cuda {
            needs.push(Need::CudaToolkit);
        }
        needs
    }

    pub fn message(self, target: &Target) -> String {
        let (what, apt, brew) = match self {
            Need::Cmake => ("CMake 3.25 or newer", "cmake ninja-build", "cmake ninja"),
            Need::Cxx => ("a C++20 compiler", "g++", ""),
            Need::Libclang => ("libclang, which reads MLX's headers", "libclang-dev", "llvm"),
            Need::Blas => ("OpenBLAS with LAPACK headers", "libopenblas-dev liblapacke-dev", "openblas"),
            Need::MetalToolchain => ("the Metal compiler", "", ""),
            Need::CudaToolkit => ("the CUDA toolkit and cuDNN", "nvidia-cuda-toolkit nvidia-cudnn", ""),
        };
        let how = match (self, target.is_macos()) {
            (Need::Cxx, true) => "xcode-select --install".into(),
            (Need::MetalToolchain, _) => "xcodebuild -downloadComponent MetalToolchain".into(),
            (_, true) => format!("brew install {brew}"),
            (_, false) => format!("sudo apt-get install -y {apt}"),
        };
        format!("mlxport needs {what}, which was not found. Install it with:\n    {how}")
    }
}
