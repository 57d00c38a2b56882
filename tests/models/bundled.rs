//! The bundled checkpoint against transformers (`tests/oracle/tiny_qwen3.py`), stage by stage.

use std::collections::BTreeMap;
use std::path::PathBuf;

use mlxport::generate::{Allowed, Constraint, FinishReason, Options, Response, Text, Tokens};
use mlxport::kernels::{self, Path};
use mlxport::models::{LanguageModel, load, probe};
use mlxport::nn::Module;
use mlxport::text::{Chat, Tokenizer};
use mlxport::{Array, Dtype, HostTensor, io};
use serde_json::{Value, json};

use super::{LOGITS, error};

pub fn dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-qwen3")
}

/// The model, computing in float32 as the oracle does.
pub fn model() -> Box<dyn LanguageModel> {
    let mut model = load(&dir()).unwrap();
    model.set_dtype(Dtype::Float32).unwrap();
    model
}

fn expected() -> BTreeMap<String, HostTensor> {
    io::load_npz(dir().join("oracle/expect.npz")).unwrap()
}

fn oracle() -> Value {
    serde_json::from_slice(&std::fs::read(dir().join("oracle/oracle.json")).unwrap()).unwrap()
}

/// The kernels off, and on as far as this machine can run them.
fn on_every_path(f: impl Fn(Path)) {
    for path in Path::ALL.into_iter().filter(|path| path.is_available()) {
        kernels::force(path, || f(path)).unwrap();
    }
}

#[test]
fn every_stage_of_the_bundled_checkpoint_is_that_of_transformers() {
    on_every_path(stages_are_those_of_transformers);
}

fn stages_are_those_of_transformers(path: Path) {
    let (model, expected) = (model(), expected());
    let forward = |ids: &HostTensor| {
        let ids = Array::from_host(ids).unwrap();
        probe::record(|| model.forward(&ids, &mut model.make_cache()).unwrap())
    };
    let (_, stages) = forward(&expected["input_ids"]);
    let names: Vec<&str> = stages.iter().map(|(name, _)| name.as_str()).collect();
    let apart = ["input_ids", "greedy", "batch_input_ids", "batch_logits"];
    let recorded: Vec<&String> = expected.keys().filter(|key| !apart.contains(&key.as_str())).collect();
    assert_eq!(recorded.len(), 3 + 3 * model.num_layers(), "{recorded:?}");
    for name in recorded {
        let at = names.iter().position(|n| n == name).unwrap_or_else(|| panic!("{name} is not in {names:?}"));
        let found = stages[at].1.to_vec::<f32>().unwrap();
        let error = error(&found, &expected[name].to_vec().unwrap());
        assert!(error < LOGITS, "{name} on {path}: {error:e}");
    }
    let (batch, _) = forward(&expected["batch_input_ids"]);
    let error = error(&batch.to_vec().unwrap(), &expected["batch_logits"].to_vec().unwrap());
    assert!(error < LOGITS, "batch on {path}: {error:e}");
}

#[test]
fn the_bundled_checkpoint_decodes_what_transformers_decodes() {
    let expected = expected();
    let greedy: Vec<i32> = expected["greedy"].to_vec().unwrap();
    let prompt: Vec<i32> = expected["input_ids"].to_vec().unwrap();
    let decoded = |model: &dyn LanguageModel| -> Vec<i32> {
        let options = Options { max_tokens: greedy.len(), ..Options::default() };
        let mut cache = model.make_cache();
        let tokens = Tokens::new(model, &mut cache, &prompt, options).unwrap();
        tokens.map(|token| token.unwrap().id).collect()
    };
    on_every_path(|path| {
        assert_eq!(decoded(&*model()), greedy, "{path}");
        // As the checkpoint is stored.
        assert_eq!(decoded(&*load(&dir()).unwrap()), greedy, "{path}");
    });
}

#[test]
fn the_bundled_tokenizer_is_read_as_transformers_reads_it() {
    let (tokenizer, expected, oracle) = (Tokenizer::load(&dir()).unwrap(), expected(), oracle());
    let prompt = oracle["prompt"].as_str().unwrap();
    let ids: Vec<i32> = expected["input_ids"].to_vec().unwrap();
    assert_eq!(tokenizer.encode(prompt, true).unwrap(), ids);
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), prompt);
    let greedy: Vec<i32> = expected["greedy"].to_vec().unwrap();
    assert_eq!(tokenizer.decode(&greedy, false).unwrap(), oracle["greedy_text"].as_str().unwrap());
    let chat = Chat::new(vec![json!({ "role": "user", "content": "Which kernel is fast?" })]);
    let rendered = tokenizer.apply_chat_template(&chat).unwrap();
    assert_eq!(rendered, oracle["chat"].as_str().unwrap());
}

#[test]
fn streamed_responses_make_the_text_up_to_a_stop_string() {
    let (model, tokenizer, expected, oracle) =
        (model(), Tokenizer::load(&dir()).unwrap(), expected(), oracle());
    let greedy: Vec<i32> = expected["greedy"].to_vec().unwrap();
    let prompt: Vec<i32> = expected["input_ids"].to_vec().unwrap();
    let whole = oracle["greedy_text"].as_str().unwrap();
    let run = |stop: Vec<i32>, strings: &[&str]| -> Vec<Response> {
        let options = Options { max_tokens: greedy.len(), stop, ..Options::default() };
        let mut cache = model.make_cache();
        let tokens = Tokens::new(&*model, &mut cache, &prompt, options).unwrap();
        let strings = strings.iter().map(|string| (*string).to_owned());
        Text::new(tokens, &tokenizer).stop_at(strings).map(Result::unwrap).collect()
    };
    let text = |responses: &[Response]| responses.iter().map(|r| r.text.as_str()).collect::<String>();
    let all = run(Vec::new(), &["not in the text"]);
    assert_eq!((text(&all).as_str(), all.len()), (whole, greedy.len()));
    assert_eq!(all.last().unwrap().finish_reason, Some(FinishReason::Length));
    let stats = all.last().unwrap().stats;
    assert!(stats.prompt_tps() > 0.0 && stats.generation_tps() > 0.0 && stats.peak_memory > 0);

    // From the middle of a token to the middle of a later one.
    let third: usize = all[..3].iter().map(|r| r.text.len()).sum();
    let string = &whole[third - 1..third + all[3].text.len() + 1];
    let stopped = run(Vec::new(), &["not in the text", string]);
    assert_eq!(text(&stopped), whole[..whole.find(string).unwrap()]);
    assert_eq!(stopped.last().unwrap().finish_reason, Some(FinishReason::Stop));
    assert!(stopped[..stopped.len() - 1].iter().all(|r| r.finish_reason.is_none()));

    // A token that ends the text is no part of it.
    let at = greedy.iter().position(|id| *id == greedy[5]).unwrap();
    let ended = run(vec![greedy[5]], &[]);
    assert_eq!(text(&ended), tokenizer.decode(&greedy[..at], true).unwrap());
    assert_eq!(ended.last().unwrap().token, greedy[5]);
}

/// Lets only these tokens come, one after the other.
struct Script(Vec<i32>);

impl Constraint for Script {
    fn allowed(&mut self) -> mlxport::Result<Array> {
        let next: Vec<bool> = (0..1024).map(|id| id == self.0[0]).collect();
        Array::from_slice(&next, &[1, 1024])
    }

    fn push(&mut self, token: i32) -> mlxport::Result<Allowed> {
        assert_eq!(self.0.remove(0), token);
        Ok(if self.0.is_empty() { Allowed::Nothing } else { Allowed::More })
    }
}

#[test]
fn the_marks_of_an_answer_are_kept_where_they_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let text = std::fs::read_to_string(dir().join(name)).unwrap();
        let text = text.replace("<|im_start|>", "<think>").replace("<|im_end|>", "</think>");
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let (model, tokenizer) = (model(), Tokenizer::load(folder.path()).unwrap());
    let id = |text: &str| tokenizer.encode(text, false).unwrap()[0];
    // The first of these is special, and no mark.
    let said = [id("<|endoftext|>"), id("<think>"), id("a"), id("</think>"), id("b"), id("</think>")];
    let run = |marked: bool| {
        let (mut cache, stop) = (model.make_cache(), vec![id("<|endoftext|>")]);
        let options = Options { stop: if marked { Vec::new() } else { stop }, ..Options::default() };
        let tokens = Tokens::new(&*model, &mut cache, &said[1..2], options).unwrap();
        let script = said[usize::from(!marked)..].to_vec();
        let mut text = Text::new(tokens.constrained(Script(script)), &tokenizer);
        if marked {
            text = text.marked(&tokenizer);
        }
        text.map(|response| response.unwrap().text).collect::<String>()
    };
    assert_eq!(run(false), "ab");
    assert_eq!(run(true), "<think>a</think>b</think>");
}
