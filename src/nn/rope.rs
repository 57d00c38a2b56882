//! Rotary position encoding with the ways of stretching it to longer contexts.

use serde::Deserialize;

use crate::array::{Array, Dtype};
use crate::cache::Offset;
use crate::error::{Error, Result};
use crate::kernels::{Chain, Node};
use crate::nn::Norm;
use crate::{fast, ops};

/// The rotary part of a config, in either spelling: `rope_theta` and `rope_scaling`, or the
/// `rope_parameters` of newer files, which wins.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub rope_theta: Option<f64>,
    /// Whether neighbouring dimensions make a pair, and not those half a head apart.
    #[serde(default)]
    pub rope_traditional: bool,
    /// How the positions are stretched.
    pub rope_scaling: Option<RopeScaling>,
    /// As `rope_scaling`, with the base inside.
    pub rope_parameters: Option<RopeScaling>,
    /// The part of a head that turns.
    pub partial_rotary_factor: Option<f64>,
    /// The longest sequence the model was made for.
    pub max_position_embeddings: Option<i32>,
    /// The longest it was made for first: `longrope`. It wins over the one in `rope_scaling`.
    pub original_max_position_embeddings: Option<f64>,
}

/// One `rope_scaling` or `rope_parameters` object; which keys it has depends on its type.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct RopeScaling {
    /// `default`, `linear`, `dynamic`, `llama3`, `yarn`, `longrope`, `proportional`, `mrope`.
    pub rope_type: Option<String>,
    /// The older name of `rope_type`.
    pub r#type: Option<String>,
    /// Base of the frequencies.
    pub rope_theta: Option<f64>,
    /// How much longer the context is made.
    pub factor: Option<f64>,
    /// The context before it was made longer.
    pub original_max_position_embeddings: Option<f64>,
    /// `llama3`: wavelengths above the original context over this are stretched in full.
    pub low_freq_factor: Option<f64>,
    /// `llama3`: wavelengths below the original context over this are left alone.
    pub high_freq_factor: Option<f64>,
    /// `yarn`: dimensions that turn more often than this in the original context are left alone.
    pub beta_fast: Option<f64>,
    /// `yarn`: dimensions that turn less often than this in the original context are stretched in full.
    pub beta_slow: Option<f64>,
    /// `yarn`: numerator of the magnitude.
    pub mscale: Option<f64>,
    /// `yarn`: denominator of the magnitude.
    pub mscale_all_dim: Option<f64>,
    /// See [`QueryGrowth`].
    pub llama_4_scaling_beta: Option<f64>,
    /// `yarn`, `longrope`: the magnitude itself.
    pub attention_factor: Option<f64>,
    /// `yarn`: whether the range of stretched dimensions is rounded outwards; it is by default.
    pub truncate: Option<bool>,
    /// `longrope`: the magnitude for sequences that fit the original context (Phi-3.5 MoE).
    pub short_mscale: Option<f64>,
    /// `longrope`: the magnitude for longer sequences.
    pub long_mscale: Option<f64>,
    /// `longrope`: factors for sequences that fit the original context.
    pub short_factor: Option<Vec<f64>>,
    /// `longrope`: factors for longer sequences.
    pub long_factor: Option<Vec<f64>>,
    /// `dynamic`: makes the base `rope_theta * alpha^(dims / (dims - 2))`, whatever the length (Hunyuan).
    pub alpha: Option<f64>,
    /// `proportional`: the part of the head that turns. Else as [`RopeConfig::partial_rotary_factor`].
    pub partial_rotary_factor: Option<f64>,
    /// The parameters of layers that see all positions, where the kinds of layers differ.
    pub full_attention: Option<Box<RopeScaling>>,
    /// The parameters of layers with a window, where the kinds of layers differ.
    pub sliding_attention: Option<Box<RopeScaling>>,
}

impl RopeConfig {
    /// The base of the frequencies, or `default`.
    pub fn theta(&self, default: f64) -> f64 {
        let parameters = self.rope_parameters.as_ref();
        parameters.and_then(|p| p.rope_theta).or(self.rope_theta).unwrap_or(default)
    }

    /// How many dimensions of a head turn: the part of `head_dim` that the config says, or `default`.
    pub fn dims(&self, head_dim: i32, default: f64) -> Result<i32> {
        let parameters = self.rope_parameters.as_ref().filter(|p| p.kind() != "proportional");
        let part = parameters.and_then(|p| p.partial_rotary_factor).or(self.partial_rotary_factor);
        match part.unwrap_or(default) {
            part if part > 0.0 && part <= 1.0 => Ok((f64::from(head_dim) * part) as i32),
            part => Err(invalid(format!("`partial_rotary_factor` is {part}"))),
        }
    }

    /// Factor of the scores of attention whose heads turn in part alone, by which YaRN makes up for the
    /// magnitude that the other dimensions lack: `(0.1 mscale_all_dim ln(factor) + 1)^2` (DeepSeek-V2).
    pub fn score_magnitude(&self) -> Result<f32> {
        let Some(scaling) = self.scaling().filter(|scaling| scaling.kind() != "default") else {
            return Ok(1.0);
        };
        match scaling.mscale_all_dim {
            Some(all) if all != 0.0 => {
                let factor = positive(scaling, "factor", scaling.factor)?;
                Ok(yarn_magnitude(factor, all).powi(2) as f32)
            }
            _ => Ok(1.0),
        }
    }

    /// How the queries grow with their position, if they do.
    pub fn query_growth(&self) -> Result<Option<QueryGrowth>> {
        let Some((scaling, beta)) = self.scaling().and_then(|s| Some((s, s.llama_4_scaling_beta?))) else {
            return Ok(None);
        };
        let context = scaling.original_max_position_embeddings;
        let context = positive(scaling, "original_max_position_embeddings", context)?;
        Ok(Some(QueryGrowth { beta: beta as f32, context: context as f32, from_one: false }))
    }

    /// The parameters of layers that see all positions: those under `full_attention`, or all.
    pub fn full(&self) -> Self {
        self.of(|parameters| parameters.full_attention.clone())
    }

    /// The parameters of layers with a window: those under `sliding_attention`, with `theta` their base by
    /// default. Without any, nothing is stretched.
    pub fn sliding(&self, theta: f64) -> Self {
        let has_own = self.rope_parameters.as_ref().is_some_and(|p| p.sliding_attention.is_some());
        let config = if has_own { self.of(|p| p.sliding_attention.clone()) } else { Self::default() };
        Self { rope_theta: Some(theta), rope_traditional: self.rope_traditional, ..config }
    }

    fn of(&self, kind: impl Fn(&RopeScaling) -> Option<Box<RopeScaling>>) -> Self {
        let mut config = self.clone();
        if let Some(parameters) = self.rope_parameters.as_ref().and_then(kind) {
            config.rope_parameters = Some(*parameters);
        }
        config
    }

    fn scaling(&self) -> Option<&RopeScaling> {
        self.rope_parameters.as_ref().or(self.rope_scaling.as_ref())
    }

    /// The context before it was made longer: by default the longest sequence, or else `default`.
    fn context(&self, default: f64) -> f64 {
        let original = self.scaling().and_then(|scaling| scaling.original_max_position_embeddings);
        original.or(self.max_position_embeddings.map(f64::from)).unwrap_or(default)
    }
}

impl RopeScaling {
    fn kind(&self) -> &str {
        self.rope_type.as_deref().or(self.r#type.as_deref()).unwrap_or("default")
    }

    /// A key that this type can't do without.
    fn need<'a, T: ?Sized>(&self, key: &str, value: Option<&'a T>) -> Result<&'a T> {
        let missing = || invalid(format!("`{key}` is missing for the type `{}`", self.kind()));
        value.ok_or_else(missing)
    }
}

fn invalid(message: String) -> Error {
    Error::argument("rope_scaling", message)
}

/// Queries that grow with their position `p` by `1 + beta ln(1 + floor(p / context))`, so that attention
/// stays sharp in contexts longer than the model was trained for (Llama 4, Ministral 3).
#[derive(Debug, Clone, Copy)]
pub struct QueryGrowth {
    beta: f32,
    context: f32,
    from_one: bool,
}

impl QueryGrowth {
    /// That of Llama 4, which counts positions from 1 and rounds the grown queries alone, not the factors.
    pub fn from_one(beta: f32, context: f32) -> Self {
        Self { beta, context, from_one: true }
    }

    /// Queries `[batch, heads, length, head_dim]` that begin at `offset`.
    pub fn grow(&self, queries: &Array, offset: &Offset) -> Result<Array> {
        let dtype = if self.from_one { Dtype::Float32 } else { queries.dtype() };
        let factors = self.factors(offset, queries.dim(-2)?, dtype)?;
        ops::astype(&(queries * factors)?, queries.dtype())
    }

    /// The factors of queries `[batch, heads, length, head_dim]` that begin at `offset`: `[length, 1]`,
    /// or `[batch, 1, length, 1]` where the sequences differ.
    pub fn factors(&self, offset: &Offset, length: i32, dtype: Dtype) -> Result<Array> {
        // Padding is before the first position.
        let positions = ops::maximum(&offset.positions(length)?, 0)?;
        let positions = (positions + i32::from(self.from_one))?;
        let periods = ops::floor(&(positions / self.context)?)?;
        let factors = ((ops::log1p(&periods)? * self.beta)? + 1.0)?;
        let factors = ops::astype(&ops::expand_dims(&factors, -1)?, dtype)?;
        if factors.ndim() > 2 { ops::expand_dims(&factors, 1) } else { Ok(factors) }
    }
}

/// Turns queries and keys by their positions.
#[derive(Debug, Clone)]
pub struct Rope {
    dims: i32,
    traditional: bool,
    /// Factor of the positions.
    scale: f32,
    /// Factor of the dimensions that turn.
    magnitude: f64,
    speed: Speed,
}

#[derive(Debug, Clone)]
enum Speed {
    Base(f64),
    /// Positions per radian, `[dims / 2]`.
    Periods(Array),
    /// A base that grows with the length of the sequence beyond `max_position_embeddings`.
    DynamicNtk {
        base: f64,
        factor: f64,
        max_position_embeddings: f64,
    },
    /// Positions per radian, `[dims / 2]`, of sequences that fit the original context, and of longer
    /// ones.
    LongRope {
        short: Array,
        long: Array,
        context: i32,
        /// What the magnitude of a long sequence is, over that of a short one; a scalar.
        growth: Option<Array>,
    },
}

impl Rope {
    /// For heads of which the first `dims` dimensions turn. `default_theta` is the base where the config
    /// has none. Fails for an odd `dims`, a type that is not known, and one whose keys are missing.
    pub fn new(dims: i32, config: &RopeConfig, default_theta: f64) -> Result<Self> {
        let base = config.theta(default_theta);
        if dims <= 0 || dims % 2 != 0 || !(base > 0.0 && base.is_finite()) {
            return Err(invalid(format!("{dims} dimensions with base {base}")));
        }
        let traditional = config.rope_traditional;
        let plain = Self { dims, traditional, scale: 1.0, magnitude: 1.0, speed: Speed::Base(base) };
        let Some(scaling) = config.scaling() else {
            return Ok(plain);
        };
        let max_position_embeddings = config.max_position_embeddings.map(f64::from);
        let factor = || positive(scaling, "factor", scaling.factor);
        let (magnitude, periods) = match scaling.kind() {
            // The sections of `mrope` differ for images alone: on text all are the same position.
            "default" | "mrope" => return Ok(plain),
            "linear" => return Ok(Self { scale: (1.0 / factor()?) as f32, ..plain }),
            "dynamic" if scaling.alpha.is_some() => {
                let alpha = positive(scaling, "alpha", scaling.alpha)?;
                let base = base * alpha.powf(f64::from(dims) / f64::from(dims - 2));
                return Ok(Self { speed: Speed::Base(base), ..plain });
            }
            "dynamic" => {
                let max_position_embeddings =
                    positive(scaling, "max_position_embeddings", max_position_embeddings)?;
                let speed = Speed::DynamicNtk { base, factor: factor()?, max_position_embeddings };
                return Ok(Self { speed, ..plain });
            }
            "llama3" => (1.0, llama3(&wavelengths(dims, base), factor()?, config.context(8192.0), scaling)?),
            "yarn" | "deepseek_yarn" | "telechat3-yarn" => {
                yarn(dims, base, factor()?, config.context(4096.0), scaling)?
            }
            "longrope" | "su" => {
                let (magnitude, speed) = longrope(&wavelengths(dims, base), config, scaling)?;
                return Ok(Self { magnitude, speed, ..plain });
            }
            "proportional" => (1.0, proportional(dims, base, scaling)?),
            other => return Err(Error::unsupported(format!("rope type `{other}`"), "it is not known")),
        };
        Ok(Self { magnitude, speed: Speed::Periods(array(periods)?), ..plain })
    }

    /// One for positions that are so many apart.
    pub fn striding(self, stride: f32) -> Self {
        Self { scale: self.scale * stride, ..self }
    }

    /// One that turns the other way round. Fails where the speeds follow the length of the sequence.
    pub fn backwards(self) -> Result<Self> {
        let periods: Vec<f32> = match &self.speed {
            Speed::Base(base) => wavelengths(self.dims, *base).into_iter().map(|p| -p as f32).collect(),
            Speed::Periods(periods) => periods.to_vec::<f32>()?.into_iter().map(|p| -p).collect(),
            Speed::DynamicNtk { .. } | Speed::LongRope { .. } => {
                return Err(invalid("speeds that follow the length can't turn backwards".into()));
            }
        };
        let speed = Speed::Periods(Array::from_slice(&periods, &[self.dims / 2])?);
        Ok(Self { speed, ..self })
    }

    /// Turns `x`, `[batch, heads, length, head_dim]`, whose first position is `offset`.
    pub fn forward(&self, x: &Array, offset: &Offset) -> Result<Array> {
        self.forward_within(x, offset, &Offset::All(0))
    }

    /// As [`forward`](Self::forward), in sequences that will have `expected` positions or more: with
    /// `longrope` all of them turn as the last one will (see [`Cache::expect`](crate::cache::Cache::expect)).
    pub fn forward_within(&self, x: &Array, offset: &Offset, expected: &Offset) -> Result<Array> {
        let x = &self.magnify(x)?;
        let (dims, traditional, scale) = (self.dims, self.traditional, self.scale);
        match &self.speed {
            Speed::Base(base) => fast::rope(x, dims, traditional, *base as f32, scale, offset),
            Speed::Periods(periods) => fast::rope(x, dims, traditional, periods, scale, offset),
            Speed::DynamicNtk { base, factor, max_position_embeddings: longest } => {
                let length = x.dim(-2)?;
                let base = |offset: i32| {
                    let length = (f64::from(length) + f64::from(offset)).max(*longest);
                    let growth = factor * length / longest - (factor - 1.0);
                    (base * growth.powf(f64::from(dims) / f64::from(dims - 2))) as f32
                };
                // A sequence turns as it would outside of its batch.
                let offsets = match offset {
                    Offset::All(offset) => vec![*offset],
                    Offset::Each(offsets) => offsets.to_vec()?,
                };
                let first = base(offsets.first().copied().unwrap_or(0));
                if offsets.iter().all(|&offset| base(offset) == first) {
                    return fast::rope(x, dims, traditional, first, scale, offset);
                }
                let rows = (0..).zip(offsets).map(|(at, offset)| {
                    let row = x.index(at..at + 1)?;
                    fast::rope(&row, dims, traditional, base(offset), scale, offset)
                });
                ops::concatenate(&rows.collect::<Result<Vec<_>>>()?, 0)
            }
            Speed::LongRope { short, long, context, growth } => {
                let length = x.dim(-2)?;
                let turn = |periods: &Array, growth: Option<&Array>| {
                    let grown = growth.map(|growth| x * ops::astype(growth, x.dtype())?).transpose()?;
                    fast::rope(grown.as_ref().unwrap_or(x), dims, traditional, periods, scale, offset)
                };
                if let (Offset::All(offset), Offset::All(expected)) = (offset, expected) {
                    return match (*expected).max(offset + length) > *context {
                        true => turn(long, growth.as_ref()),
                        false => turn(short, None),
                    };
                }
                let number = |offset: &Offset| match offset {
                    Offset::All(all) => Ok(Array::from(*all)),
                    Offset::Each(each) => ops::expand_dims(each, [1, 2, 3]),
                };
                let end = ops::maximum(&number(expected)?, &(number(offset)? + length)?)?;
                let is_long = ops::greater(&end, *context)?;
                ops::where_(&is_long, &turn(long, growth.as_ref())?, &turn(short, None)?)
            }
        }
    }

    /// [`forward_within`](Self::forward_within) of what `norm` gives for `x`.
    pub fn forward_normed(
        &self,
        x: &Array,
        norm: &Norm,
        offset: &Offset,
        expected: &Offset,
    ) -> Result<Array> {
        let (dims, traditional, scale) = (self.dims, self.traditional, self.scale);
        match (norm.rms()?, &self.speed) {
            (Some((weight, eps)), Speed::Base(base)) if self.magnitude == 1.0 => {
                fast::rms_norm_rope(x, &weight, eps, dims, traditional, *base as f32, scale, offset)
            }
            (Some((weight, eps)), Speed::Periods(periods)) if self.magnitude == 1.0 => {
                fast::rms_norm_rope(x, &weight, eps, dims, traditional, periods, scale, offset)
            }
            _ => self.forward_within(&norm.forward(x)?, offset, expected),
        }
    }

    /// [`forward_within`](Self::forward_within), or with a norm [`forward_normed`](Self::forward_normed), in a chain; `None`
    /// where chains do not have it.
    pub(crate) fn record(
        &self,
        chain: &mut Chain,
        x: Node,
        norm: Option<&Norm>,
        offset: &Offset,
    ) -> Result<Option<Node>> {
        let norm = match norm.map(Norm::rms).transpose()? {
            Some(None) => return Ok(None),
            norm => norm.flatten(),
        };
        let frequencies = match &self.speed {
            Speed::Base(base) => fast::RopeFrequencies::from(*base as f32),
            Speed::Periods(periods) => fast::RopeFrequencies::from(periods),
            _ => return Ok(None),
        };
        if self.magnitude != 1.0 {
            return Ok(None);
        }
        let (dims, traditional) = (self.dims, self.traditional);
        let (turn, periods) = fast::turn(dims, traditional, frequencies, self.scale)?;
        let norm = norm.as_ref().map(|(weight, eps)| (&**weight, *eps));
        let offset = match offset {
            Offset::All(offset) => chain.scalar(*offset),
            Offset::Each(offsets) => chain.input(offsets),
        };
        chain.rope(x, norm, turn, offset, periods.as_deref())
    }

    fn magnify(&self, x: &Array) -> Result<Array> {
        let head_dim = x.dim(-1)?;
        if self.magnitude == 1.0 {
            Ok(x.clone())
        } else if head_dim == self.dims {
            x * self.magnitude
        } else {
            let parts = ops::split(x, [self.dims], -1)?;
            ops::concatenate([&(&parts[0] * self.magnitude)?, &parts[1]], -1)
        }
    }
}

fn positive(scaling: &RopeScaling, key: &str, value: Option<f64>) -> Result<f64> {
    let value = *scaling.need(key, value.as_ref())?;
    if value > 0.0 && value.is_finite() {
        return Ok(value);
    }
    Err(invalid(format!("`{key}` is {value}")))
}

/// Positions per radian of each pair, without any stretching.
fn wavelengths(dims: i32, base: f64) -> Vec<f64> {
    (0..dims / 2).map(|i| base.powf(f64::from(2 * i) / f64::from(dims))).collect()
}

/// Llama 3.1: long waves are stretched, short ones are not, and between the two it blends.
fn llama3(periods: &[f64], factor: f64, context: f64, scaling: &RopeScaling) -> Result<Vec<f64>> {
    let (low, high) = (scaling.low_freq_factor.unwrap_or(1.0), scaling.high_freq_factor.unwrap_or(4.0));
    let stretch = |&period: &f64| {
        let turns = context / (std::f64::consts::TAU * period);
        if turns < low {
            period * factor
        } else if turns > high {
            period
        } else {
            let kept = (turns - low) / (high - low);
            period / ((1.0 - kept) / factor + kept)
        }
    };
    Ok(periods.iter().map(stretch).collect())
}

/// YaRN (Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", 2023), with
/// the magnitude as transformers takes it from the config.
fn yarn(dims: i32, base: f64, factor: f64, context: f64, scaling: &RopeScaling) -> Result<(f64, Vec<f64>)> {
    let dimension_of =
        |turns: f64| f64::from(dims) * (context / (turns * std::f64::consts::TAU)).ln() / (2.0 * base.ln());
    let mut low = dimension_of(scaling.beta_fast.unwrap_or(32.0));
    let mut high = dimension_of(scaling.beta_slow.unwrap_or(1.0));
    if scaling.truncate.unwrap_or(true) {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min(f64::from(dims - 1)));
    if low == high {
        high += 0.001;
    }
    let stretch = |(i, period): (usize, f64)| {
        let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        period / (stretched / factor + (1.0 - stretched))
    };
    let magnitude_of = |mscale: f64| yarn_magnitude(factor, mscale);
    let ratio = match (scaling.mscale, scaling.mscale_all_dim) {
        (Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => magnitude_of(mscale) / magnitude_of(all),
        _ => magnitude_of(1.0),
    };
    let periods = wavelengths(dims, base).into_iter().enumerate().map(stretch).collect();
    Ok((scaling.attention_factor.unwrap_or(ratio), periods))
}

fn yarn_magnitude(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// LongRoPE (Ding et al., "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens", 2024), as
/// transformers has it: one set of factors for sequences that fit the original context, and another
/// for longer ones.
fn longrope(periods: &[f64], config: &RopeConfig, scaling: &RopeScaling) -> Result<(f64, Speed)> {
    let stretched = |key, factors: &Option<Vec<f64>>| {
        let factors = scaling.need(key, factors.as_deref())?;
        if factors.len() != periods.len() {
            let message = format!("{} `{key}` for {} pairs of dimensions", factors.len(), periods.len());
            return Err(invalid(message));
        }
        array(periods.iter().zip(factors).map(|(period, factor)| period * factor).collect())
    };
    let long = stretched("long_factor", &scaling.long_factor)?;
    let short = match scaling.short_factor {
        Some(_) => stretched("short_factor", &scaling.short_factor)?,
        None => long.clone(),
    };
    let longest = config.max_position_embeddings.map(f64::from);
    let context = config.original_max_position_embeddings.or(scaling.original_max_position_embeddings);
    let context = positive(scaling, "original_max_position_embeddings", context.or(longest))?;
    let factor = scaling.factor.or(longest.map(|longest| longest / context)).unwrap_or(1.0);
    let magnitude = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / context.ln()).sqrt() };
    let (growth, magnitude) = match (scaling.short_mscale, scaling.long_mscale) {
        (Some(short), Some(long)) => {
            let short = positive(scaling, "short_mscale", Some(short))?;
            (Some(Array::from((positive(scaling, "long_mscale", Some(long))? / short) as f32)), short)
        }
        _ => (None, scaling.attention_factor.unwrap_or(magnitude)),
    };
    Ok((magnitude, Speed::LongRope { short, long, context: context as i32, growth }))
}

fn array(periods: Vec<f64>) -> Result<Array> {
    let periods: Vec<f32> = periods.into_iter().map(|p| p as f32).collect();
    Array::from_slice(&periods, &[periods.len() as i32])
}

/// Only a part of the pairs turns, at the speeds they would have if all did.
fn proportional(dims: i32, base: f64, scaling: &RopeScaling) -> Result<Vec<f64>> {
    let part = scaling.partial_rotary_factor.unwrap_or(1.0);
    if !(0.0..=1.0).contains(&part) {
        return Err(invalid(format!("`partial_rotary_factor` is {part}")));
    }
    let turning = (f64::from(dims) * part / 2.0) as usize;
    let factor = scaling.factor.unwrap_or(1.0);
    let period = |(i, period)| if i < turning { factor * period } else { f64::INFINITY };
    Ok(wavelengths(dims, base).into_iter().enumerate().map(period).collect())
}
