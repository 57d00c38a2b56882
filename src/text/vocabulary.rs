//! What tokenizers of other formats need to become a `tokenizer.json`.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// The longest piece that is made of others, in bytes. Published ones have a quarter of it.
const MAX_PIECE: usize = 512;

/// Every way to make a piece of two others, in the order of the pieces. A piece comes with its id; long ones are not
/// made, since the ways are as many as their bytes.
pub(super) fn merges(pieces: &[(&str, usize)]) -> Vec<(String, String)> {
    let ids: HashMap<&str, usize> = pieces.iter().copied().collect();
    let mut all = Vec::new();
    for (piece, _) in pieces.iter().filter(|(piece, _)| piece.len() <= MAX_PIECE) {
        let splits = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let mut pairs: Vec<(usize, usize, (&str, &str))> =
            splits.filter_map(|(a, b)| Some((*ids.get(a)?, *ids.get(b)?, (a, b)))).collect();
        pairs.sort_unstable();
        all.extend(pairs.into_iter().map(|(_, _, (a, b))| (a.to_owned(), b.to_owned())));
    }
    all
}

/// Adds the tokens of a config's `added_tokens_decoder` that are not there yet. From `end` on they must
/// follow each other.
pub(super) fn added_tokens(path: &Path, config: &Value, added: &mut Vec<Value>, end: usize) -> Result<()> {
    let Some(tokens) = config["added_tokens_decoder"].as_object() else {
        return Ok(());
    };
    let mut tokens = tokens
        .iter()
        .map(|(id, token)| Some((id.parse::<u32>().ok()?, token.as_object()?)))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| Error::invalid(path, "`added_tokens_decoder` of its config is not ids and tokens"))?;
    tokens.sort_by_key(|(id, _)| *id);
    let after = tokens.iter().map(|(id, _)| *id as usize).filter(|id| *id >= end && end != usize::MAX);
    for (at, id) in after.enumerate() {
        if id != end + at {
            let message = format!("the token {id} of its config does not follow {}", end + at - 1);
            return Err(Error::invalid(path, message));
        }
    }
    // Of those with the same id or text, the last one is meant.
    let (mut ids, mut contents, mut last) = (HashSet::new(), HashSet::new(), Vec::new());
    for (id, token) in tokens.into_iter().rev() {
        let flag = |name: &str| token.get(name).and_then(Value::as_bool).unwrap_or(false);
        let new = token.get("content").is_none_or(|content| contents.insert(content));
        if ids.insert(u64::from(id)) & new {
            last.push(json!({
                "id": id, "content": token.get("content"), "special": flag("special"),
                "single_word": flag("single_word"), "lstrip": flag("lstrip"), "rstrip": flag("rstrip"),
                "normalized": flag("normalized"),
            }));
        }
    }
    added.retain(|one| {
        one["id"].as_u64().is_none_or(|id| !ids.contains(&id)) && !contents.contains(&one["content"])
    });
    added.append(&mut last);
    added.sort_by_key(|token| token["id"].as_u64());
    Ok(())
}

/// Puts the tokens that begin and end a text around it, as the config says or else the defaults.
pub(super) fn template(
    config: &Value,
    special: &Map<String, Value>,
    added: &[Value],
    (bos, eos): (bool, bool),
) -> Value {
    let token = |name: &str, default: bool, flag: &str| {
        let text = super::tokenizer::token(&config[name]);
        let text = text.or_else(|| special.get(name).and_then(Value::as_str).map(str::to_owned))?;
        let id = added.iter().find(|token| token["content"] == json!(text))?["id"].clone();
        config[flag].as_bool().unwrap_or(default).then_some((text, id))
    };
    let bos = token("bos_token", bos, "add_bos_token");
    let eos = token("eos_token", eos, "add_eos_token");
    let one = |token: &Option<(String, Value)>, part: u8| {
        token
            .iter()
            .map(|(text, _)| json!({ "SpecialToken": { "id": text, "type_id": part } }))
            .collect::<Vec<_>>()
    };
    let text = |name: &str, part: u8| vec![json!({ "Sequence": { "id": name, "type_id": part } })];
    let part = |name: &str, part: u8| [one(&bos, part), text(name, part), one(&eos, part)].concat();
    let tokens = bos
        .iter()
        .chain(&eos)
        .map(|(text, id)| (text.clone(), json!({ "id": text, "ids": [id], "tokens": [text] })));
    let (tokens, pair) = (tokens.collect::<Map<_, _>>(), [part("A", 0), part("B", 1)].concat());
    json!({ "type": "TemplateProcessing", "single": part("A", 0), "pair": pair, "special_tokens": tokens })
}
