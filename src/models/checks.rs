//! Checks that a config's sizes can be a model's, before anything is computed with them.

use crate::error::{Error, Result};

/// Collects what is wrong with a config: the first thing is reported.
#[derive(Debug)]
pub struct Checks {
    op: &'static str,
    wrong: Option<String>,
}

impl Checks {
    /// For the config of this architecture.
    pub fn new(op: &'static str) -> Self {
        Self { op, wrong: None }
    }

    /// Wrong unless it holds.
    pub fn that(mut self, holds: bool, wrong: impl FnOnce() -> String) -> Self {
        if !holds && self.wrong.is_none() {
            self.wrong = Some(wrong());
        }
        self
    }

    /// A size, from 1 to 2^28.
    pub fn size(self, name: &str, value: i32) -> Self {
        self.that((1..=1 << 28).contains(&value), || format!("`{name}` is {value}"))
    }

    /// Numbers of heads, and their size if the config has it.
    pub fn heads(self, heads: i32, kv_heads: i32, head_dim: Option<i32>, hidden_size: i32) -> Self {
        let this = self.size("num_attention_heads", heads).size("num_key_value_heads", kv_heads);
        let this = this.that(heads.checked_rem(kv_heads) == Some(0), || {
            format!("{heads} attention heads can't share {kv_heads} key and value heads")
        });
        let this = this.that(head_dim.is_some() || hidden_size.checked_rem(heads) == Some(0), || {
            format!("`hidden_size` {hidden_size} does not divide into {heads} heads")
        });
        let width = i64::from(heads) * i64::from(head_dim.unwrap_or(1));
        this.that((1..=1 << 28).contains(&width), || format!("{heads} heads of `head_dim` {head_dim:?}"))
    }

    /// A type for each layer, where the config has any.
    pub fn layer_types<T>(self, layers: usize, types: Option<&[T]>) -> Self {
        let found = types.map_or(layers, <[T]>::len);
        self.that(found == layers, || format!("{found} `layer_types` for {layers} layers"))
    }

    /// Added to a variance before its root is taken: positive.
    pub fn eps(self, name: &str, value: f32) -> Self {
        self.that(value > 0.0 && value.is_finite(), || format!("`{name}` is {value}"))
    }

    /// The first thing that is wrong.
    pub fn done(self) -> Result<()> {
        self.wrong.map_or(Ok(()), |message| Err(Error::argument(self.op, message)))
    }
}
