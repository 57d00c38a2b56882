//! Checkpoints by id, from a hub that runs in the test.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use mlxport::hub::{Hub, Id};
use serde_json::json;
use sha2::Digest;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub has, how it misbehaves, and what it was asked.
#[derive(Default)]
struct State {
    /// By name; the second says whether a file is large, which the hub redirects.
    files: BTreeMap<String, (Vec<u8>, bool)>,
    token: Option<&'static str>,
    /// How many bytes of a large file are sent before the connection breaks, for this many times.
    breaks: usize,
    corrupt: bool,
    /// Whether ranges are ignored.
    whole: bool,
    /// `GET` paths with the range and whether there was a token.
    asked: Vec<(String, String, bool)>,
}

struct Mock {
    endpoint: String,
    state: Arc<Mutex<State>>,
    cache: tempfile::TempDir,
}

impl Mock {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        // Large files are at another host.
        let address = endpoint.replace("127.0.0.1", "localhost");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shared, address) = (shared.clone(), address.clone());
                std::thread::spawn(move || serve(stream, &shared, &address));
            }
        });
        Self { endpoint, state, cache: tempfile::tempdir().unwrap() }
    }

    fn with(self, name: &str, bytes: impl Into<Vec<u8>>, large: bool) -> Self {
        self.state.lock().unwrap().files.insert(name.to_owned(), (bytes.into(), large));
        self
    }

    fn hub(&self) -> Hub {
        let cache = self.cache.path().join("hub");
        Hub { endpoint: self.endpoint.clone(), cache, token: None, offline: false }
    }

    /// The files that were asked for, without the requests for their first byte.
    fn downloads(&self) -> Vec<(String, String)> {
        let state = self.state.lock().unwrap();
        let asked = state.asked.iter().filter(|(path, range, _)| {
            path.contains("/resolve/") && range != "bytes=0-0" && !large(&state, path)
                || path.starts_with("/cdn/") && range != "bytes=0-0"
        });
        asked.map(|(path, range, _)| (path.rsplit('/').next().unwrap().to_owned(), range.clone())).collect()
    }
}

fn large(state: &State, path: &str) -> bool {
    state.files.iter().any(|(name, file)| path.ends_with(name.as_str()) && file.1)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest(bytes: &[u8], large: bool) -> String {
    if large {
        return hexadecimal(&sha2::Sha256::digest(bytes));
    }
    let blob = [format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat();
    hexadecimal(&sha1::Sha1::digest(&blob))
}

fn serve(mut stream: TcpStream, shared: &Mutex<State>, address: &str) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let (mut lines, mut line) = (Vec::new(), String::new());
        while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
            lines.push(std::mem::take(&mut line).trim().to_owned());
        }
        let Some(path) = lines.first().and_then(|line| line.split(' ').nth(1)) else {
            return;
        };
        let header = |name: &str| {
            let found = lines
                .iter()
                .find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)));
            found.map(|(_, value)| value.to_owned())
        };
        let (range, authorization) = (header("range").unwrap_or_default(), header("authorization"));
        let mut state = shared.lock().unwrap();
        state.asked.push((path.to_owned(), range.clone(), authorization.is_some()));
        let answer = |status: &str, headers: String, body: &[u8]| {
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
            [head.as_bytes(), body].concat()
        };
        let denied =
            state.token.is_some_and(|token| authorization.as_deref() != Some(&format!("Bearer {token}")));
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        let name = if path.contains("additional_chat_templates") {
            format!("additional_chat_templates/{name}")
        } else {
            name
        };
        let reply = if denied && !path.starts_with("/cdn/") {
            answer("401 Unauthorized", String::new(), b"")
        } else if path.starts_with("/api/models/org/tiny/revision/main") {
            let siblings = state.files.iter().map(|(name, (bytes, large))| {
                let lfs = large.then(|| json!({ "sha256": digest(bytes, true), "size": bytes.len() }));
                json!({ "rfilename": name, "size": bytes.len(), "blobId": digest(bytes, false), "lfs": lfs })
            });
            let body = json!({ "sha": COMMIT, "siblings": siblings.collect::<Vec<_>>() }).to_string();
            answer("200 OK", "Content-Type: application/json\r\n".to_owned(), body.as_bytes())
        } else if let Some((bytes, large)) = state.files.get(&name).cloned() {
            let headers = format!("X-Repo-Commit: {COMMIT}\r\nETag: \"{}\"\r\n", digest(&bytes, large));
            let (start, end) =
                range.strip_prefix("bytes=").and_then(|r| r.split_once('-')).unwrap_or(("0", ""));
            let start: usize = if state.whole { 0 } else { start.parse().unwrap() };
            let end = end.parse().map_or(bytes.len(), |end: usize| end + 1);
            if large && path.contains("/resolve/") {
                let headers = format!(
                    "{headers}X-Linked-Etag: \"{}\"\r\nLocation: {address}/cdn/{name}\r\n",
                    digest(&bytes, large)
                );
                answer("302 Found", headers, b"")
            } else if start >= bytes.len() {
                answer("416 Range Not Satisfiable", String::new(), b"")
            } else {
                let headers =
                    format!("{headers}Content-Range: bytes {start}-{}/{}\r\n", end - 1, bytes.len());
                let mut part = bytes[start..end].to_vec();
                if state.corrupt && large && end == bytes.len() {
                    part[0] ^= 1;
                }
                let status = if state.whole { "200 OK" } else { "206 Partial Content" };
                let headers = if state.whole { String::new() } else { headers };
                let mut reply = answer(status, headers, &part);
                if large && end == bytes.len() && state.breaks > 0 {
                    state.breaks -= 1;
                    reply.truncate(reply.len() - part.len() / 2);
                    drop(state);
                    let _ = stream.write_all(&reply);
                    return;
                }
                reply
            }
        } else {
            answer("404 Not Found", String::new(), b"")
        };
        drop(state);
        if stream.write_all(&reply).is_err() {
            return;
        }
    }
}

fn tiny() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lm/llama")
}

fn mock() -> Mock {
    let read = |name: &str| std::fs::read(tiny().join(name)).unwrap();
    Mock::new()
        .with("config.json", read("config.json"), false)
        .with("model.safetensors", read("model.safetensors"), true)
        .with("additional_chat_templates/tool_use.jinja", "{{ tools }}", false)
        .with("consolidated.safetensors", "the same again", true)
        .with("README.md", "words", false)
}

fn id() -> Id {
    Id::parse("org/tiny").unwrap()
}

#[test]
fn ids_are_told_from_paths() {
    assert_eq!(Id::parse("org/tiny"), Id::parse("org/tiny@main"));
    assert!(Id::parse("org/tiny@refs/pr/1").is_some());
    for text in [
        "",
        "tiny",
        "/org/tiny",
        "org/tiny/x",
        "../tiny",
        "org/..",
        "./tiny",
        "org/ti ny",
        "org/tiny@../x",
        "org/tiny@",
    ] {
        assert_eq!(Id::parse(text), None, "{text}");
    }
    let error = mlxport::hub::locate(Path::new("no/such/directory")).unwrap_err().to_string();
    assert!(error.contains("no such directory"), "{error}");
    assert_eq!(mlxport::hub::locate(&tiny()).unwrap(), tiny());
}

#[test]
fn a_checkpoint_is_downloaded_once_into_the_shared_cache() {
    let mock = mock();
    let directory = mock.hub().download(&id()).unwrap();
    let expected = mock.cache.path().join("hub/models--org--tiny/snapshots").join(COMMIT);
    assert_eq!(directory, expected);
    for name in ["config.json", "model.safetensors"] {
        assert_eq!(std::fs::read(directory.join(name)).unwrap(), std::fs::read(tiny().join(name)).unwrap());
    }
    assert!(directory.join("additional_chat_templates/tool_use.jinja").exists());
    assert!(!directory.join("README.md").exists() && !directory.join("consolidated.safetensors").exists());
    let names: Vec<_> = mock.downloads().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    mlxport::models::load(&directory).unwrap();
    // Again, and without the hub.
    assert_eq!(mock.hub().download(&id()).unwrap(), directory);
    assert_eq!(mock.downloads().len(), 3);
    let asked = mock.state.lock().unwrap().asked.len();
    let offline = Hub { offline: true, ..mock.hub() };
    assert_eq!(offline.download(&id()).unwrap(), directory);
    assert_eq!(mock.state.lock().unwrap().asked.len(), asked);
    let away = Hub { endpoint: "http://127.0.0.1:9".to_owned(), ..mock.hub() };
    assert_eq!(away.download(&id()).unwrap(), directory);
    // A file that another revision had is taken from there.
    std::fs::remove_file(directory.join("model.safetensors")).unwrap();
    mock.hub().download(&id()).unwrap();
    assert_eq!(mock.downloads().len(), 3);
    mlxport::models::load(&directory).unwrap();
}

#[test]
fn only_the_shards_of_the_index_are_downloaded() {
    let index = json!({ "metadata": {}, "weight_map": { "a": "model-00001-of-00001.safetensors" } });
    let mock = Mock::new()
        .with("config.json", "{}", false)
        .with("model.safetensors.index.json", index.to_string(), false)
        .with("model-00001-of-00001.safetensors", "a shard", true)
        .with("model.safetensors", "all of it again", true);
    let directory = mock.hub().download(&id()).unwrap();
    assert!(directory.join("model-00001-of-00001.safetensors").exists());
    assert!(!directory.join("model.safetensors").exists());
}

#[test]
fn a_broken_download_is_taken_up_where_it_ended() {
    let mock = mock();
    mock.state.lock().unwrap().breaks = 1;
    let directory = mock.hub().download(&id()).unwrap();
    let expected = std::fs::read(tiny().join("model.safetensors")).unwrap();
    assert_eq!(std::fs::read(directory.join("model.safetensors")).unwrap(), expected);
    let ranges: Vec<_> =
        mock.downloads().into_iter().filter(|(name, _)| name == "model.safetensors").collect();
    let half = expected.len() - expected.len() / 2;
    let ranges: Vec<_> = ranges.iter().map(|(_, range)| range.as_str()).collect();
    assert_eq!(ranges, ["bytes=0-".to_owned(), format!("bytes={half}-")]);
}

#[test]
fn what_an_earlier_program_left_is_taken_up_or_replaced() {
    // (what is left of the file, whether it is damaged, whether ranges are ignored, what is asked for)
    for (left, damaged, whole, asked) in [
        (100, false, false, &["bytes=100-"][..]),
        (100, false, true, &["bytes=100-"]),
        (100, true, false, &["bytes=100-", "bytes=0-"]),
        (usize::MAX, false, false, &[]),
        (usize::MAX, true, false, &["bytes=0-"]),
    ] {
        let mock = mock();
        mock.state.lock().unwrap().whole = whole;
        let bytes = std::fs::read(tiny().join("model.safetensors")).unwrap();
        let blobs = mock.cache.path().join("hub/models--org--tiny/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        let part = blobs.join(digest(&bytes, true)).with_extension("part");
        let mut before = bytes[..left.min(bytes.len())].to_vec();
        before[0] ^= u8::from(damaged);
        std::fs::write(part, before).unwrap();
        let directory = mock.hub().download(&id()).unwrap();
        assert_eq!(std::fs::read(directory.join("model.safetensors")).unwrap(), bytes);
        let all = mock.downloads().into_iter().filter(|(name, _)| name == "model.safetensors");
        assert_eq!(all.map(|(_, range)| range).collect::<Vec<_>>(), asked);
    }
}

#[test]
fn files_that_are_not_what_the_hub_says_are_removed() {
    let mock = mock();
    mock.state.lock().unwrap().corrupt = true;
    let error = mock.hub().download(&id()).unwrap_err().to_string();
    assert!(error.contains("digest") && error.contains("model.safetensors"), "{error}");
    let bytes = std::fs::read(tiny().join("model.safetensors")).unwrap();
    let blob = mock.cache.path().join("hub/models--org--tiny/blobs").join(digest(&bytes, true));
    assert!(!blob.exists(), "it never has its name");
    mock.state.lock().unwrap().corrupt = false;
    mlxport::models::load(&mock.hub().download(&id()).unwrap()).unwrap();
}

#[test]
fn a_token_opens_repositories() {
    let mock = mock();
    mock.state.lock().unwrap().token = Some("secret");
    let error = mock.hub().download(&id()).unwrap_err().to_string();
    assert!(error.contains("HF_TOKEN"), "{error}");
    let error = Hub { offline: true, ..mock.hub() }.download(&id()).unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
    Hub { token: Some("secret".to_owned()), ..mock.hub() }.download(&id()).unwrap();
    // It stays with the hub's host.
    let asked = mock.state.lock().unwrap().asked.clone();
    let elsewhere: Vec<_> = asked.iter().filter(|(path, ..)| path.starts_with("/cdn/")).collect();
    assert!(!elsewhere.is_empty() && elsewhere.iter().all(|(.., token)| !token), "{elsewhere:?}");
    let error = mock.hub().download(&Id::parse("org/other").unwrap()).unwrap_err().to_string();
    assert!(error.contains("org/other"), "{error}");
}

#[test]
fn a_gguf_file_is_taken_where_one_is_meant() {
    let gguf = std::fs::read(tiny().join("../../gguf/llama.gguf")).unwrap();
    let named = |file: &str| Id::parse(&format!("org/tiny:{file}")).unwrap();
    let mock = mock().with("a.gguf", gguf.clone(), true).with("b.gguf", "another", true);
    let path = mock.hub().download(&named("a.gguf")).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), gguf);
    assert_eq!(mock.downloads().len(), 1);
    assert_eq!(Hub { offline: true, ..mock.hub() }.download(&named("a.gguf")).unwrap(), path);
    mlxport::models::load(&path).unwrap();
    let error = mock.hub().download(&named("c.gguf")).unwrap_err().to_string();
    assert!(error.contains("a.gguf, b.gguf"), "{error}");
    assert!(Hub { offline: true, ..mock.hub() }.download(&named("b.gguf")).is_err());
    // Where there are safetensors, they are the checkpoint.
    assert!(mock.hub().download(&id()).unwrap().join("model.safetensors").exists());

    let mock = Mock::new().with("a.gguf", gguf.clone(), true).with("config.json", "{}", false);
    let path = mock.hub().download(&id()).unwrap();
    assert!(path.ends_with("a.gguf"));
    mlxport::models::load(&path).unwrap();
    let error = mock.with("b.gguf", gguf, true).hub().download(&id()).unwrap_err().to_string();
    assert!(error.contains("org/tiny:FILE"), "{error}");
    for text in ["org/tiny:", "org/tiny:x.bin", "org/tiny:../x.gguf", "org/tiny:/x.gguf", "tiny:x.gguf"] {
        assert_eq!(Id::parse(text), None, "{text}");
    }
    assert!(Id::parse("org/tiny@v1:Q4/x.gguf").is_some());
}

#[test]
fn all_parts_of_a_gguf_file_are_taken() {
    let name = |at: usize| format!("parts-{at:05}-of-00003.gguf");
    let part = |at: usize| std::fs::read(tiny().join("../../gguf").join(name(at))).unwrap();
    let mock =
        |parts: &[usize]| parts.iter().fold(Mock::new(), |mock, &at| mock.with(&name(at), part(at), true));
    let whole = mock(&[1, 2, 3]);
    let path = whole.hub().download(&id()).unwrap();
    assert_eq!(mlxport::checkpoint::Gguf::open(&path).unwrap().keys().count(), 5);
    let named = Id::parse(&format!("org/tiny:{}", name(1))).unwrap();
    assert_eq!(whole.hub().download(&named).unwrap(), path);
    assert_eq!(whole.downloads().len(), 3);
    let error = mock(&[1, 3]).hub().download(&named).unwrap_err().to_string();
    assert!(error.contains(&format!("has no {}", name(2))), "{error}");
    let error = whole.with("b.gguf", "another", true).hub().download(&id()).unwrap_err().to_string();
    assert!(error.contains("several GGUF files"), "{error}");
}

#[cfg(feature = "cli")]
#[test]
fn commands_take_ids_as_the_environment_says() {
    let mock = mock();
    mock.state.lock().unwrap().token = Some("secret");
    let run = |offline: &str| {
        let mut command = assert_cmd::Command::cargo_bin("mlxport").unwrap();
        command.args([
            "generate",
            "--model",
            "org/tiny",
            "--prompt-ids",
            "1,2,3",
            "--max-tokens",
            "2",
            "--json",
        ]);
        command
            .env("HF_ENDPOINT", &mock.endpoint)
            .env("HF_HOME", mock.cache.path())
            .env("HF_TOKEN", "secret");
        command.env_remove("HF_HUB_CACHE").env("HF_HUB_OFFLINE", offline);
        command
    };
    let refused = run("1").output().unwrap();
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(
        !refused.status.success() && error.contains("org/tiny") && error.contains("HF_HUB_OFFLINE"),
        "{error}"
    );
    run("0").assert().success();
    let asked = mock.state.lock().unwrap().asked.len();
    run("1").assert().success();
    assert_eq!(mock.state.lock().unwrap().asked.len(), asked);
    let mut listed = assert_cmd::Command::cargo_bin("mlxport").unwrap();
    let listed = listed.args(["models", "--json"]).output().unwrap();
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&listed.stdout).unwrap();
    let types: Vec<_> = rows.iter().map(|row| row["model_type"].as_str().unwrap()).collect();
    assert_eq!(types.len(), mlxport::models::MODEL_TYPES.len());
    assert!(types.is_sorted() && types.contains(&"llama"));
}
