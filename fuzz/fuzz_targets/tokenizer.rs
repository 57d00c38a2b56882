//! Any bytes as a tokenizer's file, which loading takes for a `tokenizer.json`, a SentencePiece model or a
//! tiktoken file by how it begins: `scripts/fuzz tokenizer`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mlxport::text::Tokenizer;
use mlxport_fuzz::{keep_going_where_panics_are_caught, use_tokenizer};

fuzz_target!(init: keep_going_where_panics_are_caught(), |data: &[u8]| {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let name = if data.starts_with(b"{") { "tokenizer.json" } else { "tokenizer.model" };
    std::fs::write(dir.path().join(name), data).expect("room for it");
    if let Ok(tokenizer) = Tokenizer::load(dir.path()) {
        use_tokenizer(&tokenizer);
    }
});
