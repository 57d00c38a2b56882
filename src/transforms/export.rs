//! Functions in files, and graphs as pictures.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};

use tempfile::TempPath;

use crate::array::Array;
use crate::device::{Device, default_device};
use crate::error::{Error, Result};
use crate::ffi::{self, Exporter, Imported, KeywordClosure, MapArrays, VectorArray, call};
use crate::ops;

/// Writes the graph of `f`, as traced with `args`, to the file `path` (usually `*.mlxfn`), with the
/// arrays that `f` captures. [`import_function`] and MLX in other languages read it. `shapeless`: the
/// function takes arguments of any shapes, with these numbers of dimensions.
///
/// The file appears when it is complete.
pub fn export_function<'a, R: Into<Vec<Array>>>(
    path: impl AsRef<Path>,
    f: impl Fn(&[Array]) -> Result<R>,
    args: impl IntoIterator<Item = &'a Array>,
    shapeless: bool,
) -> Result<()> {
    let exporter = FunctionExporter::new(path, f, shapeless)?;
    exporter.trace(args)?;
    exporter.finish()
}

/// Writes several traces of one function to a file, for arguments of different shapes, dtypes or number.
/// Without [`finish`](Self::finish), nothing is written.
pub struct FunctionExporter<'f> {
    // The exporter closes its file before the file is moved or removed.
    exporter: Exporter<'f>,
    part: TempPath,
    path: PathBuf,
}

impl<'f> FunctionExporter<'f> {
    /// Starts a file with traces of `f`.
    pub fn new<R: Into<Vec<Array>>>(
        path: impl AsRef<Path>,
        f: impl Fn(&[Array]) -> Result<R> + 'f,
        shapeless: bool,
    ) -> Result<Self> {
        Self::with_kwargs(path, move |args, _| f(args), shapeless)
    }

    /// Starts a file with traces of a function that also takes arrays by name.
    pub fn with_kwargs<R: Into<Vec<Array>>>(
        path: impl AsRef<Path>,
        f: impl Fn(&[Array], &BTreeMap<String, Array>) -> Result<R> + 'f,
        shapeless: bool,
    ) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let part = tempfile::Builder::new().prefix(".export").tempfile_in(dir);
        let part = part.map_err(|e| Error::io(&path, e))?.into_temp_path();
        let f =
            KeywordClosure::new(Box::new(move |args, named| ffi::dense_constants(&f(args, named)?.into())));
        let exporter = Exporter::new(&c_path("export_function", &part)?, &f, shapeless)?;
        Ok(Self { exporter, part, path })
    }

    /// Adds the trace for `args`. Fails if the file has one for the same shapes and dtypes.
    pub fn trace<'a>(&self, args: impl IntoIterator<Item = &'a Array>) -> Result<()> {
        self.trace_with_kwargs(args, [])
    }

    /// Adds the trace for `args` and the named `kwargs`.
    pub fn trace_with_kwargs<'a, 'k>(
        &self,
        args: impl IntoIterator<Item = &'a Array>,
        kwargs: impl IntoIterator<Item = (&'k str, &'k Array)>,
    ) -> Result<()> {
        ffi::ready(default_device())?;
        let exporter = &self.exporter;
        // Copies, so that `f` may capture its arguments too.
        let args: Vec<Array> = args.into_iter().map(ops::copy).collect::<Result<_>>()?;
        let kwargs: Vec<(&str, Array)> =
            kwargs.into_iter().map(|(name, x)| Ok((name, ops::copy(x)?))).collect::<Result<_>>()?;
        let kwargs = named("export_function", kwargs.iter().map(|(name, x)| (*name, x)))?;
        let args = VectorArray::new(&args);
        ffi::on_deep_stack(|| call!(mlx_function_exporter_apply_kwargs;; exporter, args, kwargs))
    }

    /// Puts the file in its place.
    pub fn finish(self) -> Result<()> {
        let Self { exporter, part, path } = self;
        drop(exporter);
        part.persist(&path).map_err(|e| Error::io(&path, e.error))
    }
}

/// Reads a function that [`export_function`] or MLX in another language wrote.
///
/// Such a file is a program, which MLX trusts: read none of unknown origin.
pub fn import_function(path: impl AsRef<Path>) -> Result<ImportedFunction> {
    // MLX gives the function's constants to the thread's CPU stream.
    ffi::ready(Device::cpu())?;
    Imported::new(&c_path("import_function", path.as_ref())?).map(ImportedFunction)
}

/// A function from a file.
pub struct ImportedFunction(Imported);

impl ImportedFunction {
    /// The values of the function. Fails if it was not exported for arguments of these shapes and dtypes.
    pub fn call<'a>(&self, args: impl IntoIterator<Item = &'a Array>) -> Result<Vec<Array>> {
        self.call_with_kwargs(args, [])
    }

    /// As [`call`](Self::call), with arrays by name.
    pub fn call_with_kwargs<'a, 'k>(
        &self,
        args: impl IntoIterator<Item = &'a Array>,
        kwargs: impl IntoIterator<Item = (&'k str, &'k Array)>,
    ) -> Result<Vec<Array>> {
        ffi::ready(default_device())?;
        let function = &self.0;
        let (args, kwargs) = (VectorArray::new(args), named("import_function", kwargs)?);
        let mut out = VectorArray::empty();
        call!(mlx_imported_function_apply_kwargs; out.0; function, args, kwargs)?;
        out.to_arrays()
    }
}

/// The graph that computes `outputs`, in Graphviz's DOT language. Arrays in `names` are labelled so,
/// the others with letters.
pub fn graph_to_dot<'a, 'n>(
    outputs: impl IntoIterator<Item = &'a Array>,
    names: impl IntoIterator<Item = (&'n str, &'n Array)>,
) -> Result<String> {
    let outputs = VectorArray::new(outputs);
    let mut labels = Vec::new();
    for (name, array) in names {
        let name = name.replace('\\', "\\\\").replace('"', "\\\"");
        labels.push((c_string("graph_to_dot", name.as_bytes())?, array));
    }
    ffi::on_deep_stack(|| ffi::graph_dot(&outputs, &labels))
}

fn named<'k>(op: &'static str, entries: impl IntoIterator<Item = (&'k str, &'k Array)>) -> Result<MapArrays> {
    let entries = entries.into_iter().map(|(name, array)| Ok((c_string(op, name.as_bytes())?, array)));
    let entries: Vec<(CString, &Array)> = entries.collect::<Result<_>>()?;
    MapArrays::new(entries.iter().map(|(name, array)| (name.as_c_str(), *array)))
}

fn c_path(op: &'static str, path: &Path) -> Result<CString> {
    c_string(op, path.as_os_str().as_encoded_bytes())
}

fn c_string(op: &'static str, bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::argument(op, "a name with a NUL in it"))
}
