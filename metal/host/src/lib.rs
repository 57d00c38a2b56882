//! Runs Metal shaders on the CPU, for tests: compiles a `.metal` source as C++, every thread of a threadgroup a fiber,
//! and reports accesses out of bounds, races, reads of memory that nothing has written and barriers that not all reach.
//! What is emulated, and what is not: `README.md` beside this crate.

mod compile;
mod custom;
mod ffi;
mod launch;
mod source;
#[path = "../../../build/sources.rs"]
#[allow(dead_code)]
mod sources;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

pub use custom::{Custom, Input};
pub use launch::{Buffer, Grid, Kernel, Order, Outputs};

/// Why a shader was not compiled or did not run to its end.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("{what}: {why}")]
    Io { what: String, why: String },
    /// The source is no kernel that the runner can read.
    #[error("{shader}: {why}")]
    Source { shader: String, why: String },
    #[error("{shader}: the C++ compiler refuses it:\n{log}")]
    Compile { shader: String, log: String },
    /// An argument that does not fit the kernel's signature.
    #[error("{kernel}: {why}")]
    Argument { kernel: String, why: String },
    /// What the runner saw while the kernel ran.
    #[error("{kernel}, thread {thread:?}: {message}{}{}", at(" at ", .place), at(", the other at ", .other_place))]
    Fault {
        kernel: String,
        fault: Fault,
        /// The thread's position in the grid.
        thread: [u32; 3],
        message: String,
        /// File and line, where they are known.
        place: Option<String>,
        /// The same of the other access of a race.
        other_place: Option<String>,
    },
    /// Two orders of the threads gave different bytes.
    #[error("{kernel}: output {output} differs between two orders of the threads, first at byte {byte}")]
    OrderDependent { kernel: String, output: usize, byte: usize },
}

fn at(words: &str, place: &Option<String>) -> String {
    place.as_ref().map(|p| format!("{words}{p}")).unwrap_or_default()
}

/// The kinds of [`Error::Fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Outside of a buffer or threadgroup array.
    Bounds,
    /// Two threads at one byte, one of them writing, with nothing that orders them.
    Race,
    /// A barrier or simdgroup operation that only some threads reach.
    Divergence,
    /// A read of output or threadgroup memory before any write.
    Uninitialized,
    /// An address that belongs to nothing.
    Wild,
    /// More threads, memory or time than Metal, or the runner, has.
    Limit,
    /// Anything else, told in the message.
    Other,
}

pub type Result<T> = std::result::Result<T, Error>;

/// A Metal source and the folders that its `#include`s are looked up in.
#[derive(Debug, Clone)]
pub struct Shader {
    name: String,
    text: String,
    includes: Vec<PathBuf>,
    parsed: Arc<OnceLock<Result<source::Program>>>,
}

impl Shader {
    /// Reads a `.metal` file.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::Io { what: path.display().to_string(), why: e.to_string() })?;
        let shader = Self::from_source(&path.display().to_string(), text);
        Ok(match path.parent() {
            Some(folder) => shader.include(folder),
            None => shader,
        })
    }

    /// A shader from text; `name` is what errors call it.
    pub fn from_source(name: &str, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into(), includes: Vec::new(), parsed: Arc::default() }
    }

    /// A shader of the pinned MLX sources, by its path in `mlx/backend/metal/kernels`.
    pub fn from_mlx(file: &str) -> Result<Self> {
        let root = mlx_source()?;
        Ok(Self::from_file(root.join("mlx/backend/metal/kernels").join(file))?.include(root))
    }

    /// Adds a folder for `#include`.
    pub fn include(mut self, folder: impl Into<PathBuf>) -> Self {
        self.includes.push(folder.into());
        self.parsed = Arc::default();
        self
    }

    /// Compiles one kernel: by the name of its function and its template arguments as they would be written in the
    /// source (`["float", "64"]`), or, with none, by its `host_name`.
    pub fn kernel(&self, name: &str, template_arguments: &[&str]) -> Result<Kernel> {
        let program = self.program()?;
        let (function, call) = match (program.host_names.get(name), template_arguments) {
            (Some(call), []) => (call.split('<').next().unwrap_or(name).trim().to_owned(), call.clone()),
            (_, []) => (name.to_owned(), name.to_owned()),
            _ => (name.to_owned(), format!("{name}<{}>", template_arguments.join(", "))),
        };
        let found = program.kernels.iter().find(|k| k.name == function).ok_or_else(|| Error::Source {
            shader: self.name.clone(),
            why: format!(
                "no kernel {function}; it has {}",
                program.kernels.iter().map(|k| k.name.as_str()).collect::<Vec<_>>().join(", ")
            ),
        })?;
        let bindings = launch::bind(&call, &found.parameters)?;
        let launcher = launch::launcher(&call, &bindings, &program.constants);
        let library = compile::library(&self.name, &program.text, &launcher)?;
        Ok(Kernel::new(call, bindings, program.constants.clone(), library))
    }

    fn program(&self) -> Result<&source::Program> {
        self.parsed
            .get_or_init(|| {
                let flat = compile::preprocess(&self.name, &self.text, &self.includes)?;
                source::read(&flat).map_err(|why| Error::Source { shader: self.name.clone(), why })
            })
            .as_ref()
            .map_err(Clone::clone)
    }
}

/// The folder of the pinned MLX sources, found and verified as the build does.
pub fn mlx_source() -> Result<PathBuf> {
    static FOUND: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let vendor = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vendor");
            let pins = sources::read_pins(&vendor)?;
            let pin = pins.get("mlx").ok_or("vendor/pins.json has no entry mlx")?;
            let over = std::env::var_os("MLXPORT_MLX_SOURCE").map(PathBuf::from);
            sources::locate(&vendor, "mlx", pin, over).map(|s| s.path)
        })
        .clone()
        .map_err(|why| Error::Io { what: "the sources of MLX".into(), why })
}
