//! Every architecture against mlx-lm and transformers: `tests/fixtures/zoo`, made by `tests/oracle/zoo.py`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use mlxport::cache::{Cache, LayerCache};
use mlxport::checkpoint::Config;
use mlxport::kernels;
use mlxport::models::{self, LanguageModel};
use mlxport::ops::Quantization;
use mlxport::port::{Recipe, Rewrite, rewrite};
use mlxport::{Array, Dtype, ops};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::recipe;

/// The largest error of logits over their standard deviation: in `float32`, and else.
const EXACT: f64 = 2e-4;
const REDUCED: f64 = 2e-3;

/// How much further from `float32` than the source logits in half precision may be, as root mean squares.
const ROUNDING: f64 = 1.05;

/// How the positions are cut for a pass with a cache; as in `zoo.py`.
const PIECES: [i32; 5] = [5, 1, 6, 1, 1];

#[derive(Deserialize)]
pub struct Fixture {
    pub case: String,
    framework: String,
    pub config: String,
    config_legacy: Option<String>,
    seed: u64,
    pub ids: Vec<Vec<i32>>,
    columns: Vec<i32>,
    pub std: f64,
    noise: f64,
    greedy: Vec<i32>,
    logits: String,
    /// Where the source has other logits with a cache.
    cached_logits: Option<String>,
    tensors: Vec<String>,
}

impl Fixture {
    pub fn all() -> Vec<Self> {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/zoo");
        let mut files: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.iter().map(|file| serde_json::from_slice(&fs::read(file).unwrap()).unwrap()).collect()
    }

    pub fn tolerance(&self) -> f64 {
        let limit = if self.is_exact() { EXACT } else { REDUCED };
        limit.max(20.0 * self.noise / self.std)
    }

    /// Whether every weight is `float32`.
    pub fn is_exact(&self) -> bool {
        self.tensors.iter().all(|line| line.contains(" F32 "))
    }

    /// Whether weights are `float16` or `bfloat16`: then MLX's rounding of each step is in the logits, and
    /// kernels that round once are held to be no further from what the same weights give in `float32`.
    fn is_half(&self) -> bool {
        self.tensors.iter().any(|line| line.contains(" F16 ") || line.contains(" BF16 "))
    }

    /// Writes the checkpoint.
    pub fn checkpoint(&self, config: &str) -> tempfile::TempDir {
        let tmp = tempfile::tempdir().unwrap();
        recipe::write(tmp.path(), config, &self.tensors, self.seed);
        tmp
    }

    /// Writes a checkpoint of other layers: each has the shapes of that one of its own which `layers` names.
    pub fn with_layers(&self, config: &str, layers: &[usize]) -> tempfile::TempDir {
        const NAME: &str = "model.layers.";
        let (inner, outer): (Vec<&String>, Vec<&String>) =
            self.tensors.iter().partition(|line| line.starts_with(NAME));
        let of_layer = |(i, from): (usize, &usize)| {
            let prefix = format!("{NAME}{from}.");
            let parts = inner.iter().filter_map(move |line| line.strip_prefix(&prefix));
            parts.map(|part| format!("{NAME}{i}.{part}")).collect::<Vec<_>>()
        };
        let lines: Vec<String> =
            outer.into_iter().cloned().chain(layers.iter().enumerate().flat_map(of_layer)).collect();
        let tmp = tempfile::tempdir().unwrap();
        recipe::write(tmp.path(), config, &lines, self.seed);
        tmp
    }

    fn expected(&self, packed: &str) -> Vec<f32> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(packed).unwrap();
        bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
    }

    fn ids(&self) -> Array {
        let (rows, length) = (self.ids.len() as i32, self.ids[0].len() as i32);
        Array::from_slice(&self.ids.concat(), &[rows, length]).unwrap()
    }

    /// The recorded columns of the logits of a pass in these pieces; without any, in one without a cache.
    fn logits(&self, model: &dyn LanguageModel, pieces: &[i32]) -> mlxport::Result<Vec<f32>> {
        self.logits_with(model, pieces, |_| Ok(()))
    }

    /// The same with a cache that `change` changes after each piece.
    fn logits_with(
        &self,
        model: &dyn LanguageModel,
        pieces: &[i32],
        change: impl Fn(&mut Cache) -> mlxport::Result<()>,
    ) -> mlxport::Result<Vec<f32>> {
        let ids = self.ids();
        let mut cache = if pieces.is_empty() { model.make_cache().stateless() } else { model.make_cache() };
        let whole = [ids.shape()[1]];
        cache.expect(whole[0]);
        let (mut start, mut parts) = (0, Vec::new());
        for length in if pieces.is_empty() { &whole[..] } else { pieces } {
            let piece = super::columns(&ids, start, start + length);
            parts.push(model.forward(&piece, &mut cache)?);
            change(&mut cache)?;
            start += length;
        }
        let logits = ops::astype(&ops::concatenate(&parts, 1)?, Dtype::Float32)?;
        let columns = Array::from_slice(&self.columns, &[self.columns.len() as i32])?;
        ops::take(&logits, &columns, -1)?.to_vec()
    }

    /// How much further from `float32` the kernels' logits are than those of the source, if they are.
    fn rounding_failures(&self, dir: &Path) -> mlxport::Result<Vec<String>> {
        let mut exact = models::load(dir)?;
        exact.set_dtype(Dtype::Float32)?;
        let exact = self.logits(&*exact, &[])?;
        let model = models::load(dir)?;
        let allowed = ROUNDING * rms_difference(&self.expected(&self.logits), &exact);
        let mut failures = Vec::new();
        for pieces in [&[][..], &PIECES, &[1; 14]] {
            let error = rms_difference(&self.logits(&*model, pieces)?, &exact);
            if error.is_nan() || error > allowed {
                failures.push(format!("in {pieces:?}: {error:.2e} from float32, above {allowed:.2e}"));
            }
        }
        Ok(failures)
    }

    /// What differs from the source, if anything does.
    fn failures(&self, dir: &Path) -> Vec<String> {
        if !self.is_half() {
            return self.differences(dir);
        }
        let mut failures = kernels::force(kernels::Path::Reference, || self.differences(dir)).unwrap();
        failures.extend(self.rounding_failures(dir).unwrap_or_else(|error| vec![error.to_string()]));
        failures
    }

    fn differences(&self, dir: &Path) -> Vec<String> {
        let model = match models::load(dir) {
            Ok(model) => model,
            Err(error) => return vec![error.to_string()],
        };
        let mut failures = Vec::new();
        let full = self.expected(&self.logits);
        let cached = self.cached_logits.as_ref().map(|packed| self.expected(packed));
        // Where the two differ, the pass with a cache is what the model generates by.
        let passes = match &cached {
            Some(cached) => vec![(&PIECES[..], cached)],
            None => vec![(&[][..], &full), (&PIECES[..], &full), (&[1; 14][..], &full)],
        };
        for (pieces, expected) in passes {
            match self.logits(&*model, pieces) {
                Ok(logits) => {
                    let error = largest_difference(&logits, expected) / self.std;
                    if error.is_nan() || error > self.tolerance() {
                        failures.push(format!("in {pieces:?}: {error:.1e}, above {:.1e}", self.tolerance()));
                    }
                }
                Err(error) => failures.push(format!("in {pieces:?}: {error}")),
            }
        }
        if cached.is_none() {
            let greedy = self.greedy(&*model);
            if greedy != self.greedy {
                failures.push(format!("greedy tokens {greedy:?}, not {:?}", self.greedy));
            }
        }
        failures
    }

    fn greedy(&self, model: &dyn LanguageModel) -> Vec<i32> {
        let mut cache = model.make_cache();
        let length = self.ids[0].len() as i32;
        cache.expect(length + self.greedy.len() as i32 - 1);
        let mut next = super::columns(&self.ids(), 0, length).index(0..1).unwrap();
        let mut tokens = Vec::new();
        while tokens.len() < self.greedy.len() {
            let logits = model.forward(&next, &mut cache).unwrap();
            let token = ops::argmax(&logits.index((0, -1)).unwrap(), 0, false).unwrap();
            let token = ops::astype(&token, Dtype::Int32).unwrap();
            tokens.push(token.item::<i32>().unwrap());
            next = ops::reshape(&token, &[1, 1]).unwrap();
        }
        tokens
    }
}

pub fn largest_difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| if a == b { 0.0 } else { f64::from((a - b).abs()) });
    differences.fold(0.0, |worst, d| if d.is_nan() || worst < d { d } else { worst })
}

fn rms_difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (squares / a.len() as f64).sqrt()
}

#[test]
fn every_architecture_gives_the_logits_of_its_source() {
    let mut failed = Vec::new();
    for fixture in Fixture::all() {
        let configs = [Some(&fixture.config), fixture.config_legacy.as_ref()];
        for (config, spelling) in configs.into_iter().zip(["", " (older config)"]) {
            let Some(config) = config else { continue };
            let tmp = fixture.checkpoint(config);
            let name = format!("{} of {}{spelling}", fixture.case, fixture.framework);
            failed.extend(fixture.failures(tmp.path()).iter().map(|failure| format!("{name}: {failure}")));
        }
    }
    assert!(failed.is_empty(), "{} failures:\n{}", failed.len(), failed.join("\n"));
}

/// Keys and values in 8 bits move logits little, whatever attends to them: with sinks and windows, caps, blocks. (What
/// attends is held to f64 in `tests/kernels`.)
#[test]
fn quantized_keys_and_values_stay_close() {
    const CLOSE: f64 = 0.05;
    let cases = ["gemma2__q8g32", "gpt_oss__q8g32", "phi3small__wide"];
    for fixture in Fixture::all().iter().filter(|fixture| cases.contains(&&*fixture.case)) {
        let tmp = fixture.checkpoint(&fixture.config);
        let model = models::load_as(tmp.path(), Dtype::Float32).unwrap();
        let exact = fixture.logits(&*model, &PIECES).unwrap();
        let quantized = fixture.logits_with(&*model, &PIECES, |cache| {
            cache.quantize(Quantization::affine(32, 8))?;
            assert!(cache.layers().iter().any(|layer| matches!(layer, LayerCache::Quantized(_))));
            Ok(())
        });
        let error = largest_difference(&quantized.unwrap(), &exact) / fixture.std;
        assert!(error > 0.0 && error < CLOSE, "{}: {error}", fixture.case);
    }
}

/// An error, or a value that nothing reads.
#[test]
fn a_zero_in_a_config_is_no_panic() {
    let (mut seen, mut panics, mut refused) = (BTreeSet::new(), Vec::new(), 0);
    for fixture in Fixture::all() {
        let config: serde_json::Map<String, Value> = serde_json::from_str(&fixture.config).unwrap();
        if !seen.insert(models::module_of(config["model_type"].as_str().unwrap()).to_owned()) {
            continue;
        }
        let tmp = fixture.checkpoint(&fixture.config);
        for key in config.iter().filter(|(_, value)| value.is_u64()).map(|(key, _)| key) {
            let mut config = config.clone();
            config[key] = json!(0);
            fs::write(tmp.path().join("config.json"), Value::Object(config).to_string()).unwrap();
            match std::panic::catch_unwind(|| models::load(tmp.path()).is_err()) {
                Ok(error) => refused += usize::from(error),
                Err(_) => panics.push(format!("{}: {key}", fixture.case)),
            }
        }
    }
    assert!(panics.is_empty(), "{panics:?}");
    assert!(refused > seen.len(), "{refused}");
}

/// An expert that is missing, and everything else that does not fit, each with the name nearest to it.
#[test]
fn missing_experts_are_told_with_all_that_does_not_fit() {
    let fixture =
        Fixture::all().into_iter().find(|f| f.case == "qwen3_moe" && f.framework.starts_with("mlx"));
    let fixture = fixture.unwrap();
    let config: Value = serde_json::from_str(&fixture.config).unwrap();
    let told = |change: &dyn Fn(&mut BTreeMap<String, Array>)| {
        let tmp = fixture.checkpoint(&fixture.config);
        let file = tmp.path().join("model.safetensors");
        let (weights, metadata) = mlxport::io::load_safetensors(&file).unwrap();
        let mut split = BTreeMap::new();
        for (name, weight) in weights {
            let Some((layer, part)) = name.split_once(".switch_mlp.") else {
                split.insert(name, weight);
                continue;
            };
            for i in 0..weight.shape()[0] {
                split.insert(format!("{layer}.experts.{i}.{part}"), weight.index(i).unwrap());
            }
        }
        change(&mut split);
        let weights = split.iter().map(|(name, array)| (name.as_str(), array));
        mlxport::io::save_safetensors(&file, weights, &metadata).unwrap();
        models::load(tmp.path()).map(|_| ()).map_err(|error| error.to_string())
    };
    told(&|_| {}).unwrap();
    let layer = config["num_hidden_layers"].as_i64().unwrap() - 1;
    let expert = |part: &str| format!("model.layers.{layer}.mlp.experts.1.{part}.weight");
    let misnamed = expert("up_proj").replace("experts", "expert");
    let error = told(&|weights| {
        let up = weights.remove(&expert("up_proj")).unwrap();
        weights.insert(misnamed.clone(), up);
        weights.remove(&expert("down_proj")).unwrap();
        weights.remove("model.norm.weight").unwrap();
    });
    let error = error.unwrap_err();
    for told in [
        format!("`{}` (there is `{misnamed}`)", expert("up_proj")),
        format!("`{}`", expert("down_proj")),
        "missing weight `model.norm.weight` (there ".to_owned(),
    ] {
        assert!(error.contains(&told), "{told}: {error}");
    }
    assert!(!error.contains("missing weight `model.layers"), "{error}");
    let lone = told(&|weights| drop(weights.remove("model.norm.weight"))).unwrap_err();
    assert!(
        lone.contains("missing weight `model.norm.weight` (there ") && lone.contains("norm.weight`"),
        "{lone}"
    );
}

/// Which layers mlx-lm quantizes, and how (`tests/oracle/convert.py`): others it could not load.
#[test]
fn the_layers_of_every_architecture_are_quantized_that_mlx_lm_quantizes() {
    let recorded: Value =
        serde_json::from_str(include_str!("../fixtures/quantized_layers.json")).expect("it is ours");
    let recorded = recorded.as_object().unwrap();
    let (mut seen, mut failed) = (BTreeSet::new(), Vec::new());
    for fixture in Fixture::all().into_iter().filter(|fixture| fixture.framework.starts_with("mlx")) {
        let Some(ways) = recorded.get(&fixture.case).and_then(Value::as_object) else { continue };
        seen.insert(fixture.case.clone());
        let tmp = fixture.checkpoint(&fixture.config);
        for (way, expected) in ways {
            let options = Rewrite {
                source: tmp.path().to_path_buf(),
                out: tmp.path().join(way),
                quantize: Some(Quantization::affine(32, 4)),
                recipe: (way == "mixed_3_6").then_some(Recipe::Mixed3To6),
                dequantize: false,
                dtype: None,
            };
            let found = rewrite(&options, &mut |_, _| Ok(())).map(|done| {
                let layers = layers(&options.out, &done.quantization.unwrap_or_default());
                let digest = Sha256::digest(layers.concat());
                let digest: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
                (json!([layers.len(), digest]), layers)
            });
            match found {
                Ok((found, _)) if found == *expected => {}
                Ok((found, layers)) => failed.push(format!(
                    "{}, {way}: {found}, not {expected}:\n{}",
                    fixture.case,
                    layers.concat()
                )),
                Err(error) => failed.push(format!("{}, {way}: {error}", fixture.case)),
            }
        }
    }
    assert!(failed.is_empty(), "{} failures:\n{}", failed.len(), failed.join("\n"));
    assert_eq!(seen.len(), recorded.len());
}

/// A line for each layer with scales: how the config says that it is quantized.
fn layers(dir: &Path, quantization: &Value) -> Vec<String> {
    let tensors = mlxport::io::load_safetensors(dir.join("model.safetensors")).unwrap().0;
    let mut lines: Vec<String> = tensors
        .keys()
        .filter_map(|key| key.strip_suffix(".scales"))
        .map(|path| {
            let how = quantization.get(path).unwrap_or(quantization);
            format!("{path} {} {}\n", how["group_size"], how["bits"])
        })
        .collect();
    lines.sort();
    lines
}

#[test]
fn every_architecture_has_a_fixture() {
    let module = |fixture: &Fixture| {
        let config = Config::parse("config.json", &fixture.config).unwrap();
        models::module_of(config.model_type().unwrap())
    };
    let covered: BTreeSet<_> = Fixture::all().iter().map(module).collect();
    let missing: Vec<_> =
        models::MODEL_TYPES.iter().filter(|name| !covered.contains(&models::module_of(name))).collect();
    assert!(missing.is_empty(), "no fixture for {missing:?}");
}
