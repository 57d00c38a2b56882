//! Qwen3.5 in 2 bits: most of its matrices have a rotation of their inputs folded in.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::qwen3_5;
use crate::checkpoint::{Rules, Weights};
use crate::error::{Error, Result};
use crate::models::Checks;

/// The config.
#[derive(Debug, Clone)]
pub struct Args {
    pack: Pack,
    model: qwen3_5::Args,
}

/// How the weights are packed.
#[derive(Debug, Clone, Deserialize)]
struct Pack {
    #[serde(default = "two")]
    schema_version: i32,
    #[serde(default)]
    tensor_namespace: String,
    #[serde(default = "grouped")]
    gdn_activation_layout: String,
    modules: Vec<Packed>,
}

fn two() -> i32 {
    2
}

fn grouped() -> String {
    "grouped".into()
}

/// One matrix.
#[derive(Debug, Clone, Deserialize)]
struct Packed {
    path: String,
    /// Features that rotate together; 0 if none do.
    block: i32,
}

impl<'de> Deserialize<'de> for Args {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let config = serde_json::Value::deserialize(deserializer)?;
        let pack = Pack::deserialize(&config).map_err(D::Error::custom)?;
        Ok(Self { pack, model: serde_json::from_value(config).map_err(D::Error::custom)? })
    }
}

impl Args {
    /// Fails for sizes that no model has, and for weights that are packed in another way.
    pub fn check(&self) -> Result<()> {
        let Pack { schema_version, tensor_namespace, gdn_activation_layout, modules } = &self.pack;
        let schema = (*schema_version, tensor_namespace.as_str());
        let known = [(1, "mlx-lm-text"), (2, "mlx-vlm-qwen3_5")].contains(&schema);
        let wrong = modules.iter().find(|m| m.block != 0 && !(512..=8192).contains(&m.block));
        Checks::new("prism_hadamard_qwen35")
            .that(known, || format!("`schema_version` and `tensor_namespace` are {schema:?}"))
            .that(gdn_activation_layout == "grouped", || format!("activations are {gdn_activation_layout}"))
            .that(!modules.is_empty(), || "`modules` is empty".into())
            .that(wrong.is_none(), || format!("{wrong:?}"))
            .done()?;
        self.model.check()
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    qwen3_5::rules(&args.model)
}

/// The model.
pub type Model = qwen3_5::Model;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    args.check()?;
    let path = |module: &Packed| w.full(format_args!("language_model.{}", module.path));
    let rotated = args.pack.modules.iter().filter(|module| module.block != 0);
    w.rotate(rotated.map(|module| (path(module), module.block)).collect::<BTreeMap<_, _>>());
    let model = qwen3_5::model(&args.model, w)?;
    let matrices = w.matrices();
    match args.pack.modules.iter().find(|module| !matrices.contains_key(&path(module))) {
        Some(module) => Err(Error::invalid(w.file(), format!("the model has no matrix `{}`", module.path))),
        None => Ok(model),
    }
}
