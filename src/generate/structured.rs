//! Text that follows a JSON schema, a regular expression or a grammar.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::{Allowed, Constraint};
use crate::array::Array;
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// What a text must look like.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// A JSON value that this schema allows, with as much between its parts as indented JSON has: a space, or a line
    /// break and up to 40 blanks. The key `x-guidance` of the schema may say otherwise, as llguidance has it.
    JsonSchema(Value),
    /// A text that this expression matches as a whole, in the syntax of the crate `regex`.
    Regex(String),
    /// A text that this grammar derives from `start`, in llguidance's variant of Lark.
    Lark(String),
}

/// The texts of a [`Grammar`], in tokens.
pub struct Structure {
    matcher: Matcher,
    /// What may come next; of as many tokens as the tokenizer has.
    mask: SimpleVob,
    vocab_size: i32,
}

impl Structure {
    /// For a model with logits of `vocab_size` tokens, whose texts end with one of the tokens `stop`.
    ///
    /// Fails for grammars that are wrong, and for those that no text of the tokenizer follows.
    pub fn new(tokenizer: &Tokenizer, grammar: Grammar, stop: &[i32], vocab_size: i32) -> Result<Self> {
        let mut words = tokenizer.token_bytes()?;
        words.truncate(usize::try_from(vocab_size).unwrap_or(0));
        let named = stop.iter().copied().chain(tokenizer.eos_id());
        let mut ends: Vec<u32> = named.filter_map(|id| u32::try_from(id).ok()).collect();
        ends.retain(|&id| (id as usize) < words.len());
        // Where nothing ends a text, a token that the model does not have.
        if ends.is_empty() {
            ends.push(words.len() as u32);
            words.push(Vec::new());
        }
        for &end in &ends {
            words[end as usize] =
                [&[TokTrie::SPECIAL_TOKEN_MARKER], format!("<end{end}>").as_bytes()].concat();
        }
        // The trie has 10 bits for the length of a token.
        words.iter_mut().filter(|word| word.len() > 1000).for_each(Vec::clear);
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, ends[0]), &words).with_eos_tokens(&ends);
        let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let grammar = match grammar {
            Grammar::JsonSchema(schema) => TopLevelGrammar::from_json_schema(with_blanks(schema)),
            Grammar::Regex(regex) => TopLevelGrammar::from_regex(&regex),
            Grammar::Lark(lark) => TopLevelGrammar::from_lark(lark),
        };
        let mut factory =
            ParserFactory::new(&tokens, InferenceCapabilities::default(), &[]).map_err(|e| wrong(&e))?;
        factory.quiet().limits_mut().verbose_errors = false;
        let mut matcher = Matcher::new(factory.create_parser(grammar));
        let mask = matcher.compute_mask().map_err(|e| wrong(&e))?;
        let structure = Self { matcher, mask, vocab_size };
        match structure.is_over() {
            true => Err(Error::argument("grammar", "no token of the model can begin such a text")),
            false => Ok(structure),
        }
    }

    /// Whether no token of the model may come.
    fn is_over(&self) -> bool {
        (0..self.vocab_size as usize).all(|id| id >= self.mask.len() || !self.mask.get(id))
    }
}

impl Constraint for Structure {
    fn allowed(&mut self) -> Result<Array> {
        let mask: Vec<bool> =
            (0..self.vocab_size as usize).map(|id| id < self.mask.len() && self.mask.get(id)).collect();
        Array::from_slice(&mask, &[1, self.vocab_size])
    }

    fn look_ahead(&mut self, tokens: &[i32]) -> Result<Vec<Array>> {
        let mut masks = vec![self.allowed()?];
        let (now, mut taken) = (self.mask.clone(), 0);
        for &token in tokens {
            if !usize::try_from(token).is_ok_and(|id| id < self.mask.len() && self.mask.get(id)) {
                break;
            }
            self.matcher.consume_token(token as u32).map_err(|e| wrong(&e))?;
            taken += 1;
            if self.matcher.is_stopped() {
                break;
            }
            self.mask = self.matcher.compute_mask().map_err(|e| wrong(&e))?;
            if self.is_over() {
                break;
            }
            masks.push(self.allowed()?);
        }
        self.matcher.rollback(taken).map_err(|e| wrong(&e))?;
        self.mask = now;
        Ok(masks)
    }

    fn push(&mut self, token: i32) -> Result<Allowed> {
        self.matcher.consume_token(token as u32).map_err(|e| wrong(&e))?;
        if self.matcher.is_stopped() {
            return Ok(Allowed::Nothing);
        }
        self.mask = self.matcher.compute_mask().map_err(|e| wrong(&e))?;
        Ok(if self.is_over() { Allowed::Nothing } else { Allowed::More })
    }
}

/// A schema whose texts cannot be blanks for ever, unless it says so.
fn with_blanks(mut schema: Value) -> Value {
    if schema == true {
        schema = json!({});
    }
    let options =
        schema.as_object_mut().map(|schema| schema.entry("x-guidance").or_insert_with(|| json!({})));
    if let Some(Value::Object(options)) = options
        && !options.contains_key("whitespace_flexible")
    {
        options.entry("whitespace_pattern").or_insert_with(|| json!(r"\x20|\r?\n[\x20\t]{0,40}"));
    }
    schema
}

fn wrong(error: &impl std::fmt::Display) -> Error {
    let message = error.to_string();
    let message = message.split("<non-verbose/>").next().unwrap_or_default().trim_end();
    Error::argument(
        "grammar",
        if message == "NoExtensionBias" { "no finite text is like this" } else { message },
    )
}
