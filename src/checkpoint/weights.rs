//! Weights by path.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{Display, Write as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::map::WeightMap;
use super::rules::Misfit;
use super::{Config, Files, QuantizationConfig, Rules, foreign, nearest};
use crate::array::Array;
use crate::error::{Error, Result};
use crate::io::TensorInfo;
use crate::ops::{self, Quantization};

/// Names for which the nearest others are looked for.
const SUGGESTED: usize = 8;

/// The weights of a model at some path: a cheap handle that a layer reads its parameters from.
///
/// Paths grow with [`pp`](Self::pp), and clones share one account of what was asked for, which
/// [`finish`](Self::finish) settles.
#[derive(Debug, Clone)]
pub struct Weights {
    root: Rc<Root>,
    path: String,
}

#[derive(Debug)]
struct Root {
    source: Source,
    map: WeightMap,
    /// What the config says.
    quantization: Option<QuantizationConfig>,
    /// The tensors of `map` that were computed.
    computed: RefCell<HashMap<usize, Array>>,
    taken: RefCell<BTreeSet<String>>,
    /// Names that were asked for and are not there.
    absent: RefCell<BTreeSet<String>>,
    /// What is missing or has another shape, where all of it is looked for.
    faults: RefCell<Option<Vec<Error>>>,
    /// What did not fit the rules.
    misfits: Vec<Misfit>,
    /// The matrices that were read, and how they are quantized.
    matrices: RefCell<BTreeMap<String, Option<Quantization>>>,
    /// Matrices whose inputs are rotated, and in blocks of what size.
    rotations: RefCell<BTreeMap<String, i32>>,
}

#[derive(Debug)]
enum Source {
    Files(Files),
    Arrays(HashMap<String, Array>),
}

impl Source {
    fn array(&self, key: &str) -> Result<Array> {
        match self {
            Source::Files(files) => files.array(key),
            Source::Arrays(arrays) => Ok(arrays[key].clone()),
        }
    }
}

impl Weights {
    /// The weights of a checkpoint directory, under the names that `rules` give them. Reads the
    /// headers alone; a weight is read when its values are.
    pub fn open(dir: &Path, rules: &Rules) -> Result<Self> {
        let files = Files::open(dir)?;
        let map = rules.plan(&files.tensors()?).map_err(|e| Error::invalid(dir, e))?;
        Ok(Self::new(Source::Files(files), (map, Vec::new()), None))
    }

    /// As [`open`](Self::open), for the checkpoint that `config` is of: what another program has quantized
    /// is decoded first, and the config's quantization must be that of the weights.
    pub fn of(config: &Config, dir: &Path, rules: &Rules) -> Result<Self> {
        let files = Files::open(dir)?;
        let rules = foreign::rules(config, &files)?.append(rules.clone());
        let map = rules.plan(&files.tensors()?).map_err(|e| Error::invalid(dir, e))?;
        Ok(Self::new(Source::Files(files), (map, Vec::new()), config.quantization()?))
    }

    /// As [`of`](Self::of), where [`make`](Self::make) tells what did not fit the rules.
    pub(crate) fn to_make(config: &Config, dir: &Path, rules: &Rules) -> Result<Self> {
        let files = Files::open(dir)?;
        let rules = foreign::rules(config, &files)?.append(rules.clone());
        let planned = rules.plan_what_fits(&files.tensors()?);
        Ok(Self::new(Source::Files(files), planned, config.quantization()?))
    }

    /// Weights that are in memory: for training and tests.
    pub fn from_arrays(arrays: impl IntoIterator<Item = (String, Array)>) -> Self {
        let arrays: HashMap<String, Array> = arrays.into_iter().collect();
        let info = |(key, array): (&String, &Array)| TensorInfo {
            key: key.clone(),
            shape: array.shape().to_vec(),
            dtype: array.dtype(),
        };
        let mut tensors: Vec<TensorInfo> = arrays.iter().map(info).collect();
        tensors.sort_by(|a, b| a.key.cmp(&b.key));
        Self::new(Source::Arrays(arrays), (WeightMap::identity(&tensors), Vec::new()), None)
    }

    fn new(
        source: Source,
        (map, misfits): (WeightMap, Vec<Misfit>),
        quantization: Option<QuantizationConfig>,
    ) -> Self {
        let (computed, taken, absent) = <(RefCell<_>, RefCell<_>, RefCell<_>)>::default();
        let (matrices, rotations, faults) = <(RefCell<_>, RefCell<_>, RefCell<_>)>::default();
        let root =
            Root { source, map, quantization, computed, taken, absent, faults, misfits, matrices, rotations };
        Self { root: Rc::new(root), path: String::new() }
    }

    /// The weights under one more segment of the path: a name, several joined by dots, or an index.
    pub fn pp(&self, segment: impl Display) -> Self {
        Self { root: self.root.clone(), path: self.full(segment) }
    }

    /// The path so far, without a trailing dot; empty at the root.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The path of `name` from the root.
    pub fn full(&self, name: impl Display) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }

    /// The weight `name`. Fails with [`Error::MissingWeight`] if there is none.
    pub fn get(&self, name: &str) -> Result<Array> {
        let missing = || Error::MissingWeight { path: self.full(name), file: self.file() };
        self.try_get(name)?.ok_or_else(missing)
    }

    /// The weight `name`, if there is one.
    pub fn try_get(&self, name: &str) -> Result<Option<Array>> {
        let path = self.full(name);
        let Some(at) = self.root.map.target(&path) else {
            self.root.absent.borrow_mut().insert(path);
            return Ok(None);
        };
        let root = &*self.root;
        let array = root.map.compute(at, &mut root.computed.borrow_mut(), &|key| root.source.array(key))?;
        root.taken.borrow_mut().insert(path);
        Ok(Some(array))
    }

    /// The weight `name`, which must have this shape.
    pub fn get_shaped(&self, name: &str, shape: &[i32]) -> Result<Array> {
        let error = match self.try_get(name)? {
            Some(array) if array.shape() == shape => return Ok(array),
            Some(array) => {
                let (path, found) = (self.full(name), array.shape());
                let message = format!("weight `{path}`: expected shape {shape:?}, found {found:?}");
                Error::invalid(self.file(), message)
            }
            None => Error::MissingWeight { path: self.full(name), file: self.file() },
        };
        self.stand_in(error, shape)
    }

    /// What stands in for a weight that does not fit: zeros, where all those are looked for, else nothing.
    pub(crate) fn stand_in(&self, error: Error, shape: &[i32]) -> Result<Array> {
        const MOST: usize = 64;
        match &mut *self.root.faults.borrow_mut() {
            Some(faults) if faults.len() < MOST => {
                faults.push(error);
                ops::broadcast_to(&Array::from(0f32), shape)
            }
            _ => Err(error),
        }
    }

    /// The model that `make` makes of all weights. Fails with everything that does not fit: weights that are
    /// missing, for the model or for a rule, have another shape, or are of no use.
    pub(crate) fn make<M>(&self, make: impl Fn(&Self) -> Result<M>) -> Result<M> {
        let misfits = &self.root.misfits;
        let first = match make(self).and_then(|model| self.finish().map(|()| model)) {
            Ok(model) if misfits.is_empty() => return Ok(model),
            Ok(_) => None,
            Err(error) => Some(error),
        };
        self.root.faults.replace(Some(Vec::new()));
        self.root.taken.take();
        self.root.absent.take();
        let left = make(self).map(|_| self.unused()).unwrap_or_default();
        let mut faults = self.root.faults.take().unwrap_or_default();
        faults.retain(|fault| match fault {
            Error::MissingWeight { path, .. } => !misfits.iter().any(|misfit| misfit.names.contains(path)),
            _ => true,
        });
        let alone = match faults.as_slice() {
            [] => true,
            [only] => left.is_empty() && !matches!(only, Error::MissingWeight { .. }),
            _ => false,
        };
        if let Some(first) = first.filter(|_| misfits.is_empty() && alone) {
            return Err(first);
        }
        let mut message = "the weights are not those of this config:".to_owned();
        for misfit in misfits {
            let _ = write!(message, "\n  {}", misfit.message);
        }
        for (at, fault) in faults.iter().enumerate() {
            let _ = match fault {
                Error::MissingWeight { path, .. } => {
                    let close = if at < SUGGESTED { self.close_to(path, &left) } else { String::new() };
                    write!(message, "\n  missing weight `{path}`{close}")
                }
                Error::Invalid { message: what, .. } => write!(message, "\n  {what}"),
                other => write!(message, "\n  {other}"),
            };
        }
        Err(Error::invalid(self.file(), message + &self.list(&left)))
    }

    /// Whether there is a weight `name`. Asking does not count as taking it.
    pub fn contains(&self, name: &str) -> bool {
        self.root.map.target(&self.full(name)).is_some()
    }

    /// Shape and dtype of every weight under this path, with its path from the root. Asking does not
    /// count as taking them.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.root.map.targets().filter(|tensor| self.is_under(&tensor.key))
    }

    /// What the config says of the layer at this path, if it names it: how it is quantized, or that it is
    /// not.
    pub fn named_quantization(&self) -> Option<Option<Quantization>> {
        self.root.quantization.as_ref()?.layers.get(&self.path).copied()
    }

    /// The matrices that were read, by the paths of their layers, and how each is quantized. These are
    /// what can be quantized; norms, convolutions and the like are not among them.
    pub fn matrices(&self) -> BTreeMap<String, Option<Quantization>> {
        self.root.matrices.borrow().clone()
    }

    /// Says which matrices, by their full paths, have a rotation of blocks of so many columns folded in: with
    /// them [`Weight`](crate::nn::Weight) reads the `signs` beside them.
    pub fn rotate(&self, blocks: BTreeMap<String, i32>) {
        *self.root.rotations.borrow_mut() = blocks;
    }

    /// Of how many columns the blocks of the rotation are that the matrix at this path has, if it has one.
    pub fn rotation(&self) -> Option<i32> {
        self.root.rotations.borrow().get(&self.path).copied()
    }

    /// Remembers that a matrix was read here.
    pub(crate) fn note_matrix(&self, how: Option<Quantization>) {
        self.root.matrices.borrow_mut().insert(self.path.clone(), how);
    }

    /// The weight at a full path, computed anew: it and what leads to it are dropped with the array.
    pub fn fresh(&self, path: &str) -> Result<Array> {
        let missing = || Error::MissingWeight { path: path.to_owned(), file: self.file() };
        let at = self.root.map.target(path).ok_or_else(missing)?;
        self.root.map.compute(at, &mut HashMap::new(), &|key| self.root.source.array(key))
    }

    /// Gives back the memory of the tensors that the weight at a full path was read from.
    pub fn release(&self, path: &str) {
        if let (Source::Files(files), Some(at)) = (&self.root.source, self.root.map.target(path)) {
            self.root.map.sources_of(at).for_each(|source| files.release(&source.key));
        }
    }

    /// How the weights came from the checkpoint.
    pub fn map(&self) -> &WeightMap {
        &self.root.map
    }

    /// The checkpoint's directory, for messages.
    pub fn file(&self) -> PathBuf {
        match &self.root.source {
            Source::Files(files) => files.dir().to_path_buf(),
            Source::Arrays(_) => PathBuf::from("weights in memory"),
        }
    }

    /// Settles the account: fails with every weight under this path that nothing asked for, and the
    /// names it may have been meant for. A model's constructor ends with this call, so that each key
    /// of a checkpoint is used, or dropped by a rule that says why; or it has no elements.
    pub fn finish(&self) -> Result<()> {
        let unused = self.unused();
        if unused.is_empty() {
            return Ok(());
        }
        let message = format!("{} weights that the model does not use:", unused.len()) + &self.list(&unused);
        let advice = "\nAdd a rule that renames them, or one that drops them and says why.";
        Err(Error::invalid(self.file(), message + advice))
    }

    /// The weights under this path that nothing asked for.
    fn unused(&self) -> Vec<&TensorInfo> {
        let taken = self.root.taken.borrow();
        let left = |tensor: &&TensorInfo| !taken.contains(&tensor.key) && !tensor.shape.contains(&0);
        self.tensors().filter(left).collect()
    }

    /// The names nearest to this one, of weights that are `left`; if none is near, of all that are there.
    fn close_to(&self, path: &str, left: &[&TensorInfo]) -> String {
        let mut close = nearest(path, left.iter().map(|tensor| tensor.key.as_str()), 1);
        if close.is_empty() {
            let (sources, targets) = (self.root.map.sources(), self.root.map.targets());
            close = nearest(path, sources.chain(targets).map(|tensor| tensor.key.as_str()), 4);
            close.dedup();
            close.truncate(2);
        }
        match close.as_slice() {
            [] => String::new(),
            [one] => format!(" (there is `{one}`)"),
            several => format!(" (there are `{}`)", several.join("`, `")),
        }
    }

    /// A line for each of them, with the name that it may have been meant for.
    fn list(&self, unused: &[&TensorInfo]) -> String {
        let (absent, mut lines) = (self.root.absent.borrow(), String::new());
        for (at, tensor) in unused.iter().enumerate() {
            let _ = write!(lines, "\n  {tensor}");
            if at < SUGGESTED
                && let Some(name) = nearest(&tensor.key, absent.iter().map(String::as_str), 1).first()
            {
                let _ = write!(lines, " (the model asked for `{name}`)");
            }
        }
        lines
    }

    fn is_under(&self, key: &str) -> bool {
        let rest = key.strip_prefix(self.path.as_str());
        self.path.is_empty() || rest.is_some_and(|rest| rest.starts_with('.'))
    }
}
