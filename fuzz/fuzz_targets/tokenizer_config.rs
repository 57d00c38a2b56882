//! Any text as the `tokenizer_config.json` of each kind of tokenizer: `scripts/fuzz tokenizer_config`.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use mlxport::text::Tokenizer;
use mlxport_fuzz::{keep_going_where_panics_are_caught, use_tokenizer};

const FILES: [&str; 4] = [
    "bytelevel/tokenizer.json",
    "sentencepiece_bpe/tokenizer.model",
    "sentencepiece_unigram/tokenizer.model",
    "tiktoken/tiny.tiktoken",
];

fuzz_target!(init: keep_going_where_panics_are_caught(), |text: &str| {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/text");
    for file in FILES {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = fixtures.join(file);
        std::fs::copy(&path, dir.path().join(path.file_name().expect("a name"))).expect("room for it");
        std::fs::write(dir.path().join("tokenizer_config.json"), text).expect("room for it");
        if let Ok(tokenizer) = Tokenizer::load(dir.path()) {
            use_tokenizer(&tokenizer);
        }
    }
});
