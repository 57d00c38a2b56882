//! Any bytes as a GGUF file: `cargo +nightly fuzz run gguf`.

#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use mlxport::checkpoint::Gguf;
use mlxport::models;
use mlxport::text::Tokenizer;

fuzz_target!(|data: &[u8]| {
    let mut file = tempfile::Builder::new().suffix(".gguf").tempfile().expect("a temporary file");
    file.write_all(data).expect("room for it");
    let Ok(gguf) = Gguf::open(file.path()) else { return };
    for key in gguf.keys() {
        let _ = (gguf.info(key), gguf.packed(key), gguf.array(key).and_then(|array| array.eval()));
    }
    let _ = models::load(file.path());
    if let Ok(tokenizer) = Tokenizer::load(file.path()) {
        let _ = tokenizer.encode("a text, \u{65e5}\u{672c}", true).and_then(|ids| tokenizer.decode(&ids, false));
    }
});
