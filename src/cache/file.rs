//! Prompt caches in files, as mlx-lm 0.32 keeps them.
//!
//! A file is safetensors. Its arrays are the leaves of a list with the state of each layer, named by
//! their place in it (`0.1` is the second part of the first state); numbers, texts and `None` are small
//! arrays too. The metadata is such a list of names as well: what the user adds (`0.KEY`), the class of
//! each layer (`1.LAYER`), and which leaves are not arrays (`2.N.0` the place, `2.N.1` the kind).

use std::collections::BTreeMap;
use std::path::Path;

use super::{
    ArraysCache, Cache, ChunkedKvCache, KvCache, LayerCache, QuantizedKvCache, RotatingKvCache, check_fits,
};
use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::io::{SafeTensors, save_safetensors};
use crate::ops::{self, Quantization, QuantizationMode};

/// Under this key of the metadata are the positions seen, which states do not tell.
const POSITION: &str = "mlxport_position";

/// Deeper than any state.
const MAX_DEPTH: usize = 12;

/// A part of a state.
#[derive(Debug, Clone)]
enum Part {
    Array(Array),
    Number(i64),
    Text(String),
    None,
    List(Vec<Part>),
}

impl Cache {
    /// Writes the cache, of one sequence or several of the same length, with texts of the caller.
    ///
    /// Fails for a batch with padding: take its [`row`](Self::row)s.
    pub fn save(&self, path: impl AsRef<Path>, metadata: &BTreeMap<String, String>) -> Result<()> {
        let layers = self.layers.iter().map(LayerCache::state_and_class).collect::<Result<Vec<_>>>()?;
        let (mut arrays, mut kinds) = (Vec::new(), Vec::new());
        let mut texts: BTreeMap<String, String> =
            metadata.iter().map(|(key, value)| (format!("0.{key}"), value.clone())).collect();
        texts.insert(format!("0.{POSITION}"), self.offset().to_string());
        for (i, (state, class)) in layers.into_iter().enumerate() {
            texts.insert(format!("1.{i}"), class.to_owned());
            flatten(state, i.to_string(), &mut arrays, &mut kinds)?;
        }
        texts.insert("2.0".to_owned(), String::new());
        for (i, (place, kind)) in kinds.into_iter().enumerate() {
            texts.insert(format!("2.{}.0", i + 1), place);
            texts.insert(format!("2.{}.1", i + 1), kind.to_owned());
        }
        save_safetensors(path, arrays.iter().map(|(name, array)| (name.as_str(), array)), &texts)
    }

    /// Reads a cache, and the texts of who wrote it.
    ///
    /// Fails for files that are not prompt caches, and for states that no layer can have. Whether the
    /// cache is one of a model's: [`check_of`](Self::check_of).
    pub fn load(path: impl AsRef<Path>) -> Result<(Self, BTreeMap<String, String>)> {
        let path = path.as_ref();
        let file = SafeTensors::open(path)?;
        let (mut metadata, mut classes, mut kinds) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (key, text) in file.metadata() {
            let wrong = || Error::invalid(path, format!("`{key}` in the metadata is not a prompt cache's"));
            match key.split_once('.').ok_or_else(wrong)? {
                ("0", key) => drop(metadata.insert(key.to_owned(), text.clone())),
                ("1", layer) => drop(classes.insert(layer.parse::<usize>().map_err(|_| wrong())?, text)),
                ("2", "0") => {}
                ("2", kind) => {
                    let (number, half) = kind.split_once('.').ok_or_else(wrong)?;
                    let entry: &mut [Option<&String>; 2] = kinds.entry(number).or_default();
                    let half = half.parse::<usize>().ok().and_then(|half| entry.get_mut(half));
                    *half.ok_or_else(wrong)? = Some(text);
                }
                _ => return Err(wrong()),
            }
        }
        let kinds: BTreeMap<&str, &str> =
            kinds.into_values().filter_map(|[place, kind]| Some((place?.as_str(), kind?.as_str()))).collect();
        let position = metadata.remove(POSITION).and_then(|text| text.parse::<i32>().ok());
        if classes.is_empty() || !classes.keys().copied().eq(0..classes.len()) {
            return Err(Error::invalid(path, "it is not a prompt cache: it does not name its layers"));
        }
        let mut tree = Tree::default();
        for key in file.keys() {
            let kind = kinds.get(key).copied();
            tree.insert(key, leaf(&file, key, kind)?).map_err(|e| Error::invalid(path, e))?;
        }
        let mut layers = Vec::new();
        for (i, class) in classes {
            let state = tree.take(i);
            let layer = LayerCache::from_state(class, state);
            layers.push(layer.map_err(|e| Error::invalid(path, format!("layer {i}, a {class}: {e}")))?);
        }
        let mut cache = Self::new(layers);
        let known = cache.offset();
        let position = if known > 0 { known } else { position.unwrap_or(0).max(0) };
        cache.layers.iter_mut().for_each(|layer| layer.set_position(position));
        Ok((cache, metadata))
    }

    /// Fails unless this is a cache that `made`, an empty one of a model, can have become.
    pub fn check_of(&self, made: &Self) -> Result<()> {
        if self.layers.len() != made.layers.len() {
            let (found, needed) = (self.layers.len(), made.layers.len());
            let message = format!("a prompt cache of {found} layers for a model with {needed}");
            return Err(Error::argument("prompt cache", message));
        }
        for (i, (layer, made)) in self.layers.iter().zip(&made.layers).enumerate() {
            if !layer.can_be(made) {
                let (found, needed) = (layer.kind(), made.kind());
                let message =
                    format!("layer {i} of the prompt cache is a {found}, that of the model a {needed}");
                return Err(Error::argument("prompt cache", message));
            }
        }
        Ok(())
    }

    /// One line for each layer: its class, positions, and the shapes of its arrays.
    pub fn describe(&self) -> Vec<String> {
        let shape = |array: &Array| format!("{:?} {}", array.shape(), array.dtype());
        let line = |layer: &LayerCache| {
            let arrays: Vec<String> = layer.arrays().into_iter().map(shape).collect();
            format!("{} at {}: {}", layer.class(), layer.position(), arrays.join(", "))
        };
        self.layers.iter().map(line).collect()
    }
}

impl LayerCache {
    /// mlx-lm's name.
    fn class(&self) -> &'static str {
        match self {
            LayerCache::Stateless => "no cache",
            LayerCache::Kv(_) => "KVCache",
            LayerCache::Quantized(_) => "QuantizedKVCache",
            LayerCache::Rotating(_) => "RotatingKVCache",
            LayerCache::Chunked(_) => "ChunkedKVCache",
            LayerCache::Arrays(_) => "ArraysCache",
            LayerCache::List(_) => "CacheList",
            LayerCache::Padded(_, _) => "batch with padding",
        }
    }

    /// The class, and the sizes that it is made with.
    fn kind(&self) -> String {
        let class = self.class();
        match self {
            LayerCache::Rotating(cache) => {
                format!("{class} of max_size {}, keep {}", cache.size(), cache.keeps())
            }
            LayerCache::Chunked(cache) => format!("{class} of chunk_size {}", cache.size()),
            LayerCache::Arrays(cache) => format!("{class} of {}", cache.arrays.len()),
            LayerCache::List(parts) => {
                let parts: Vec<String> = parts.iter().map(Self::kind).collect();
                format!("{class} of [{}]", parts.join(", "))
            }
            _ => class.to_owned(),
        }
    }

    fn can_be(&self, made: &Self) -> bool {
        match (self, made) {
            (LayerCache::Kv(_) | LayerCache::Quantized(_) | LayerCache::Rotating(_), LayerCache::Kv(_)) => {
                true
            }
            (LayerCache::Rotating(one), LayerCache::Rotating(other)) => {
                (one.size(), one.keeps()) == (other.size(), other.keeps())
            }
            (LayerCache::Chunked(one), LayerCache::Chunked(other)) => one.size() == other.size(),
            (LayerCache::Arrays(one), LayerCache::Arrays(other)) => one.arrays.len() == other.arrays.len(),
            (LayerCache::List(one), LayerCache::List(other)) => {
                one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one.can_be(other))
            }
            _ => false,
        }
    }

    /// States do not tell how many positions went into them.
    fn set_position(&mut self, position: i32) {
        match self {
            LayerCache::Arrays(cache) => cache.offset = position,
            LayerCache::List(parts) => parts.iter_mut().for_each(|part| part.set_position(position)),
            _ => {}
        }
    }

    fn state_and_class(&self) -> Result<(Part, &'static str)> {
        let number = |n: i32| Part::Number(i64::from(n));
        let arrays = |store: Option<Vec<Array>>, count: usize| match store {
            Some(store) => store.into_iter().map(Part::Array).collect(),
            None => vec![Part::None; count],
        };
        let state = match self {
            LayerCache::Kv(cache) => {
                let mut state = arrays(cache.parts()?, 2);
                state.push(number(cache.offset()));
                state
            }
            LayerCache::Quantized(cache) => {
                let mut parts = arrays(cache.seen()?, 6);
                let values = parts.split_off(3);
                let (keys, values) = match cache.offset() {
                    0 => (Part::None, Part::None),
                    _ => (Part::List(parts), Part::List(values)),
                };
                let Quantization { group_size, bits, .. } = cache.how;
                vec![keys, values, number(cache.offset()), number(group_size), number(bits)]
            }
            LayerCache::Rotating(cache) => {
                let (store, [offset, keep, size, next]) = cache.state()?;
                let mut state = arrays(store, 2);
                state.extend([offset, keep, size, next].map(number));
                state
            }
            LayerCache::Chunked(cache) => {
                let (store, [offset, size, start]) = cache.state()?;
                let mut state = arrays(store, 2);
                state.extend([offset, size, start].map(number));
                state
            }
            LayerCache::Arrays(cache) => {
                let part = |array: &Option<Array>| array.clone().map_or(Part::None, Part::Array);
                vec![Part::List(cache.arrays.iter().map(part).collect()), Part::None, Part::None]
            }
            LayerCache::List(parts) => {
                let part = |part: &LayerCache| {
                    let (state, class) = part.state_and_class()?;
                    Ok(Part::List(vec![state, Part::Text(class.to_owned())]))
                };
                parts.iter().map(part).collect::<Result<_>>()?
            }
            LayerCache::Stateless | LayerCache::Padded(_, _) => {
                return Err(Error::unsupported(
                    format!("saving a {}", self.class()),
                    "mlx-lm has no such file",
                ));
            }
        };
        Ok((Part::List(state), self.class()))
    }

    fn from_state(class: &str, state: Part) -> Result<Self> {
        let mut state = State::new(state)?;
        let layer = match class {
            "KVCache" => {
                let store = state.keys_and_values()?;
                let offset = state.offset(&store)?;
                LayerCache::Kv(KvCache::from_parts(store, offset)?)
            }
            "QuantizedKVCache" => {
                let (keys, values) = (state.packed()?, state.packed()?);
                let store = keys.zip(values).map(|(keys, values)| [keys, values].concat());
                let offset = state.offset(&store)?;
                let (group_size, bits) = (state.number(0..=1 << 16)?, state.number(0..=64)?);
                let mut cache =
                    QuantizedKvCache::new(Quantization { group_size, bits, mode: QuantizationMode::Affine })?;
                (cache.store, cache.offset) = (store, offset);
                cache.check()?;
                LayerCache::Quantized(cache)
            }
            "RotatingKVCache" => {
                let store = state.keys_and_values()?;
                let length = length(&store)?;
                let offset = state.number(0..=i32::MAX >> 2)?;
                let keep = state.number(0..=1 << 28)?;
                let size = state.number(1..=1 << 28)?;
                let next = state.number(0..=length.min(offset))?;
                if keep >= size || (next != offset && length < size.min(offset)) {
                    return Err(wrong(format!("{length} of {offset} positions in a window of {size}")));
                }
                LayerCache::Rotating(RotatingKvCache::from_parts(store, offset, next, size, keep)?)
            }
            "ChunkedKVCache" => {
                let store = state.keys_and_values()?;
                let offset = state.number(0..=i32::MAX >> 2)?;
                let size = state.number(1..=1 << 28)?;
                let start = state.number(0..=offset)?;
                if offset - start > length(&store)? {
                    return Err(wrong(format!(
                        "positions {start} to {offset} in {} places",
                        length(&store)?
                    )));
                }
                LayerCache::Chunked(ChunkedKvCache::from_parts(store, offset, size, start)?)
            }
            "ArraysCache" => {
                let Part::List(arrays) = state.next()? else {
                    return Err(wrong("its states are not a list"));
                };
                let array = |part: Part| match part {
                    Part::Array(array) => Ok(Some(array)),
                    Part::None => Ok(None),
                    _ => Err(wrong("a state that is not an array")),
                };
                let arrays = arrays.into_iter().map(array).collect::<Result<Vec<_>>>()?;
                if arrays.is_empty() {
                    return Err(wrong("its first state is missing"));
                }
                match [state.next()?, state.next()?] {
                    [Part::None, Part::None] => LayerCache::Arrays(ArraysCache { arrays, offset: 0 }),
                    _ => return Err(Error::unsupported("a batch with padding", "save its rows")),
                }
            }
            "CacheList" => {
                let mut parts = Vec::new();
                while let Ok(part) = state.next() {
                    let mut part = State::new(part)?;
                    let (state, class) = (part.next()?, part.next()?);
                    match class {
                        Part::Text(class) if class != "CacheList" => {
                            parts.push(LayerCache::from_state(&class, state)?);
                        }
                        _ => return Err(wrong("a part whose class is not known")),
                    }
                }
                LayerCache::List(parts)
            }
            other => {
                return Err(Error::unsupported(format!("a cache of class `{other}`"), "it is not known"));
            }
        };
        match state.next() {
            Ok(_) => Err(wrong("more parts than such a state has")),
            Err(_) => Ok(layer),
        }
    }
}

fn wrong(message: impl Into<String>) -> Error {
    Error::argument("prompt cache", message)
}

/// Positions that there is room for in `store`.
fn length(store: &Option<Vec<Array>>) -> Result<i32> {
    store.as_ref().map_or(Ok(0), |store| store[0].dim(2))
}

/// The parts of a state, one after the other.
struct State(std::vec::IntoIter<Part>);

impl State {
    fn new(state: Part) -> Result<Self> {
        match state {
            Part::List(parts) => Ok(Self(parts.into_iter())),
            _ => Err(wrong("its state is not a list")),
        }
    }

    fn next(&mut self) -> Result<Part> {
        self.0.next().ok_or_else(|| wrong("a part of its state is missing"))
    }

    fn number(&mut self, range: std::ops::RangeInclusive<i32>) -> Result<i32> {
        let Part::Number(number) = self.next()? else {
            return Err(wrong("a part that should be a number"));
        };
        let within = i32::try_from(number).ok().filter(|number| range.contains(number));
        within.ok_or_else(|| wrong(format!("{number} is not from {} to {}", range.start(), range.end())))
    }

    /// Positions of a store from its beginning.
    fn offset(&mut self, store: &Option<Vec<Array>>) -> Result<i32> {
        self.number(0..=length(store)?)
    }

    fn keys_and_values(&mut self) -> Result<Option<Vec<Array>>> {
        match [self.next()?, self.next()?] {
            [Part::None, Part::None] => Ok(None),
            [Part::Array(keys), Part::Array(values)] => {
                check_together(&[&keys, &values])?;
                Ok(Some(vec![keys, values]))
            }
            _ => Err(wrong("keys or values that are not arrays")),
        }
    }

    fn packed(&mut self) -> Result<Option<Vec<Array>>> {
        let parts = match self.next()? {
            Part::None => return Ok(None),
            Part::List(parts) if parts.len() == 3 => parts,
            _ => return Err(wrong("quantized keys or values that are not three arrays")),
        };
        let array = |part| if let Part::Array(array) = part { Ok(array) } else { Err(wrong("not an array")) };
        let arrays = parts.into_iter().map(array).collect::<Result<Vec<Array>>>()?;
        check_together(&arrays.iter().collect::<Vec<_>>())?;
        Ok(Some(arrays))
    }
}

/// Fails unless the arrays are `[batch, heads, length, ..]` of the same sizes. Values may have no dimensions:
/// an indexer keeps keys alone.
fn check_together(arrays: &[&Array]) -> Result<()> {
    let sizes = |array: &Array| match array.shape() {
        &[batch, heads, length, _] if batch > 0 && heads > 0 => Ok([batch, heads, length]),
        shape => Err(wrong(format!("keys or values of shape {shape:?}"))),
    };
    let first = sizes(arrays[0])?;
    for array in &arrays[1..] {
        if sizes(array)? != first {
            return Err(wrong(format!("shapes {:?} and {:?}", arrays[0].shape(), array.shape())));
        }
    }
    Ok(())
}

impl QuantizedKvCache {
    /// Fails unless codes, scales and biases go together.
    fn check(&self) -> Result<()> {
        let Some(store) = &self.store else {
            return Ok(());
        };
        check_together(&store.iter().collect::<Vec<_>>())?;
        for parts in store.chunks(3) {
            let [codes, scales, biases] = parts else {
                return Err(wrong("three arrays each"));
            };
            check_fits(scales, biases)?;
            let dims = i64::from(codes.dim(-1)?) * 32 / i64::from(self.how.bits);
            let groups = i64::from(scales.dim(-1)?) * i64::from(self.how.group_size);
            if codes.dtype() != Dtype::Uint32 || dims != groups || dims == 0 {
                let message = format!("codes {:?} and scales {:?}", codes.shape(), scales.shape());
                return Err(wrong(message));
            }
        }
        Ok(())
    }
}

/// Puts a part and what is in it into `arrays` under its place, and into `kinds` if it is no array.
fn flatten(
    part: Part,
    place: String,
    arrays: &mut Vec<(String, Array)>,
    kinds: &mut Vec<(String, &'static str)>,
) -> Result<()> {
    let (array, kind) = match part {
        Part::List(parts) => {
            let mut parts = parts.into_iter().enumerate();
            return parts.try_for_each(|(i, part)| flatten(part, format!("{place}.{i}"), arrays, kinds));
        }
        Part::Array(array) => (array, None),
        Part::Number(number) => (Array::from(number as i32), Some("scalar")),
        Part::Text(text) => {
            let codes: Vec<i32> = text.chars().map(|c| c as i32).collect();
            (Array::from_slice(&codes, &[codes.len() as i32])?, Some("string"))
        }
        Part::None => (Array::from_slice::<f32>(&[], &[0])?, Some("none")),
    };
    kinds.extend(kind.map(|kind| (place.clone(), kind)));
    arrays.push((place, array));
    Ok(())
}

fn leaf(file: &SafeTensors, key: &str, kind: Option<&str>) -> Result<Part> {
    let size: i64 = file.info(key)?.shape.iter().map(|&n| i64::from(n)).product();
    let array = || file.array(key);
    let fail = |message: &str| Err(Error::invalid(file.path(), format!("`{key}` {message}")));
    match kind {
        None => array().map(Part::Array),
        Some("none") => Ok(Part::None),
        Some("scalar") if size == 1 && !file.info(key)?.dtype.is_inexact() => {
            let array = ops::reshape(&ops::astype(&array()?, Dtype::Int64)?, &[])?;
            array.item::<i64>().map(Part::Number)
        }
        Some("string") if size <= 256 => {
            let codes: Vec<i64> = ops::astype(&array()?, Dtype::Int64)?.to_vec()?;
            let char = |code: i64| u32::try_from(code).ok().and_then(char::from_u32);
            match codes.into_iter().map(char).collect() {
                Some(text) => Ok(Part::Text(text)),
                None => fail("is not a text"),
            }
        }
        Some("scalar" | "string") => fail("is not a number, or too long for a text"),
        Some(_) => fail("is of a kind that prompt caches do not have"),
    }
}

/// Leaves by their places.
#[derive(Debug, Default)]
struct Tree {
    leaf: Option<Part>,
    branches: BTreeMap<usize, Tree>,
}

impl Tree {
    fn insert(&mut self, key: &str, leaf: Part) -> Result<()> {
        let bad = || wrong(format!("`{key}` is not a place in the state of a layer"));
        if key.split('.').count() > MAX_DEPTH {
            return Err(bad());
        }
        let mut tree = self;
        for step in key.split('.') {
            tree = tree.branches.entry(step.parse().map_err(|_| bad())?).or_default();
        }
        tree.leaf = Some(leaf);
        Ok(())
    }

    fn take(&mut self, branch: usize) -> Part {
        self.branches.remove(&branch).map_or(Part::List(Vec::new()), Self::part)
    }

    /// Places that are missing end a list: what is behind them is missed as its next part.
    fn part(self) -> Part {
        match self.leaf {
            Some(leaf) => leaf,
            None => Part::List(
                self.branches
                    .into_iter()
                    .enumerate()
                    .take_while(|(i, (at, _))| i == at)
                    .map(|(_, (_, tree))| tree.part())
                    .collect(),
            ),
        }
    }
}
