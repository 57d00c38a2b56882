//! Texts that must follow a grammar, from a model that would say anything else.

use mlxport::Array;
use mlxport::generate::{
    Allowed, Constraint, Draft, FinishReason, Grammar, Options, Sampling, Structure, Text, Tokens,
};
use mlxport::models::LanguageModel;
use mlxport::text::Tokenizer;
use serde_json::{Value, json};

use super::bundled;

/// A text of the bundled model at a temperature where every token is about as likely, and its end.
fn generate(
    (model, tokenizer): (&dyn LanguageModel, &Tokenizer),
    grammar: Grammar,
    seed: u64,
    stop: Vec<i32>,
) -> mlxport::Result<(String, Option<FinishReason>)> {
    let structure = Structure::new(tokenizer, grammar, &stop, model.vocab_size())?;
    let sampling = Sampling { temperature: 40.0, seed, ..Sampling::default() };
    let options = Options { max_tokens: 400, sampling, stop, ..Options::default() };
    let mut cache = model.make_cache();
    let prompt = tokenizer.encode_prompt("Once")?;
    let tokens = Tokens::new(model, &mut cache, &prompt, options)?.constrained(structure);
    let (mut text, mut end) = (String::new(), None);
    for response in Text::new(tokens, tokenizer) {
        let response = response?;
        text += &response.text;
        end = response.finish_reason;
    }
    Ok((text, end))
}

#[test]
fn a_text_of_any_model_follows_its_grammar() {
    let (model, tokenizer) = (bundled::model(), Tokenizer::load(&bundled::dir()).unwrap());
    let eos: Vec<i32> = tokenizer.eos_id().into_iter().collect();
    assert!(!eos.is_empty());
    let schema = json!({
        "$defs": { "name": { "type": "string", "maxLength": 6 } },
        "type": "object",
        "properties": {
            "name": { "$ref": "#/$defs/name" },
            "age": { "type": "integer", "minimum": 0, "maximum": 150 },
            "tags": { "type": "array", "items": { "enum": ["a", "é", "\"x\""] }, "maxItems": 3 },
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": false,
    });
    let lark = r#"start: "<" word ("," word)~0..4 ">"
word: /[a-c]{1,3}/
"#;
    let mut texts = std::collections::BTreeSet::new();
    for seed in 0..6 {
        for stop in [eos.clone(), Vec::new()] {
            let run = |grammar| generate((&*model, &tokenizer), grammar, seed, stop.clone()).unwrap();
            let (text, end) = run(Grammar::JsonSchema(schema.clone()));
            assert_eq!(end, Some(FinishReason::Stop), "{text}");
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
            assert_eq!(keys.len(), 3, "{text}");
            assert!(value["name"].as_str().unwrap().chars().count() <= 6, "{text}");
            assert!((0..=150).contains(&value["age"].as_i64().unwrap()), "{text}");
            let allowed = [json!("a"), json!("é"), json!("\"x\"")];
            assert!(value["tags"].as_array().unwrap().iter().all(|tag| allowed.contains(tag)), "{text}");

            let (date, end) = run(Grammar::Regex("20[0-9]{2}-(0[1-9]|1[0-2])/[ab]?".to_owned()));
            assert_eq!(end, Some(FinishReason::Stop));
            let (year, month) = (date[..4].parse::<i32>().unwrap(), date[5..7].parse::<i32>().unwrap());
            assert!((2000..2100).contains(&year) && (1..=12).contains(&month), "{date}");
            assert!(["/", "/a", "/b"].contains(&&date[7..]), "{date}");

            let (words, end) = run(Grammar::Lark(lark.to_owned()));
            assert_eq!(end, Some(FinishReason::Stop));
            let inner = words.strip_prefix('<').and_then(|rest| rest.strip_suffix('>')).unwrap();
            for word in inner.split(',') {
                assert!((1..=3).contains(&word.len()) && word.chars().all(|c| ('a'..='c').contains(&c)));
            }
            texts.extend([text, date, words]);
        }
    }
    assert!(texts.len() > 12, "{texts:?}");
}

#[test]
fn a_text_ends_with_its_grammar_where_no_token_ends_texts() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let text = std::fs::read_to_string(bundled::dir().join(name)).unwrap();
        std::fs::write(folder.path().join(name), text.replace("\"eos_token\"", "\"no_token\"")).unwrap();
    }
    let (model, tokenizer) = (bundled::model(), Tokenizer::load(folder.path()).unwrap());
    assert_eq!(tokenizer.eos_id(), None);
    for draft in [false, true] {
        let structure =
            Structure::new(&tokenizer, Grammar::Regex("(ab ){3}c".to_owned()), &[], model.vocab_size())
                .unwrap();
        let mut cache = model.make_cache();
        let prompt = tokenizer.encode_prompt("ab ab ab ab c").unwrap();
        let tokens = Tokens::new(&*model, &mut cache, &prompt, Options::default()).unwrap();
        let tokens = tokens.constrained(structure);
        let tokens = if draft { tokens.speculative(Draft::lookup(2, 4)) } else { tokens };
        let responses: Vec<_> = Text::new(tokens, &tokenizer).map(Result::unwrap).collect();
        let text: String = responses.iter().map(|response| response.text.as_str()).collect();
        assert_eq!(text, "ab ab ab c");
        assert_eq!(responses.last().unwrap().finish_reason, Some(FinishReason::Stop));
    }
}

#[test]
fn looking_ahead_takes_nothing() {
    let (model, tokenizer) = (bundled::model(), Tokenizer::load(&bundled::dir()).unwrap());
    let mut structure =
        Structure::new(&tokenizer, Grammar::Regex("(ab|cd)(ef|g)+h".to_owned()), &[], model.vocab_size())
            .unwrap();
    let text = tokenizer.encode("cdgefh", false).unwrap();
    let mask = |array: Array| array.to_vec::<bool>().unwrap();
    let wrong = tokenizer.encode("z", false).unwrap();
    for (at, &token) in text.iter().enumerate() {
        let ahead = structure.look_ahead(&[&text[at..], &wrong[..]].concat()).unwrap();
        let now = mask(structure.allowed().unwrap());
        assert_eq!(structure.look_ahead(&wrong).unwrap().len(), 1);
        assert!(now[token as usize] && mask(ahead[0].clone()) == now);
        // The last token ends the text.
        assert_eq!(ahead.len(), text.len() - at);
        if structure.push(token).unwrap() == Allowed::More {
            assert_eq!(mask(structure.allowed().unwrap()), mask(ahead[1].clone()));
        }
    }
}

#[test]
fn json_has_bounded_blanks() {
    let (model, tokenizer) = (bundled::model(), Tokenizer::load(&bundled::dir()).unwrap());
    let may_begin = |schema: &Value, text: &str| {
        let schema = Grammar::JsonSchema(schema.clone());
        let mut structure = Structure::new(&tokenizer, schema, &[], model.vocab_size()).unwrap();
        tokenizer.encode(text, false).unwrap().into_iter().all(|token| {
            let allowed = structure.allowed().unwrap().to_vec::<bool>().unwrap();
            allowed[token as usize] && structure.push(token).is_ok()
        })
    };
    let value = json!({ "a": [1, [2]], "b": { "c": null } });
    let spaced = r#"{"a": [1, [2]], "b": {"c": null}}"#;
    let free = json!({ "x-guidance": { "whitespace_flexible": true } });
    let lenient = json!({ "x-guidance": { "lenient": true } });
    for schema in [json!(true), json!({}), json!({ "required": ["a"] }), lenient] {
        let [compact, lines] = [serde_json::to_string(&value), serde_json::to_string_pretty(&value)];
        for text in [&compact.unwrap(), &lines.unwrap(), spaced, "{\r\n\t\"a\""] {
            assert!(may_begin(&schema, text), "{text:?}");
        }
        for blanks in [" ", "\n", "\t", "\n "] {
            let text = format!("{{{}", blanks.repeat(60));
            assert!(!may_begin(&schema, &text), "{text:?}");
            assert!(may_begin(&free, &text), "{text:?}");
        }
    }
}

#[test]
fn guesses_change_no_token_of_a_text_that_follows_a_grammar() {
    let (model, tokenizer) = (bundled::model(), Tokenizer::load(&bundled::dir()).unwrap());
    let prompt = tokenizer.encode_prompt("one, two, two, one, two, one, ").unwrap();
    let eos: Vec<i32> = tokenizer.eos_id().into_iter().collect();
    let schema =
        json!({ "type": "array", "items": { "enum": ["one", "two"] }, "minItems": 4, "maxItems": 9 });
    let grammars = [
        Grammar::Regex("((one|two), ){5,20}end".to_owned()),
        Grammar::Regex("(one, two, ){7}".to_owned()),
        Grammar::JsonSchema(schema),
    ];
    let (mut accepted, mut refused) = (0, 0);
    for grammar in grammars {
        for (seed, temperature) in [(0, 0.0), (1, 1.0), (2, 1.0), (3, 6.0)] {
            let run = |draft: Option<Draft>| {
                let structure =
                    Structure::new(&tokenizer, grammar.clone(), &eos, model.vocab_size()).unwrap();
                let sampling = Sampling { temperature, seed, ..Sampling::default() };
                let options = Options { max_tokens: 90, sampling, stop: eos.clone(), ..Options::default() };
                let mut cache = model.make_cache();
                let tokens = Tokens::new(&*model, &mut cache, &prompt, options).unwrap();
                let mut tokens = tokens.constrained(structure);
                if let Some(draft) = draft {
                    tokens = tokens.speculative(draft);
                }
                let all: Vec<_> = tokens.by_ref().map(Result::unwrap).collect();
                let ids: Vec<i32> = all.iter().map(|token| token.id).collect();
                (ids, all.last().unwrap().finish_reason, tokens.stats())
            };
            let (plain, end, _) = run(None);
            for draft in [Draft::lookup(3, 5), Draft::lookup(1, 2), Draft::model(&*model, 4)] {
                let (ids, drafted_end, stats) = run(Some(draft));
                assert_eq!((&ids, drafted_end), (&plain, end), "{grammar:?}, seed {seed}");
                accepted += stats.accepted_tokens;
                refused += stats.draft_tokens - stats.accepted_tokens;
            }
        }
    }
    assert!(accepted > 50 && refused > 10, "{accepted} guesses accepted, {refused} refused");
}

#[test]
fn the_bytes_of_tokens_are_those_of_their_text() {
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text");
    for name in ["bytelevel", "byte_fallback"] {
        let tokenizer = Tokenizer::load(&fixtures.join(name)).unwrap();
        let bytes = tokenizer.token_bytes().unwrap();
        for text in ["a plain text", "naïve 日本 🦀\t{\"x\": [1,  2]}\n"] {
            let ids = tokenizer.encode(text, false).unwrap();
            let found: Vec<u8> = ids.iter().flat_map(|&id| bytes[id as usize].clone()).collect();
            // Decoders drop the space before the first word.
            assert_eq!(String::from_utf8(found).unwrap().trim_start(), text, "{name}");
        }
        assert_eq!(bytes[tokenizer.eos_id().unwrap() as usize], b"", "{name}: a special token");
    }
}

#[test]
fn grammars_that_are_wrong_are_errors() {
    let (model, tokenizer) = (bundled::model(), Tokenizer::load(&bundled::dir()).unwrap());
    for grammar in [
        Grammar::Regex("(".to_owned()),
        Grammar::Lark("start: nothing".to_owned()),
        Grammar::Lark(String::new()),
        Grammar::JsonSchema(json!({ "type": "nothing" })),
        Grammar::JsonSchema(json!({ "type": "string", "minLength": 5, "maxLength": 2 })),
        Grammar::JsonSchema(json!({ "$ref": "https://example.com/schema" })),
    ] {
        let result = generate((&*model, &tokenizer), grammar.clone(), 0, Vec::new());
        assert!(result.is_err(), "{grammar:?}: {result:?}");
    }
}
