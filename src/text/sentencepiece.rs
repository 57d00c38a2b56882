//! SentencePiece models, as tokenizers of the `tokenizers` crate.
//!
//! Pieces and normalisation as in the `sentencepiece_model.proto` of Kudo and Richardson (2018).

use std::path::Path;

use prost::Message;
use serde_json::{Map, Value, json};

use super::vocabulary::{added_tokens, merges, template};
use crate::error::{Error, Result};

const SPACE: &str = "▁";

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(enumeration = "Kind", optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    treat_whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "41", default = "1")]
    bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42", default = "2")]
    eos_id: Option<i32>,
    #[prost(int32, optional, tag = "43", default = "-1")]
    pad_id: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3", default = "true")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4", default = "true")]
    remove_extra_whitespaces: Option<bool>,
}

/// The classes of transformers whose ids are not the pieces' places in the file.
const OTHER_IDS: [&str; 10] = [
    "BarthezTokenizer",
    "CamembertTokenizer",
    "DebertaV2Tokenizer",
    "MBart50Tokenizer",
    "MBartTokenizer",
    "NllbTokenizer",
    "PegasusTokenizer",
    "PLBartTokenizer",
    "XGLMTokenizer",
    "XLMRobertaTokenizer",
];

/// The `tokenizer.json` of a model, and the special tokens that it names.
pub(super) fn convert(path: &Path, bytes: &[u8], config: &Value) -> Result<(Value, Map<String, Value>)> {
    let model =
        Model::decode(bytes).map_err(|e| Error::invalid(path, format!("no SentencePiece model: {e}")))?;
    let trainer = model.trainer.clone().unwrap_or_default();
    let normalizer = model.normalizer.clone().unwrap_or_default();
    let class = config["tokenizer_class"].as_str().unwrap_or_default().trim_end_matches("Fast");
    if OTHER_IDS.contains(&class) || trainer.treat_whitespace_as_suffix() {
        let what = format!("{} of a {class}", path.display());
        return Err(Error::unsupported(what, "save it as tokenizer.json with transformers"));
    }
    let pieces: Vec<(&str, f32, Kind)> =
        model.pieces.iter().map(|p| (p.piece(), p.score(), p.kind())).collect();
    let unknown = pieces.iter().position(|(_, _, kind)| *kind == Kind::Unknown);
    let unknown = unknown.ok_or_else(|| Error::invalid(path, "has no piece for what is unknown"))?;
    let byte_fallback = trainer.byte_fallback();
    let inner = match trainer.model_type.unwrap_or(1) {
        1 => json!({
            "type": "Unigram",
            "unk_id": unknown,
            "byte_fallback": byte_fallback,
            "vocab": pieces.iter().map(|(piece, score, _)| json!([piece, score])).collect::<Vec<_>>(),
        }),
        2 => {
            let mut normal: Vec<(usize, &(&str, f32, Kind))> =
                pieces.iter().enumerate().filter(|(_, piece)| piece.2 == Kind::Normal).collect();
            normal.sort_by(|(_, a), (_, b)| b.1.total_cmp(&a.1));
            json!({
                "type": "BPE",
                "unk_token": pieces[unknown].0,
                "fuse_unk": true,
                "byte_fallback": byte_fallback,
                "merges": merges(&normal.iter().map(|(id, piece)| (piece.0, *id)).collect::<Vec<_>>()),
                "vocab": pieces.iter().enumerate()
                    .map(|(id, piece)| (piece.0.to_owned(), json!(id))).collect::<Map<_, _>>(),
            })
        }
        other => {
            let what = format!("SentencePiece model type {other} of {}", path.display());
            return Err(Error::unsupported(what, "only Unigram and BPE are"));
        }
    };
    let mut added: Vec<Value> = pieces
        .iter()
        .enumerate()
        .filter(|(_, piece)| matches!(piece.2, Kind::Unknown | Kind::Control | Kind::UserDefined))
        .map(|(id, piece)| {
            json!({
                "id": id, "content": piece.0, "special": piece.2 != Kind::UserDefined,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    added_tokens(path, config, &mut added, pieces.len())?;
    let named = |id: i32| Some(pieces.get(usize::try_from(id).ok()?)?.0);
    let special = [
        ("bos_token", named(trainer.bos_id())),
        ("eos_token", named(trainer.eos_id())),
        ("pad_token", named(trainer.pad_id())),
        ("unk_token", Some(pieces[unknown].0)),
    ];
    let special = special.into_iter().filter_map(|(name, piece)| Some((name.to_owned(), json!(piece?))));
    let special: Map<String, Value> = special.collect();
    let prefix = normalizer.add_dummy_prefix();
    let first_only = prefix && config["legacy"] == json!(false);
    let defaults = if class.contains("T5") { (false, true) } else { (true, false) };
    let json = json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": { "type": "Sequence", "normalizers": normalizers(&normalizer, prefix && !first_only) },
        "pre_tokenizer": first_only.then(|| {
            json!({ "type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": false })
        }),
        "post_processor": template(config, &special, &added, defaults),
        "decoder": { "type": "Sequence", "decoders": decoders(prefix) },
        "model": inner,
    });
    Ok((json, special))
}

fn normalizers(spec: &Normalizer, prefix: bool) -> Vec<Value> {
    use base64::Engine;
    let mut all = Vec::new();
    if !spec.precompiled_charsmap().is_empty() {
        let map = base64::engine::general_purpose::STANDARD.encode(spec.precompiled_charsmap());
        all.push(json!({ "type": "Precompiled", "precompiled_charsmap": map }));
    }
    if spec.remove_extra_whitespaces() {
        all.push(json!({ "type": "Strip", "strip_left": true, "strip_right": true }));
        all.push(json!({ "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": " " }));
    }
    if prefix {
        all.push(json!({ "type": "Prepend", "prepend": SPACE }));
    }
    all.push(json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE }));
    all
}

fn decoders(prefix: bool) -> Vec<Value> {
    let mut all = vec![
        json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        all.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    all
}
