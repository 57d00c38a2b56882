//! Rust declarations of mlx-c's headers.

use std::path::Path;

pub fn generate(mlxc: &Path, native: &Path, out: &Path) -> Result<(), String> {
    bindgen::Builder::default()
        .header(mlxc.join("mlx/c/mlx.h").display().to_string())
        .header(native.join("native.h").display().to_string())
        .clang_arg(format!("-I{}", mlxc.display()))
        .allowlist_function("_?mlx_.*|mlxport_.*")
        .allowlist_type("mlx_.*")
        .blocklist_function("_mlx_error") // variadic; for C++ only
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .layout_tests(false)
        .derive_debug(true)
        .generate_comments(false)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .generate()
        .map_err(|e| format!("reading mlx-c's headers: {e}"))?
        .write_to_file(out)
        .map_err(|e| format!("{}: {e}", out.display()))
}
