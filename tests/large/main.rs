//! Memory that a checkpoint of 1 GB takes: `make test-large`.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// A Llama of 0.54 billion parameters in bfloat16, whose largest matrices have 64 MiB. Gives its bytes.
fn generate(dir: &Path) -> u64 {
    let (hidden, intermediate, layers, vocabulary) = (2048u64, 8192u64, 7, 16_384u64);
    let config = format!(
        r#"{{"model_type": "llama", "hidden_size": {hidden}, "intermediate_size": {intermediate},
        "num_hidden_layers": {layers}, "num_attention_heads": 16, "rms_norm_eps": 1e-5,
        "vocab_size": {vocabulary}, "tie_word_embeddings": false, "torch_dtype": "bfloat16"}}"#
    );
    fs::write(dir.join("config.json"), config).unwrap();
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
        ("lm_head.weight".to_owned(), vec![vocabulary, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[u64]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()))
        };
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add(&format!("self_attn.{name}"), &[hidden, hidden]);
        }
        add("mlp.gate_proj", &[intermediate, hidden]);
        add("mlp.up_proj", &[intermediate, hidden]);
        add("mlp.down_proj", &[hidden, intermediate]);
        add("input_layernorm", &[hidden]);
        add("post_attention_layernorm", &[hidden]);
    }
    let (mut entries, mut end) = (Vec::new(), 0);
    for (name, shape) in &tensors {
        let start = end;
        end += 2 * shape.iter().product::<u64>();
        entries
            .push(format!(r#""{name}":{{"dtype":"BF16","shape":{shape:?},"data_offsets":[{start},{end}]}}"#));
    }
    let header = format!("{{{}}}", entries.join(","));
    let header = format!("{header:width$}", width = header.len().next_multiple_of(8));
    let mut file = BufWriter::with_capacity(1 << 20, File::create(dir.join("model.safetensors")).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    // Numbers of a linear congruence between -0.03 and 0.03.
    let mut state = 1u32;
    for _ in 0..end / 2 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.06;
        file.write_all(&half::bf16::from_f32(value).to_le_bytes()).unwrap();
    }
    file.flush().unwrap();
    end
}

/// The most memory, and the most without pages of files, that a run of the command had at a time.
fn peak(args: &[&str]) -> (u64, u64) {
    let mut child =
        Command::new(env!("CARGO_BIN_EXE_mlxport")).args(args).stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let (mut all, mut own) = (0, 0);
    loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(1024 * line.split_whitespace().next()?.parse::<u64>().ok()?)
        };
        all = all.max(field("VmHWM:").unwrap_or(0));
        own = own.max(field("RssAnon:").unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{args:?}");
            return (all, own);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Loading holds the pages of the file, once; converting neither the file nor the result.
#[test]
#[ignore = "writes 2 GB and takes minutes: make test-large"]
#[cfg(target_os = "linux")]
fn a_checkpoint_of_a_gigabyte_is_never_held_twice() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let bytes = generate(&source);
    assert!(bytes > GIB);
    let path = |name: &str| dir.path().join(name).display().to_string();
    let model = path("source");

    let (all, own) =
        peak(&["generate", "--model", &model, "--prompt-ids", "1,2,3", "--max-tokens", "2", "--ignore-eos"]);
    println!("loading and running {} MiB: {} MiB, {} MiB of it its own", bytes / MIB, all / MIB, own / MIB);
    assert!(all < bytes + bytes / 4 && own < bytes / 4, "{all} {own} of {bytes}");

    for (name, args) in [
        ("plain", &[][..]),
        ("float16", &["--dtype", "float16"]),
        ("quantized", &["--quantize", "--bits", "4"]),
    ] {
        let out = path(name);
        let (all, own) = peak(&[&["convert", &model, "--out", &out], args].concat());
        println!("converting, {name}: {} MiB, {} MiB of it its own", all / MIB, own / MIB);
        // Scales and biases of the one shard in 4 bits have 32 MiB.
        assert!(all < bytes / 2 && own < bytes / 3, "{name}: {all} {own} of {bytes}");
    }
    let out = path("dense");
    let (all, own) = peak(&["convert", &path("quantized"), "--out", &out, "--dequantize"]);
    println!("converting, dequantized: {} MiB, {} MiB of it its own", all / MIB, own / MIB);
    assert!(all < bytes / 2 && own < bytes / 3, "{all} {own} of {bytes}");
}
