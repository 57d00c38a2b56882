//! The training text: the prose of a source tree, and a byte-level BPE tokenizer for it.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use serde_json::{Value, json};
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::{sequence::Sequence, split::Split, split::SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

pub const END_OF_TEXT: &str = "<|endoftext|>";
pub const IM_START: &str = "<|im_start|>";
pub const IM_END: &str = "<|im_end|>";
const SPECIAL: [&str; 3] = [END_OF_TEXT, IM_START, IM_END];

const CHAT_TEMPLATE: &str = "\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
";

/// How often the text is repeated, in other orders.
const PASSES: usize = 8;

/// How Qwen2 and Qwen3 split text into words before BPE.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The paragraphs of prose under `root`, in the order of the paths: Markdown, licences, and the
/// comments and test names of source files.
pub fn collect(root: &Path) -> std::io::Result<Vec<String>> {
    let mut files = Vec::new();
    walk(root, &mut files)?;
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        let prose = match file.extension().and_then(|e| e.to_str()) {
            Some("rs" | "h" | "cpp" | "metal") => comments(&text),
            _ => text,
        };
        found.extend(paragraphs(&prose));
    }
    Ok(found)
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && !["target", "assets"].contains(&name.as_str()) {
                walk(&path, files)?;
            }
        } else if name.starts_with("LICENSE")
            || [".md", ".rs", ".h", ".cpp", ".metal"].iter().any(|end| name.ends_with(end))
        {
            files.push(path);
        }
    }
    Ok(())
}

/// The comments of a source file without their markers, and its test names as sentences: here a test
/// is named by what it shows.
fn comments(source: &str) -> String {
    let (mut prose, mut in_test) = (String::new(), false);
    for line in source.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix("//") {
            prose.push_str(comment.trim_start_matches(['/', '!']).trim_start());
        } else if let Some(name) = line.strip_prefix("fn ").filter(|_| in_test) {
            let name = name.split('(').next().unwrap_or_default().replace('_', " ");
            let (first, rest) = name.split_at(name.len().min(1));
            prose.push_str(&format!("\n{}{rest}.\n", first.to_uppercase()));
        }
        in_test = line == "#[test]";
        prose.push('\n');
    }
    prose
}

/// The paragraphs of Markdown that read as sentences, each on one line: no code, tables or headings.
fn paragraphs(markdown: &str) -> Vec<String> {
    let (mut found, mut current, mut in_code) = (Vec::new(), String::new(), false);
    for line in markdown.lines().map(str::trim).chain([""]) {
        let fence = line.starts_with("```");
        in_code ^= fence;
        let item = line.starts_with("- ") || line.starts_with("* ");
        let breaks = line.is_empty() || fence || in_code || item || line.starts_with(['#', '|']);
        if breaks {
            let paragraph = std::mem::take(&mut current);
            if is_prose(&paragraph) {
                found.push(paragraph);
            }
        }
        if !breaks || item {
            let text = without_links(line.trim_start_matches(['-', '*']));
            current.push_str(if current.is_empty() { "" } else { " " });
            current.push_str(text.trim());
        }
    }
    found
}

/// `[text](target)` and `[text]` as `text`.
fn without_links(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("](") {
        out.push_str(&rest[..at]);
        rest = rest[at..].split_once(')').map_or("", |(_, after)| after);
    }
    (out + rest).replace("[`", "`").replace("`]", "`")
}

fn is_prose(paragraph: &str) -> bool {
    let plain = paragraph.chars().filter(|c| c.is_alphabetic() || *c == ' ').count();
    paragraph.split(' ').count() >= 4 && plain * 10 >= paragraph.chars().count() * 8
}

/// A byte-level BPE tokenizer of `vocab_size` entries, trained on `text`; it splits as Qwen3's does.
pub fn train_tokenizer(text: &[&str], vocab_size: usize) -> tokenizers::Result<Tokenizer> {
    let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Isolated, false)?;
    let bytes = ByteLevel::new(false, false, false);
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer
        .with_normalizer(Some(NFC))
        .with_pre_tokenizer(Some(Sequence::new(vec![words.into(), bytes.into()])))
        .with_post_processor(Some(bytes))
        .with_decoder(Some(bytes));
    let trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .show_progress(false)
        .special_tokens(SPECIAL.map(|t| AddedToken::from(t, true)).to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect::<HashSet<_>>())
        .build();
    tokenizer.train(&mut TrainerWrapper::from(trainer), text.iter())?;
    Ok(tokenizer)
}

/// The id of a special token: the trainer numbers them first.
pub fn id_of(special: &str) -> Option<usize> {
    SPECIAL.iter().position(|token| *token == special)
}

pub fn tokenizer_config() -> Value {
    json!({
        "add_bos_token": false,
        "add_prefix_space": false,
        "bos_token": null,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": false,
        "eos_token": END_OF_TEXT,
        "errors": "replace",
        "model_max_length": 2048,
        "pad_token": END_OF_TEXT,
        "split_special_tokens": false,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": null,
        "added_tokens_decoder": SPECIAL.iter().enumerate().map(|(id, token)| {
            let flags = json!({
                "content": token, "lstrip": false, "normalized": false,
                "rstrip": false, "single_word": false, "special": true,
            });
            (id.to_string(), flags)
        }).collect::<serde_json::Map<_, _>>(),
    })
}

/// The token ids of `paragraphs`, a line each.
///
/// With `rng`, several times over in other orders, with half of the paragraphs cut after a space before
/// they are encoded: a prompt may end in a space, which the tokenizer otherwise joins to the next word.
pub fn encode(
    tokenizer: &Tokenizer,
    paragraphs: &[&str],
    rng: Option<&mut StdRng>,
) -> tokenizers::Result<Vec<i32>> {
    let mut ids = Vec::new();
    let mut push = |text: &str| -> tokenizers::Result<()> {
        ids.extend(tokenizer.encode_fast(text, false)?.get_ids().iter().map(|&id| id as i32));
        Ok(())
    };
    let Some(rng) = rng else {
        push(&paragraphs.join("\n"))?;
        return Ok(ids);
    };
    let mut order = paragraphs.to_vec();
    for _ in 0..PASSES {
        order.shuffle(rng);
        for paragraph in &order {
            let spaces: Vec<usize> = paragraph.match_indices(' ').map(|(at, _)| at + 1).collect();
            let cut = spaces.choose(rng).filter(|_| rng.random()).copied().unwrap_or_default();
            push(&paragraph[..cut])?;
            push(&format!("{}\n", &paragraph[cut..]))?;
        }
    }
    Ok(ids)
}
