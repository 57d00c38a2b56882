//! What signals end.

use super::*;

/// A model of half a gigabyte of zeros, which takes no space.
#[cfg(unix)]
fn hollow(dir: &Path) {
    let (hidden, rows) = (4096u64, 65_536u64);
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 32, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "vocab_size": rows,
        "tie_word_embeddings": true,
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in [
        ("embed_tokens", vec![rows, hidden]),
        ("norm", vec![hidden]),
        ("layers.0.input_layernorm", vec![hidden]),
        ("layers.0.post_attention_layernorm", vec![hidden]),
        ("layers.0.self_attn.q_proj", vec![hidden, hidden]),
        ("layers.0.self_attn.k_proj", vec![128, hidden]),
        ("layers.0.self_attn.v_proj", vec![128, hidden]),
        ("layers.0.self_attn.o_proj", vec![hidden, hidden]),
        ("layers.0.mlp.gate_proj", vec![64, hidden]),
        ("layers.0.mlp.up_proj", vec![64, hidden]),
        ("layers.0.mlp.down_proj", vec![hidden, 64]),
    ] {
        let start = end;
        end += 2 * shape.iter().product::<u64>();
        let entry = serde_json::json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] });
        header.insert(format!("model.{name}.weight"), entry);
    }
    let header = Value::Object(header).to_string();
    let mut file = fs::File::create(dir.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
}

#[cfg(unix)]
fn signal(child: &std::process::Child, name: &str) {
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
}

/// Where Linux tells it; elsewhere it is taken for the usual.
#[cfg(unix)]
fn hang_ups_are_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}

#[test]
#[cfg(unix)]
fn signals_leave_nothing_half_written() {
    use std::os::unix::process::ExitStatusExt;
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("source"), folder.path().join("out"));
    fs::create_dir(&source).unwrap();
    hollow(&source);
    let program = env!("CARGO_BIN_EXE_mlxport");
    let start = |args: &[&str]| std::process::Command::new(program).args(args).spawn().unwrap();
    let names = || -> Vec<String> {
        let entries = fs::read_dir(folder.path()).unwrap().flatten();
        entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .filter(|name| name != "source")
            .collect()
    };
    let wait = |child: &mut std::process::Child| {
        while names().is_empty() {
            assert_eq!(child.try_wait().unwrap(), None, "ended before it wrote");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    };
    let all = [("TERM", (Some(15), None)), ("HUP", (Some(1), None)), ("INT", (None, Some(130)))];
    // Started by `nohup`, the tests ignore a hang-up themselves, and so does what they start: as below.
    for (name, ends) in all.into_iter().filter(|&(name, _)| name != "HUP" || !hang_ups_are_ignored()) {
        let mut convert = start(&["convert", text(&source), "--out", text(&out)]);
        wait(&mut convert);
        signal(&convert, name);
        let status = convert.wait().unwrap();
        assert_eq!((status.signal(), status.code()), ends, "{name}");
        assert_eq!(names(), [""; 0], "{name}");
    }
    // What `nohup` starts outlives its terminal.
    let mut convert = std::process::Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", program])
        .args(["convert", text(&source), "--out", text(&out)])
        .spawn()
        .unwrap();
    wait(&mut convert);
    signal(&convert, "HUP");
    std::thread::sleep(std::time::Duration::from_millis(20));
    signal(&convert, "INT");
    assert_eq!(convert.wait().unwrap().code(), Some(130));
    assert_eq!(names(), [""; 0]);
    // It goes on where it was, so that it can end at once.
    let oracle = format!("{}/oracle", bundled());
    let mut port = start(&["port", text(&source), "--oracle", &oracle, "--out", text(&out)]);
    wait(&mut port);
    signal(&port, "INT");
    assert_eq!(port.wait().unwrap().signal(), Some(2));
}

#[test]
#[cfg(unix)]
fn chat_ends_by_a_signal_while_it_waits() {
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;
    let mut chat = std::process::Command::new(env!("CARGO_BIN_EXE_mlxport"))
        .args(["chat", "--model", &bundled(), "--max-tokens", "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Closed pipes would end it too, and `wait` closes those that it still has.
    let mut questions = chat.stdin.take().unwrap();
    questions.write_all(b"hello\n").unwrap();
    let mut answers = BufReader::new(chat.stdout.take().unwrap());
    answers.read_line(&mut String::new()).unwrap();
    signal(&chat, "TERM");
    assert_eq!(chat.wait().unwrap().signal(), Some(15));
}
