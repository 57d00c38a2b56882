//! What fuzz targets share.

use mlxport::text::{Chat, Tokenizer};

/// Panics within `tokenizers` are caught and become errors; libFuzzer's hook would end the process before. Those
/// that nobody catches end it all the same.
pub fn keep_going_where_panics_are_caught() {
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
}

/// All that one does with a tokenizer.
pub fn use_tokenizer(tokenizer: &Tokenizer) {
    for text in ["a text, \u{65e5}\u{672c} \u{1f980}\n\n  x <s> 12345 </s>", "", " "] {
        let Ok(ids) = tokenizer.encode_prompt(text) else { continue };
        let _ = (tokenizer.decode(&ids, true), tokenizer.decode(&ids, false));
        let mut stream = tokenizer.detokenizer().with_special_tokens();
        let streamed: mlxport::Result<Vec<String>> = ids.iter().map(|id| stream.push(*id)).collect();
        let _ = streamed.and_then(|_| stream.finish());
        let _ = tokenizer.encode_ordinary(text);
    }
    let _ = tokenizer.decode(&[0, 1, 5, 300, i32::MAX, -1], false);
    let _ = (tokenizer.token_bytes(), tokenizer.special_ids(), tokenizer.eos_id(), tokenizer.response_format());
    let _ = tokenizer.apply_chat_template(&Chat::user("a"));
}
