//! Any bytes as a GGUF file: `scripts/fuzz gguf`.

#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use mlxport::Array;
use mlxport::checkpoint::Gguf;
use mlxport::models;
use mlxport::text::Tokenizer;
use mlxport_fuzz::{keep_going_where_panics_are_caught, use_tokenizer};

fuzz_target!(init: keep_going_where_panics_are_caught(), |data: &[u8]| {
    let mut file = tempfile::Builder::new().suffix(".gguf").tempfile().expect("a temporary file");
    file.write_all(data).expect("room for it");
    let Ok(gguf) = Gguf::open(file.path()) else { return };
    for key in gguf.keys() {
        let _ = (gguf.info(key), gguf.packed(key), gguf.array(key).and_then(|array| array.eval()));
    }
    if let Ok(model) = models::load(file.path()) {
        let tokens = Array::from_slice(&[1, 2, 3], &[1, 3]).expect("three tokens");
        if models::check_tokens(&*model, &[1, 2, 3]).is_ok() {
            let _ = model.forward(&tokens, &mut model.make_cache()).and_then(|logits| logits.eval());
        }
    }
    if let Ok(tokenizer) = Tokenizer::load(file.path()) {
        use_tokenizer(&tokenizer);
    }
});
