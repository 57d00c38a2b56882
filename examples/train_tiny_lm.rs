//! Trains a small Qwen3 language model on the prose of this repository and writes it in the layout of
//! Hugging Face: the checkpoint in `assets/tiny-qwen3`.
//!
//!     cargo run --release --example train_tiny_lm -- --out assets/tiny-qwen3
//!
//! The same seed, steps, text and machine give the same file.

#[path = "train_tiny_lm/text.rs"]
mod text;

use std::cell::RefCell;
use std::error::Error;
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use mlxport::checkpoint::Weights;
use mlxport::generate::{Options, Text, Tokens};
use mlxport::models::LanguageModel;
use mlxport::models::lm::qwen3;
use mlxport::nn::{Module, losses::cross_entropy};
use mlxport::optim::{Adam, Optimizer, Schedule, clip_grad_norm};
use mlxport::{Array, Dtype, io, ops, random, transforms};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Trains a small Qwen3 language model on the prose of this repository.
#[derive(Parser)]
struct Arguments {
    /// Directory to write the checkpoint to
    #[arg(long)]
    out: PathBuf,
    /// Optimizer steps
    #[arg(long, default_value_t = 1000)]
    steps: u64,
    /// Seed of the initial weights and of the order of the text
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

const VOCABULARY: usize = 1024;
const BATCH: usize = 8;
const LENGTH: usize = 128;
const WARMUP: u64 = 50;
const RATE: f64 = 3e-3;
const DECAY: f64 = 0.1;
/// One paragraph in so many is kept from training, to measure the loss on.
const HELD_OUT: usize = 20;
/// Windows of `LENGTH` tokens, at most, that the loss is measured on at the end.
const MEASURED: usize = 64;

fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut rng = StdRng::seed_from_u64(arguments.seed);
    let corpus = Corpus::read(root, &mut rng)?;
    let config = config();
    let model = RefCell::new(new_model(&config, arguments.seed)?);
    let size: usize = model.borrow().parameters().iter().map(|(_, p)| p.size()).sum();
    println!("{} words; {size} parameters", corpus.words);
    train(&model, &corpus.training, &arguments, &mut rng)?;

    // What is measured is what is saved.
    let rounded = |(name, p): (String, Array)| Ok((name, ops::astype(&p, Dtype::Bfloat16)?));
    let weights = model.into_inner().parameters().into_iter().map(rounded);
    let weights = weights.collect::<mlxport::Result<Vec<_>>>()?;
    let saved = Weights::from_arrays(weights.clone());
    let saved = qwen3::model(&serde_json::from_value(config.clone())?, &saved)?;
    let losses = [mean_loss(&saved, &corpus.training)?, mean_loss(&saved, &corpus.held_out)?];
    println!("loss {:.3} on the training text, {:.3} on text held out", losses[0], losses[1]);

    let out = &arguments.out;
    fs::create_dir_all(out)?;
    let arrays = weights.iter().map(|(name, p)| (name.as_str(), p));
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    io::save_safetensors(out.join("model.safetensors"), arrays, &metadata)?;
    corpus.tokenizer.save(out.join("tokenizer.json"), true)?;
    write_json(&out.join("tokenizer_config.json"), &text::tokenizer_config())?;
    write_json(&out.join("config.json"), &config)?;
    write_json(&out.join("generation_config.json"), &generation_config())?;
    fs::write(out.join("README.md"), card(&corpus, &arguments, losses))?;
    fs::copy(root.join("LICENSE-MIT"), out.join("LICENSE"))?;
    println!("wrote {}", out.display());
    sample(&saved, out, "The ")
}

/// The text, its tokenizer, and the token ids.
struct Corpus {
    digest: String,
    words: usize,
    tokenizer: Tokenizer,
    training: Vec<i32>,
    held_out: Vec<i32>,
}

impl Corpus {
    fn read(root: &Path, rng: &mut StdRng) -> Outcome<Self> {
        let paragraphs = text::collect(root)?;
        let (mut training, mut held_out) = (Vec::new(), Vec::new());
        for (i, paragraph) in paragraphs.iter().enumerate() {
            let part = if i % HELD_OUT == HELD_OUT - 1 { &mut held_out } else { &mut training };
            part.push(paragraph.as_str());
        }
        let digest = paragraphs.iter().fold(Sha256::new(), |hash, p| hash.chain_update(p).chain_update("\n"));
        let words = paragraphs.iter().map(|p| p.split_whitespace().count()).sum();
        let tokenizer = text::train_tokenizer(&training, VOCABULARY)?;
        Ok(Self {
            digest: digest.finalize().iter().map(|b| format!("{b:02x}")).collect(),
            words,
            training: text::encode(&tokenizer, &training, Some(rng))?,
            held_out: text::encode(&tokenizer, &held_out, None)?,
            tokenizer,
        })
    }
}

/// Sizes that make about a million parameters, in the words of Hugging Face's `Qwen3Config`.
fn config() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": text::id_of(text::END_OF_TEXT),
        "eos_token_id": text::id_of(text::END_OF_TEXT),
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 128,
        "initializer_range": 0.02,
        "intermediate_size": 384,
        "max_position_embeddings": 2048,
        "max_window_layers": 4,
        "model_type": "qwen3",
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_scaling": null,
        "rope_theta": 10000.0,
        "sliding_window": null,
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
        "use_cache": true,
        "use_sliding_window": false,
        "vocab_size": VOCABULARY,
    })
}

fn generation_config() -> Value {
    json!({
        "bos_token_id": text::id_of(text::END_OF_TEXT),
        "eos_token_id": [text::id_of(text::IM_END), text::id_of(text::END_OF_TEXT)],
        "do_sample": true,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
    })
}

/// A model with the weights that training starts from: normal with the config's range (less for what is
/// added to the residual stream, as in GPT-2), norms at one.
fn new_model(config: &Value, seed: u64) -> Outcome<qwen3::Model> {
    let size = |key: &str| config[key].as_i64().unwrap_or_default() as i32;
    let (hidden, inner, layers) = (size("hidden_size"), size("intermediate_size"), size("num_hidden_layers"));
    let (queries, keys) =
        (size("num_attention_heads") * size("head_dim"), size("num_key_value_heads") * size("head_dim"));
    let range = config["initializer_range"].as_f64().unwrap_or_default();
    let less = range / f64::from(2 * layers).sqrt();
    random::seed(seed)?;
    let draw = |rows, columns, range: f64| random::normal(0.0, range, &[rows, columns], Dtype::Float32, None);
    let ones = |n| ops::ones(&[n], Dtype::Float32);
    let mut weights = vec![
        ("model.embed_tokens".to_owned(), draw(size("vocab_size"), hidden, range)?),
        ("model.norm".to_owned(), ones(hidden)?),
    ];
    for layer in 0..layers {
        for (name, array) in [
            ("self_attn.q_proj", draw(queries, hidden, range)?),
            ("self_attn.k_proj", draw(keys, hidden, range)?),
            ("self_attn.v_proj", draw(keys, hidden, range)?),
            ("self_attn.o_proj", draw(hidden, queries, less)?),
            ("self_attn.q_norm", ones(size("head_dim"))?),
            ("self_attn.k_norm", ones(size("head_dim"))?),
            ("mlp.gate_proj", draw(inner, hidden, range)?),
            ("mlp.up_proj", draw(inner, hidden, range)?),
            ("mlp.down_proj", draw(hidden, inner, less)?),
            ("input_layernorm", ones(hidden)?),
            ("post_attention_layernorm", ones(hidden)?),
        ] {
            weights.push((format!("model.layers.{layer}.{name}"), array));
        }
    }
    let weights = weights.into_iter().map(|(name, array)| (name + ".weight", array));
    Ok(qwen3::model(&serde_json::from_value(config.clone())?, &Weights::from_arrays(weights))?)
}

/// AdamW over random pieces of the text; returns when all steps are done.
fn train(
    model: &RefCell<qwen3::Model>,
    stream: &[i32],
    arguments: &Arguments,
    rng: &mut StdRng,
) -> Outcome<()> {
    let cosine = Schedule::cosine_decay(RATE, arguments.steps.saturating_sub(WARMUP), 0.05 * RATE);
    let mut optimizer = Adam::adamw(Schedule::linear(0.0, RATE, WARMUP).then(WARMUP, cosine), DECAY);
    (optimizer.betas, optimizer.bias_correction) = ([0.9, 0.95], true);
    let mut values: Vec<Array> = model.borrow().parameters().into_iter().map(|(_, p)| p).collect();

    let bar = progress(arguments.steps)?;
    let started = Instant::now();
    for step in 1..=arguments.steps {
        let windows: Vec<&[i32]> = (0..BATCH)
            .map(|_| rng.random_range(0..stream.len() - LENGTH))
            .map(|at| &stream[at..=at + LENGTH])
            .collect();
        let rate = optimizer.learning_rate.at(optimizer.steps());
        let (loss, gradients) = transforms::value_and_grad(
            |values| {
                let mut model = model.borrow_mut();
                model.set_parameters(values)?;
                batch_loss(&model, &windows)
            },
            &values,
        )?;
        let (gradients, norm) = clip_grad_norm(&gradients, 1.0)?;
        values = optimizer.apply(&gradients, &values)?;
        transforms::eval(values.iter().chain(optimizer.state()).chain([&loss, &norm]))?;

        let speed = (step as usize * BATCH * LENGTH) as f64 / started.elapsed().as_secs_f64();
        let line = format!(
            "loss {:.3}  norm {:.2}  rate {rate:.1e}  {speed:.0} tokens/s",
            loss.item::<f32>()?,
            norm.item::<f32>()?
        );
        bar.set_message(line.clone());
        bar.inc(1);
        if bar.is_hidden() && (step % 20 == 0 || step == 1 || step == arguments.steps) {
            println!("step {step}/{}  {line}", arguments.steps);
        }
    }
    bar.finish();
    // The closure has left the arrays of its last trace in the model.
    model.borrow_mut().set_parameters(&values)?;
    Ok(())
}

/// The mean cross entropy, in nats a token, of predicting each window's tokens but the first.
fn batch_loss(model: &qwen3::Model, windows: &[&[i32]]) -> mlxport::Result<Array> {
    let length = windows[0].len() - 1;
    let shape = [windows.len() as i32, length as i32];
    let inputs: Vec<i32> = windows.iter().flat_map(|w| &w[..length]).copied().collect();
    let targets: Vec<i32> = windows.iter().flat_map(|w| &w[1..]).copied().collect();
    let logits = model.forward(&Array::from_slice(&inputs, &shape)?, &mut model.make_cache())?;
    let losses = cross_entropy(&logits, &Array::from_slice(&targets, &shape)?, 0.0)?;
    ops::mean(&losses, .., false)
}

/// The mean loss over the start of a stream, in windows side by side.
fn mean_loss(model: &qwen3::Model, stream: &[i32]) -> mlxport::Result<f32> {
    let windows: Vec<&[i32]> = stream.windows(LENGTH + 1).step_by(LENGTH).take(MEASURED).collect();
    let mut sum = 0.0;
    for batch in windows.chunks(BATCH) {
        sum += batch_loss(model, batch)?.item::<f32>()? * batch.len() as f32;
    }
    Ok(sum / windows.len() as f32)
}

/// Prints how the model continues `prompt`, with the tokenizer as it was written to `directory`.
fn sample(model: &qwen3::Model, directory: &Path, prompt: &str) -> Outcome<()> {
    let tokenizer = mlxport::text::Tokenizer::load(directory)?;
    let ids = tokenizer.encode_prompt(prompt)?;
    let options = Options { max_tokens: 48, ..Options::default() };
    let mut cache = model.make_cache();
    print!("{prompt}");
    for response in Text::new(Tokens::new(model, &mut cache, &ids, options)?, &tokenizer) {
        print!("{}", response?.text);
    }
    println!();
    Ok(())
}

/// A bar on a terminal; hidden where the output is piped.
fn progress(steps: u64) -> Outcome<ProgressBar> {
    if !std::io::stdout().is_terminal() {
        return Ok(ProgressBar::hidden());
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  {eta} left")?;
    Ok(ProgressBar::new(steps).with_style(style))
}

fn write_json(path: &Path, value: &Value) -> Outcome<()> {
    fs::write(path, serde_json::to_string_pretty(value)? + "\n")?;
    Ok(())
}

/// The model card.
fn card(corpus: &Corpus, arguments: &Arguments, [training, held_out]: [f32; 2]) -> String {
    let Corpus { digest, words, .. } = corpus;
    let Arguments { steps, seed, .. } = arguments;
    format!(
        "\
---
license: mit
language: en
library_name: mlxport
pipeline_tag: text-generation
---

# tiny-qwen3

A language model of the Qwen3 architecture with about a million parameters. It exists so that porting,
parity checks and generation can be shown and tested without a download. It writes recognisable English
in the manner of software documentation and knows nothing: it is of no other use.

- **Data**: the prose of the `mlxport` repository (documents, licences, comments, names of tests):
  {words} words, SHA-256 of its paragraphs `{digest}`.
- **Tokenizer**: byte-level BPE of {VOCABULARY} entries, trained on the same text; it splits words as
  Qwen3's does. The chat template is ChatML, for testing; the model has seen no chats.
- **Training**: `examples/train_tiny_lm.rs` with seed {seed}: {steps} steps of AdamW over {BATCH} x {LENGTH}
  tokens in float32 (rate {RATE}, {WARMUP} steps of warm-up, then cosine; weight decay {DECAY}; gradients
  clipped to norm 1), then rounded to bfloat16.
- **Loss**, in nats a token, as saved: {training:.2} on the training text, {held_out:.2} on one paragraph in
  {HELD_OUT} that was held out. The text is small; much of it is known by heart.
- **Licence**: MIT or Apache-2.0, at your choice, as the repository.

`oracle/` holds what Hugging Face transformers computes with this checkpoint (`tests/oracle/tiny_qwen3.py`).
"
    )
}
