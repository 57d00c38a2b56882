//! Any text as the `config.json` of a small checkpoint of its `model_type`: `scripts/fuzz config`.

#![no_main]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mlxport::Array;
use mlxport::checkpoint::Config;
use mlxport::models::{self, LanguageModel};
use serde::Deserialize;

#[path = "../../tests/models/recipe.rs"]
mod recipe;

#[derive(Deserialize)]
struct Fixture {
    config: String,
    seed: u64,
    tensors: Vec<String>,
}

/// The checkpoints of `tests/fixtures/zoo`, left in the temporary folder, by what implements them. Their configs are
/// what the search begins with.
static CHECKPOINTS: LazyLock<BTreeMap<&'static str, Vec<PathBuf>>> = LazyLock::new(|| {
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/zoo");
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/config");
    std::fs::create_dir_all(&corpus).expect("room for it");
    let folder = std::env::temp_dir().join(format!("mlxport-fuzz-{}", std::process::id()));
    let mut checkpoints: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for entry in std::fs::read_dir(zoo).expect("the fixtures") {
        let file = entry.expect("a fixture").path();
        let fixture = std::fs::read(&file).expect("a fixture");
        let fixture: Fixture = serde_json::from_slice(&fixture).expect("a fixture");
        let dir = folder.join(file.file_stem().expect("its name"));
        std::fs::write(corpus.join(file.file_name().expect("its name")), &fixture.config).expect("room for it");
        std::fs::create_dir_all(&dir).expect("room for it");
        recipe::write(&dir, &fixture.config, &fixture.tensors, fixture.seed);
        let config = Config::parse("config.json", &fixture.config).expect("its config");
        let module = models::module_of(config.model_type().expect("its type")).expect("an architecture");
        checkpoints.entry(module).or_default().push(dir);
    }
    checkpoints
});

fuzz_target!(init: { LazyLock::force(&CHECKPOINTS); }, |text: &str| {
    let Ok(config) = Config::parse("config.json", text) else { return };
    let _ = (config.dtype(), config.quantization(), config.foreign_quantization());
    let Ok((module, _)) = models::architecture(&config) else { return };
    for dir in CHECKPOINTS.get(module).into_iter().flatten() {
        let Ok((model, _)) = models::load_weights(&config, dir) else { continue };
        let _ = run(&*model);
    }
});

/// A prompt and a token after it.
fn run(model: &dyn LanguageModel) -> mlxport::Result<()> {
    let mut cache = model.make_cache();
    for tokens in [&[1, 2, 3][..], &[4]] {
        models::check_tokens(model, tokens)?;
        let tokens = Array::from_slice(tokens, &[1, tokens.len() as i32])?;
        model.forward(&tokens, &mut cache)?.eval()?;
    }
    Ok(())
}
