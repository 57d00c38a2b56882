//! Compiles our own C++ files in `native/`.

use std::path::Path;

use crate::plan::{Features, Target, cxx_flags};

pub fn build(native: &Path, mlx: &Path, mlxc: &Path, target: &Target, features: Features) {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").include(mlx).include(mlxc).warnings(false);
    for file in ["native.cpp", "primitive.cpp"] {
        build.file(native.join(file));
    }
    if target.is_macos() {
        build.define("MLXPORT_METAL", None);
    }
    if features.cuda {
        build.define("MLXPORT_CUDA", None);
    }
    if let Some(flags) = cxx_flags(target, features) {
        build.flag(flags);
    }
    build.compile("mlxport_native");
}
