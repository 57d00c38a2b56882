//! Checkpoints by their Hugging Face id, in the cache that Hugging Face's own programs use.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use indicatif::ProgressBar;
use serde::Deserialize;
use sha2::Digest;
use ureq::Agent;
use ureq::config::RedirectAuthHeaders;
use ureq::http::header::{AUTHORIZATION, CONTENT_RANGE, RANGE};

use crate::checkpoint::gguf;
use crate::error::{Error, Result};
use crate::io::{layout::INDEX, read};

/// How often a download is taken up again.
const RETRIES: usize = 4;
/// The longest index of shards, in bytes.
const MAX_INDEX: u64 = 256 << 20;

/// A checkpoint: `model` itself if there is one, or where the files of the id `owner/name` or
/// `owner/name@revision` are, after those that are missing were downloaded. The id may end with the name of a
/// GGUF file of the repository: `owner/name:file.gguf`.
pub fn locate(model: &Path) -> Result<PathBuf> {
    if model.exists() {
        return Ok(model.to_path_buf());
    }
    match model.to_str().and_then(Id::parse) {
        Some(id) => Hub::from_env()?.download(&id),
        None => Err(Error::io(model, "no such directory, and not an id such as `owner/name` either")),
    }
}

/// A repository, a revision of it, and the GGUF file that is meant if one was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Id {
    repository: String,
    revision: String,
    file: Option<String>,
}

impl Id {
    /// `owner/name`, or `owner/name@revision`; either may be followed by `:file.gguf`.
    pub fn parse(text: &str) -> Option<Self> {
        let (text, file) = text.split_once(':').map_or((text, None), |(text, file)| (text, Some(file)));
        let (repository, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (owner, name) = repository.split_once('/')?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_name = |part: &str| {
            !part.is_empty() && part.len() <= 96 && part.chars().all(plain) && !part.starts_with('.')
        };
        let is_revision = !revision.is_empty() && revision.split('/').all(is_name);
        let is_file = |file: &str| is_gguf(file) && file.split('/').all(is_name) && !file.contains("..");
        let right = is_name(owner) && is_name(name) && is_revision && !text.contains("..");
        (right && file.is_none_or(is_file)).then(|| Self {
            repository: repository.to_owned(),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }

    fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repository.clone(), RepoType::Model, revision.to_owned())
    }
}

/// Where checkpoints come from, and where they are kept.
#[derive(Debug, Clone)]
pub struct Hub {
    /// The address of the hub.
    pub endpoint: String,
    /// The directory that holds `models--owner--name`.
    pub cache: PathBuf,
    /// What opens repositories that are not public.
    pub token: Option<String>,
    /// Take only what is in the cache.
    pub offline: bool,
}

/// What the hub says of a revision.
#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
}

impl Sibling {
    /// The name of the blob: the SHA-256 of large files, and git's SHA-1 of others.
    fn digest(&self) -> Option<&str> {
        let digest = self.lfs.as_ref().map(|lfs| lfs.sha256.as_str()).or(self.blob_id.as_deref())?;
        (matches!(digest.len(), 40 | 64) && digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .then_some(digest)
    }
}

impl Hub {
    /// As the environment has it: `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH`
    /// and `HF_HUB_OFFLINE`.
    pub fn from_env() -> Result<Self> {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let path = |name: &str| var(name).map(PathBuf::from);
        let user = || {
            let cache = path("XDG_CACHE_HOME").or_else(|| Some(std::env::home_dir()?.join(".cache")))?;
            Some(cache.join("huggingface"))
        };
        let home = path("HF_HOME").or_else(user);
        let home =
            home.ok_or_else(|| Error::argument("HF_HOME", "is not set, and there is no home directory"))?;
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = var("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file).ok());
        let on = |value: String| matches!(value.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
        Ok(Self {
            endpoint: var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            cache: path("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub")),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            offline: var("HF_HUB_OFFLINE").is_some_and(on),
        })
    }

    /// The directory with the files of a checkpoint: configs, weights, tokenizer and chat templates; of a
    /// repository without safetensors its GGUF file, or the one that the id names. What is missing is
    /// downloaded; what an earlier attempt has left is taken up where it ended, and every file is checked
    /// against the hub's digest of it before it has its name. A token goes to the hub's host alone.
    ///
    /// Where the hub can't be reached, what the cache has of the revision will do.
    pub fn download(&self, id: &Id) -> Result<PathBuf> {
        if self.offline {
            return self.cached(id).ok_or_else(|| {
                let message = format!("is not in {}, and HF_HUB_OFFLINE is set", self.cache.display());
                Error::argument("model", format!("{} {message}", id.repository))
            });
        }
        let info = match self.info(id) {
            Ok(info) => info,
            Err((error, unreachable)) => {
                return match self.cached(id).filter(|_| unreachable) {
                    Some(directory) => {
                        tracing::warn!("{error}; taking what is in the cache");
                        Ok(directory)
                    }
                    None => Err(error),
                };
            }
        };
        if info.sha.len() != 40 || !info.sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(failed(id, "the hub names no commit"));
        }
        let repo = self.api(id, &info.sha)?;
        let directory = self.snapshot(id, &info.sha);
        let parts = gguf_parts(id, &info.siblings)?;
        if let Some(first) = parts.first() {
            parts.iter().try_for_each(|file| self.fetch(id, &repo, &directory, file))?;
            self.name(id, &info.sha)?;
            return Ok(directory.join(&first.rfilename));
        }
        let (index, others): (Vec<_>, Vec<_>) = info
            .siblings
            .iter()
            .filter(|file| is_needed(&file.rfilename))
            .partition(|file| file.rfilename == INDEX);
        for file in &index {
            self.fetch(id, &repo, &directory, file)?;
        }
        let shards = if index.is_empty() { None } else { Some(shards(&directory.join(INDEX))?) };
        for file in others {
            let name = &file.rfilename;
            let is_weight = name.ends_with(".safetensors");
            if !is_weight || shards.as_ref().is_none_or(|shards| shards.contains(name)) {
                self.fetch(id, &repo, &directory, file)?;
            }
        }
        self.name(id, &info.sha)?;
        Ok(directory)
    }

    /// Notes which commit the revision is.
    fn name(&self, id: &Id, commit: &str) -> Result<()> {
        let named = Cache::new(self.cache.clone()).repo(id.at(&id.revision)).create_ref(commit);
        named.map_err(|e| Error::io(&self.cache, e))
    }

    /// The snapshot of a revision in the cache.
    fn cached(&self, id: &Id) -> Option<PathBuf> {
        let name = self.repository(id).join("refs").join(&id.revision);
        let commit = std::fs::read_to_string(name).unwrap_or_else(|_| id.revision.clone());
        let directory = self.snapshot(id, commit.trim());
        match &id.file {
            Some(file) => Some(directory.join(file)).filter(|path| path.exists()),
            None if directory.join("config.json").exists() => Some(directory),
            None if directory.exists() => gguf::find(&directory).ok().flatten(),
            None => None,
        }
    }

    fn repository(&self, id: &Id) -> PathBuf {
        self.cache.join(id.at(&id.revision).folder_name())
    }

    fn snapshot(&self, id: &Id, commit: &str) -> PathBuf {
        self.repository(id).join("snapshots").join(commit)
    }

    fn api(&self, id: &Id, revision: &str) -> Result<ApiRepo> {
        let builder = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.trim_end_matches('/').to_owned())
            .with_token(self.token.clone())
            .with_retries(RETRIES)
            .with_user_agent("mlxport", env!("CARGO_PKG_VERSION"));
        Ok(builder.build().map_err(|e| failed(id, e))?.repo(id.at(revision)))
    }

    /// What the hub says, or why it says nothing and whether that is for want of a connection.
    fn info(&self, id: &Id) -> Result<Info, (Error, bool)> {
        let repo = self.api(id, &id.revision).map_err(|error| (error, false))?;
        let told = |error: ureq::Error| match error {
            ureq::Error::StatusCode(code @ (401 | 403 | 404)) => {
                let message = "there is no such repository or revision, or HF_TOKEN does not open it";
                (failed(id, format!("{message} (status {code})")), false)
            }
            ureq::Error::StatusCode(code) => (failed(id, format!("status {code}")), code >= 500),
            error => (failed(id, format!("{}: {error}", self.endpoint)), true),
        };
        let mut response = repo.info_request().query("blobs", "true").call().map_err(told)?;
        response.body_mut().read_json().map_err(told)
    }

    /// Downloads a file unless it is there.
    fn fetch(&self, id: &Id, repo: &ApiRepo, directory: &Path, file: &Sibling) -> Result<()> {
        let (name, pointer) = (&file.rfilename, directory.join(&file.rfilename));
        if pointer.exists() {
            return Ok(());
        }
        let digest = file.digest().ok_or_else(|| failed(id, format!("{name} has no digest")))?;
        let blob = self.repository(id).join("blobs").join(digest);
        let length = |path: &Path| std::fs::metadata(path).map(|data| data.len()).ok();
        if length(&blob).is_none() || length(&blob) != file.size {
            let bar = if std::io::stderr().is_terminal() {
                ProgressBar::new(file.size.unwrap_or(0))
            } else {
                ProgressBar::hidden()
            };
            self.load(&repo.url(name), digest, file.size, &blob, &bar)
                .map_err(|cause| failed(id, format!("{name}: {cause}")))?;
            bar.finish_and_clear();
        }
        let parent = pointer.parent().unwrap_or(directory);
        std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
        let levels = "../".repeat(2 + name.matches('/').count());
        link(&blob, Path::new(&format!("{levels}blobs/{digest}")), &pointer)
            .map_err(|e| Error::io(&pointer, e))
    }

    /// Downloads a blob, after what there is of it already.
    fn load(&self, url: &str, digest: &str, size: Option<u64>, blob: &Path, bar: &ProgressBar) -> Result<()> {
        let folder = blob.parent().unwrap_or(blob);
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let (part, lock) = (blob.with_extension("part"), blob.with_extension("lock"));
        // One program at a time.
        let lock = File::create(&lock)
            .and_then(|file| file.lock().map(|()| file))
            .map_err(|e| Error::io(lock, e))?;
        let agent: Agent =
            Agent::config_builder().redirect_auth_headers(RedirectAuthHeaders::SameHost).build().into();
        let mut attempt = 0;
        loop {
            let length = std::fs::metadata(&part).map_or(0, |data| data.len());
            if size != Some(length)
                && let Err((error, again)) = self.append(&agent, url, &part, size, bar)
            {
                if !again || attempt == RETRIES {
                    return Err(error);
                }
                std::thread::sleep(Duration::from_millis(300 << attempt));
                attempt += 1;
                continue;
            }
            match check(&part, digest) {
                Ok(()) => break,
                Err(error) => {
                    std::fs::remove_file(&part).map_err(|e| Error::io(&part, e))?;
                    // What was there before may have been wrong.
                    if length == 0 || attempt == RETRIES {
                        return Err(error);
                    }
                    attempt += 1;
                }
            }
        }
        std::fs::rename(&part, blob).map_err(|e| Error::io(blob, e))?;
        drop(lock);
        Ok(())
    }

    /// Asks for the rest of a file. Fails with whether another attempt may do.
    fn append(
        &self,
        agent: &Agent,
        url: &str,
        part: &Path,
        size: Option<u64>,
        bar: &ProgressBar,
    ) -> Result<(), (Error, bool)> {
        let io = |e: std::io::Error| (Error::io(part, e), false);
        let mut file = OpenOptions::new().create(true).append(true).open(part).map_err(io)?;
        let mut start = file.metadata().map_err(io)?.len();
        if size.is_none_or(|size| start > size) {
            file.set_len(0).map_err(io)?;
            start = 0;
        }
        let mut request = agent.get(url).header(RANGE, format!("bytes={start}-"));
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let told = |error: ureq::Error| {
            let again = !matches!(error, ureq::Error::StatusCode(code) if code < 500 && code != 429);
            (Error::argument("model", error.to_string()), again)
        };
        let response = request.call().map_err(told)?;
        let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        let follows = range.is_some_and(|range| range.starts_with(&format!("bytes {start}-")));
        // A server without ranges sends the whole.
        if response.status() != 206 || !follows {
            file.set_len(0).map_err(io)?;
            start = 0;
        }
        bar.set_position(start);
        let rest = size.map_or(u64::MAX, |size| size - start);
        let mut body = bar.wrap_read(response.into_body().into_reader()).take(rest);
        let read = std::io::copy(&mut body, &mut file).map_err(|e| (Error::io(part, e), true))?;
        match size.is_some_and(|size| start + read != size) {
            true => Err((Error::argument("model", format!("ended after {} bytes", start + read)), true)),
            false => Ok(()),
        }
    }
}

#[cfg(unix)]
fn link(_: &Path, relative: &Path, pointer: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(relative, pointer)
}

#[cfg(not(unix))]
fn link(blob: &Path, _: &Path, pointer: &Path) -> std::io::Result<()> {
    std::fs::copy(blob, pointer).map(|_| ())
}

fn is_gguf(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".gguf")
}

/// The parts of the GGUF file that is meant: the one that the id names, or the only one of a repository without
/// safetensors.
fn gguf_parts<'a>(id: &Id, files: &'a [Sibling]) -> Result<Vec<&'a Sibling>> {
    let found: Vec<&Sibling> = files.iter().filter(|file| is_gguf(&file.rfilename)).collect();
    let names = || found.iter().map(|file| file.rfilename.as_str()).collect::<Vec<_>>().join(", ");
    let named = |name: &str| {
        let file = found.iter().find(|file| file.rfilename == name);
        file.copied().ok_or_else(|| failed(id, format!("has no {name}; its GGUF files: {}", names())))
    };
    let with_parts = |name: &str| match gguf::numbered(name) {
        Some((_, _, of)) => {
            (1..=of).map_while(|n| gguf::part_name(name, n)).map(|name| named(&name)).collect()
        }
        None => Ok(vec![named(name)?]),
    };
    if let Some(name) = &id.file {
        return with_parts(name);
    }
    let has_weights =
        files.iter().any(|file| is_needed(&file.rfilename) && file.rfilename.ends_with(".safetensors"));
    let wholes: BTreeSet<String> = found
        .iter()
        .map(|file| gguf::part_name(&file.rfilename, 1).unwrap_or_else(|| file.rfilename.clone()))
        .collect();
    match (wholes.first(), wholes.len()) {
        _ if has_weights => Ok(Vec::new()),
        (None, _) => Ok(Vec::new()),
        (Some(only), 1) => with_parts(only),
        _ => {
            let message = format!("has several GGUF files: name one as {}:FILE: {}", id.repository, names());
            Err(failed(id, message))
        }
    }
}

/// Whether a file of a repository belongs to the model, its tokenizer or its chat templates.
fn is_needed(name: &str) -> bool {
    if let Some(template) = name.strip_prefix("additional_chat_templates/") {
        return template.ends_with(".jinja") && !template.contains('/');
    }
    match name.rsplit_once('.') {
        _ if name.contains(['/', '\\', ':']) || name.starts_with('.') => false,
        Some((stem, "safetensors")) => stem.starts_with("model"),
        Some((_, extension)) => matches!(extension, "json" | "jinja" | "model" | "tiktoken"),
        None => false,
    }
}

/// The files that an index of shards names.
fn shards(index: &Path) -> Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index: Index =
        serde_json::from_slice(&read::whole(index, MAX_INDEX)?).map_err(|e| Error::invalid(index, e))?;
    Ok(index.weight_map.into_values().collect())
}

/// Fails unless the file has the digest: SHA-256, or SHA-1 as git computes it.
fn check(path: &Path, digest: &str) -> Result<()> {
    fn of<D: Digest>(mut hasher: D, mut file: File) -> std::io::Result<String> {
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                read => hasher.update(&buffer[..read]),
            }
        }
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let found = if digest.len() == 64 {
        of(sha2::Sha256::new(), file)
    } else {
        of(sha1::Sha1::new().chain_update(format!("blob {length}\0")), file)
    };
    let found = found.map_err(|e| Error::io(path, e))?;
    if found != digest.to_lowercase() {
        let message = format!("has the digest {found}, not {digest}, and was removed; try again");
        return Err(Error::invalid(path, message));
    }
    Ok(())
}

fn failed(id: &Id, cause: impl std::fmt::Display) -> Error {
    Error::argument("model", format!("{}@{}: {cause}", id.repository, id.revision))
}
