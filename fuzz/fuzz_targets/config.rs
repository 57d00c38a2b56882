//! Any text as a `config.json`: `cargo +nightly fuzz run config`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mlxport::checkpoint::Config;
use mlxport::models::lm::{llama, qwen3};

fuzz_target!(|text: &str| {
    let Ok(config) = Config::parse("config.json", text) else { return };
    let _ = (config.model_type(), config.dtype(), config.quantization());
    if let Ok(args) = config.args::<llama::Args>() {
        let _ = args.check();
    }
    if let Ok(args) = config.args::<qwen3::Args>() {
        let _ = args.check();
    }
});
