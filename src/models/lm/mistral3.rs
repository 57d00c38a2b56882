//! Mistral Small 3, Pixtral and LLaVA: their language model, which is Llama's, or Mistral 4.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{llama, mistral4};
use crate::checkpoint::{Rules, Weights};
use crate::error::Result;
use crate::models::LanguageModel;
use crate::models::blocks::{TextPart, text_rules};

/// The config.
#[derive(Debug, Clone, Deserialize)]
pub struct Args {
    text_config: Text,
}

#[derive(Debug, Clone)]
enum Text {
    Llama(Box<llama::Args>),
    Mistral4(Box<mistral4::Args>),
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut config = Value::deserialize(deserializer)?;
        if let Some(object) = config.as_object_mut() {
            // What transformers leaves out of configs.
            object.entry("model_type").or_insert("mistral".into());
            object.entry("num_attention_heads").or_insert(32.into());
        }
        let read = match config["model_type"].as_str() {
            Some("mistral4") => serde_json::from_value(config).map(Self::Mistral4),
            _ => serde_json::from_value(config).map(Self::Llama),
        };
        read.map_err(serde::de::Error::custom)
    }
}

impl Args {
    /// Fails for sizes that no model has.
    pub fn check(&self) -> Result<()> {
        match &self.text_config {
            Text::Llama(args) => args.check(),
            Text::Mistral4(args) => args.check(),
        }
    }
}

/// How the names of a checkpoint become the model's.
pub fn rules(args: &Args) -> Rules {
    let inner = match &args.text_config {
        Text::Llama(args) => llama::rules(args),
        Text::Mistral4(args) => mistral4::rules(args),
    };
    text_rules(&["vision_tower", "multi_modal_projector"], inner)
}

/// The model.
pub type Model = TextPart<Box<dyn LanguageModel>>;

/// Reads the weights that `args` call for.
pub fn model(args: &Args, w: &Weights) -> Result<Model> {
    let w = w.pp("language_model");
    let language_model: Box<dyn LanguageModel> = match &args.text_config {
        Text::Llama(args) => Box::new(llama::model(args, &w)?),
        Text::Mistral4(args) => Box::new(mistral4::model(args, &w)?),
    };
    Ok(TextPart { language_model })
}
