//! What a model remembers of the tokens it has seen.

mod arrays;
mod batch;
mod chunked;
mod file;
mod kv;
mod mask;
mod offset;
mod quantized;
mod rotating;
mod snapshot;

pub use arrays::ArraysCache;
pub use batch::Padding;
pub use chunked::ChunkedKvCache;
pub use kv::{Appended, KvCache};
pub use mask::{Mask, Masks};
pub use offset::Offset;
pub use quantized::{QuantizedKeysValues, QuantizedKvCache};
pub use rotating::RotatingKvCache;
pub use snapshot::Snapshot;

use crate::array::Array;
use crate::error::{Error, Result};
use crate::kernels::{Chain, Node};
use crate::ops::Quantization;
use crate::transforms;

/// Keys and values to attend to, `[batch, kv_heads, length, dims]`.
#[derive(Debug, Clone)]
pub struct KeysValues {
    /// Keys.
    pub keys: Array,
    /// Values.
    pub values: Array,
    /// What they were restored from, if the cache has them quantized: who takes these saves restoring.
    pub quantized: Option<QuantizedKeysValues>,
}

/// The memory of one layer.
#[derive(Debug, Clone)]
pub enum LayerCache {
    /// Keeps nothing: every call starts a sequence. For training, and for scoring whole sequences.
    Stateless,
    /// Keys and values of all positions.
    Kv(KvCache),
    /// Keys and values of all positions, quantized.
    Quantized(QuantizedKvCache),
    /// Keys and values of the last positions.
    Rotating(RotatingKvCache),
    /// Keys and values of the chunk that a position is in.
    Chunked(ChunkedKvCache),
    /// States that do not grow.
    Arrays(ArraysCache),
    /// Several memories of one layer.
    List(Vec<LayerCache>),
    /// One of the others, but [`List`](Self::List), for a batch with padding before its sequences.
    Padded(Box<LayerCache>, Padding),
}

impl LayerCache {
    /// An empty [`KvCache`].
    pub fn kv() -> Self {
        LayerCache::Kv(KvCache::new())
    }

    /// An empty [`RotatingKvCache`] for `window` positions; an empty [`KvCache`] without.
    pub fn window(window: Option<i32>) -> Self {
        match window {
            Some(window) => LayerCache::Rotating(RotatingKvCache::new(window, 0)),
            None => Self::kv(),
        }
    }

    /// An empty [`ChunkedKvCache`] for chunks of `size` positions.
    pub fn chunks(size: i32) -> Self {
        LayerCache::Chunked(ChunkedKvCache::new(size))
    }

    /// An empty [`ArraysCache`] of `count` arrays.
    pub fn states(count: usize) -> Self {
        LayerCache::Arrays(ArraysCache::new(count))
    }

    /// The memory without its padding.
    pub(crate) fn unpadded(&self) -> &Self {
        if let LayerCache::Padded(cache, _) = self { cache } else { self }
    }

    /// The position that the next token has.
    pub fn offset(&self) -> Offset {
        let position = self.position();
        let each = match self {
            LayerCache::Padded(_, padding) => padding.offset(position).ok(),
            LayerCache::List(parts) => {
                parts.iter().map(LayerCache::offset).find(|o| matches!(o, Offset::Each(_)))
            }
            _ => None,
        };
        each.unwrap_or(Offset::All(position))
    }

    /// Positions seen, of the longest sequence of a batch.
    pub fn position(&self) -> i32 {
        match self {
            LayerCache::Stateless => 0,
            LayerCache::Padded(cache, _) => cache.position(),
            LayerCache::Kv(cache) => cache.offset(),
            LayerCache::Quantized(cache) => cache.offset(),
            LayerCache::Rotating(cache) => cache.offset(),
            LayerCache::Chunked(cache) => cache.offset(),
            LayerCache::Arrays(cache) => cache.offset(),
            LayerCache::List(parts) => parts.iter().map(LayerCache::position).max().unwrap_or(0),
        }
    }

    /// Adds keys and values of new positions, `[batch, kv_heads, length, dims]`, and returns those to
    /// attend to. Fails for a memory that has no keys.
    pub fn update(&mut self, keys: &Array, values: &Array) -> Result<KeysValues> {
        let (keys, values) = match self {
            LayerCache::Stateless => (keys.clone(), values.clone()),
            LayerCache::Padded(cache, _) => return cache.update(keys, values),
            LayerCache::Kv(cache) => cache.update(keys, values)?,
            LayerCache::Quantized(cache) => return cache.update(keys, values),
            LayerCache::Rotating(cache) => cache.update(keys, values)?,
            LayerCache::Chunked(cache) => cache.update(keys, values)?,
            LayerCache::Arrays(_) | LayerCache::List(_) => return Err(self.not("one of keys and values")),
        };
        Ok(KeysValues { keys, values, quantized: None })
    }

    /// [`update`](Self::update) in a chain: the keys and values to attend to, and what is to be [`kept`](Self::keep) once
    /// the chain is applied. `None` where chains do not have it; it is so where there is no room.
    pub(crate) fn record(
        &self,
        chain: &mut Chain,
        keys: Node,
        values: Node,
    ) -> Result<Option<([Node; 2], Appended)>> {
        match self {
            LayerCache::Kv(cache) => cache.record(chain, keys, values),
            _ => Ok(None),
        }
    }

    /// Takes the arrays of what [`record`](Self::record) has promised.
    pub(crate) fn keep(&mut self, appended: Appended, parts: [Array; 2]) {
        if let LayerCache::Kv(cache) = self {
            cache.keep(parts, appended.end);
        }
    }

    /// Which of the positions that [`update`](Self::update) will return the next `length` ones see: at
    /// most the last `window` each.
    pub fn mask(&self, length: i32, window: Option<i32>) -> Result<Mask> {
        match self {
            LayerCache::Stateless => mask::causal(length, 0, window),
            LayerCache::Padded(cache, padding) => padding.mask(cache, length, window, None),
            LayerCache::Kv(cache) => mask::causal(length, cache.offset(), window),
            LayerCache::Quantized(cache) => mask::causal(length, cache.offset(), window),
            LayerCache::Rotating(cache) => cache.mask(length, window),
            LayerCache::Chunked(cache) => cache.mask(length),
            LayerCache::Arrays(_) | LayerCache::List(_) => Err(self.not("one of keys and values")),
        }
    }

    /// As [`mask`](Self::mask), for positions that see their own chunk of `size`.
    pub fn chunk_mask(&self, length: i32, size: i32) -> Result<Mask> {
        match self {
            LayerCache::Padded(cache, padding) => padding.mask(cache, length, None, Some(size)),
            LayerCache::Rotating(_) => Padding::new(&[0])?.mask(self, length, None, Some(size)),
            LayerCache::Chunked(cache) => cache.mask(length),
            LayerCache::Stateless | LayerCache::Kv(_) | LayerCache::Quantized(_) => {
                mask::chunked(length, self.position(), 0, size)
            }
            LayerCache::Arrays(_) | LayerCache::List(_) => Err(self.not("one of keys and values")),
        }
    }

    /// Which of the next `length` positions are tokens and not padding, `bool` `[batch, length]`, for
    /// layers that mix positions without attention; `None` if all are.
    pub fn padding(&self, length: i32) -> Result<Option<Array>> {
        match self {
            LayerCache::Padded(cache, padding) => padding.tokens(cache.position(), length),
            LayerCache::List(parts) => parts.first().map_or(Ok(None), |part| part.padding(length)),
            _ => Ok(None),
        }
    }

    /// State number `index` of an [`ArraysCache`], `None` at the start of a sequence.
    pub fn state(&self, index: usize) -> Option<&Array> {
        match self.unpadded() {
            LayerCache::Arrays(cache) => cache.arrays.get(index)?.as_ref(),
            _ => None,
        }
    }

    /// Sets state number `index` of an [`ArraysCache`].
    pub fn set_state(&mut self, index: usize, state: Array) -> Result<()> {
        match self {
            LayerCache::Stateless => Ok(()),
            LayerCache::Padded(cache, _) => cache.set_state(index, state),
            LayerCache::Arrays(cache) if index < cache.arrays.len() => {
                cache.arrays[index] = Some(state);
                Ok(())
            }
            other => Err(other.not(&format!("one of states with number {index}"))),
        }
    }

    /// Counts `length` positions that went into the states of an [`ArraysCache`].
    pub fn advance(&mut self, length: i32) {
        match self {
            LayerCache::Arrays(cache) => cache.offset += length,
            LayerCache::Padded(cache, _) => cache.advance(length),
            _ => {}
        }
    }

    /// Part number `index` of a [`LayerCache::List`].
    pub fn part(&mut self, index: usize) -> Result<&mut LayerCache> {
        let missing = self.not(&format!("a list with a part {index}"));
        match self {
            LayerCache::List(parts) => parts.get_mut(index).ok_or(missing),
            LayerCache::Stateless => Ok(self),
            _ => Err(missing),
        }
    }

    /// Whether the last `count` positions can be forgotten: always by a layer that has kept nothing.
    pub fn is_trimmable(&self, count: i32) -> bool {
        if self.arrays().is_empty() {
            return true;
        }
        match self {
            LayerCache::Stateless => count == 0,
            LayerCache::Padded(cache, _) => cache.is_trimmable(count),
            LayerCache::Kv(cache) => count <= cache.offset(),
            LayerCache::Quantized(cache) => count <= cache.offset(),
            LayerCache::Rotating(cache) => cache.is_trimmable(count),
            LayerCache::Chunked(cache) => cache.is_trimmable(count),
            LayerCache::Arrays(_) => count == 0,
            LayerCache::List(parts) => parts.iter().all(|part| part.is_trimmable(count)),
        }
    }

    fn trim(&mut self, count: i32) {
        if self.arrays().is_empty() {
            return;
        }
        match self {
            LayerCache::Stateless | LayerCache::Arrays(_) => {}
            LayerCache::Padded(cache, _) => cache.trim(count),
            LayerCache::Kv(cache) => cache.trim(count),
            LayerCache::Quantized(cache) => cache.trim(count),
            LayerCache::Rotating(cache) => cache.trim(count),
            LayerCache::Chunked(cache) => cache.trim(count),
            LayerCache::List(parts) => parts.iter_mut().for_each(|part| part.trim(count)),
        }
    }

    /// The arrays it holds.
    pub fn arrays(&self) -> Vec<&Array> {
        match self {
            LayerCache::Stateless => Vec::new(),
            LayerCache::Padded(cache, _) => cache.arrays(),
            LayerCache::Kv(cache) => cache.arrays().collect(),
            LayerCache::Quantized(cache) => cache.arrays().collect(),
            LayerCache::Rotating(cache) => cache.arrays().collect(),
            LayerCache::Chunked(cache) => cache.arrays().collect(),
            LayerCache::Arrays(cache) => cache.arrays.iter().flatten().collect(),
            LayerCache::List(parts) => parts.iter().flat_map(LayerCache::arrays).collect(),
        }
    }

    /// Whether it can always forget its last positions.
    pub fn forgets(&self) -> bool {
        match self {
            LayerCache::Kv(_) | LayerCache::Quantized(_) => true,
            LayerCache::Padded(cache, _) => cache.forgets(),
            LayerCache::List(parts) => parts.iter().all(LayerCache::forgets),
            _ => false,
        }
    }

    fn not(&self, what: &str) -> Error {
        Error::argument("cache", format!("the memory of this layer is not {what}"))
    }
}

/// The memory of a model: one [`LayerCache`] for each layer that has one.
///
/// A cache belongs to the model that made it. After a forward pass that failed, its layers may be at
/// different positions: drop it.
#[derive(Debug, Clone)]
pub struct Cache {
    layers: Vec<LayerCache>,
    /// How long the sequences will be at least: one length for all, or one for each.
    expected: Vec<i32>,
}

impl Cache {
    /// A memory of these layers.
    pub fn new(layers: impl IntoIterator<Item = LayerCache>) -> Self {
        Self { layers: layers.into_iter().collect(), expected: vec![0] }
    }

    /// No memory, for the model that made this one.
    pub fn stateless(&self) -> Self {
        Self::new(self.layers.iter().map(|_| LayerCache::Stateless))
    }

    /// Says that the sequence will have `length` positions or more, so that what depends on its length
    /// (the factors of `longrope`) is right from its first piece on. Without it each pass takes what is
    /// right for the positions so far, and keys of earlier passes stay as they are.
    pub fn expect(&mut self, length: i32) {
        self.expected.iter_mut().for_each(|expected| *expected = length.max(*expected));
    }

    /// How many positions each sequence will have at least, as far as [`expect`](Self::expect) has said.
    pub fn expected(&self) -> Result<Offset> {
        match self.expected.as_slice() {
            [first, rest @ ..] if rest.iter().any(|other| other != first) => {
                Array::from_slice(&self.expected, &[self.expected.len() as i32]).map(Offset::Each)
            }
            all => Ok(Offset::All(all.first().copied().unwrap_or(0))),
        }
    }

    /// The position that the next token has.
    pub fn offset(&self) -> i32 {
        self.layers.iter().map(LayerCache::position).max().unwrap_or(0)
    }

    /// The position that the next token of each sequence has.
    pub fn offsets(&self) -> Offset {
        self.layers.first().map_or(Offset::All(0), LayerCache::offset)
    }

    /// The layers, for a model that has `count` of them. Fails if there are not as many.
    pub fn layers_mut(&mut self, count: usize) -> Result<&mut [LayerCache]> {
        if self.layers.len() != count {
            let message = format!("{} layers in the cache of a model with {count}", self.layers.len());
            return Err(Error::argument("cache", message));
        }
        Ok(&mut self.layers)
    }

    /// The layers.
    pub fn layers(&self) -> &[LayerCache] {
        &self.layers
    }

    /// Quantizes the keys and values of all layers that keep all of them. Fails for a quantization that
    /// does not exist, and for heads that its group size does not divide.
    pub fn quantize(&mut self, how: Quantization) -> Result<()> {
        for layer in &mut self.layers {
            if let LayerCache::Kv(cache) = layer {
                *layer = LayerCache::Quantized(QuantizedKvCache::of(cache, how)?);
            }
        }
        Ok(())
    }

    /// The cache with at most `size` positions in the layers that would keep all, among them the first
    /// four of the sequence, which attention leans on (Xiao et al., "Efficient Streaming Language Models
    /// with Attention Sinks", 2023). Fails for fewer than five, and once there are positions.
    pub fn limited(self, size: i32) -> Result<Self> {
        const KEPT: i32 = 4;
        if size <= KEPT || self.offset() > 0 {
            let message =
                format!("a limit of {size} positions; it takes more than {KEPT}, and an empty cache");
            return Err(Error::argument("cache", message));
        }
        let limit = |layer| match layer {
            LayerCache::Kv(_) => LayerCache::Rotating(RotatingKvCache::new(size, KEPT)),
            other => other,
        };
        Ok(Self { layers: self.layers.into_iter().map(limit).collect(), ..self })
    }

    /// Forgets the last `count` positions. Fails, and forgets nothing, where a layer can't.
    pub fn trim(&mut self, count: i32) -> Result<()> {
        let possible = self.layers.iter().all(|layer| layer.is_trimmable(count));
        if !possible || !(0..=self.offset()).contains(&count) {
            let message = format!("{count} of {} positions can't be forgotten", self.offset());
            return Err(Error::argument("trim", message));
        }
        self.layers.iter_mut().for_each(|layer| layer.trim(count));
        Ok(())
    }

    /// Computes what the layers hold, so that no graph grows behind it.
    pub fn eval(&self) -> Result<()> {
        transforms::eval(self.layers.iter().flat_map(LayerCache::arrays))
    }

    /// Bytes that it holds.
    pub fn nbytes(&self) -> usize {
        self.layers.iter().flat_map(LayerCache::arrays).map(Array::nbytes).sum()
    }
}

/// The positions `start..stop` of keys or values, `[batch, heads, length, dims]`.
fn positions(x: &Array, start: i32, stop: i32) -> Result<Array> {
    let &[batch, heads, length, dims] = x.shape() else {
        return Err(not_keys(x));
    };
    if (start, stop) == (0, length) {
        return Ok(x.clone());
    }
    crate::ops::slice(x, &[0, 0, start, 0], &[batch, heads, stop, dims], &[1, 1, 1, 1])
}

/// `x` with the positions from `start` on replaced by `update`.
fn put(x: &Array, update: &Array, start: i32) -> Result<Array> {
    let &[batch, heads, length, dims] = update.shape() else {
        return Err(not_keys(update));
    };
    let (from, to) = ([0, 0, start, 0], [batch, heads, start + length, dims]);
    crate::ops::slice_update(x, update, &from, &to, &[1, 1, 1, 1])
}

/// `x` with room for `count` more positions.
fn grow(x: &Array, count: i32) -> Result<Array> {
    let &[_, _, length, _] = x.shape() else {
        return Err(not_keys(x));
    };
    crate::kernels::joined(&[x], length + count)
}

fn not_keys(x: &Array) -> Error {
    let message = format!("keys or values of shape {:?}, not [batch, heads, length, dims]", x.shape());
    Error::argument("cache", message)
}

/// Fails unless `new` fits behind `old`: MLX would broadcast it.
fn check_fits(old: &Array, new: &Array) -> Result<()> {
    match (old.shape(), new.shape()) {
        ([b0, h0, _, d0], [b1, h1, _, d1]) if (b0, h0, d0) == (b1, h1, d1) && old.dtype() == new.dtype() => {
            Ok(())
        }
        (lhs, rhs) => Err(Error::Shape { op: "cache", lhs: lhs.to_vec(), rhs: rhs.to_vec() }),
    }
}
