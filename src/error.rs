//! The one error type of the crate.

use std::path::{Path, PathBuf};

use crate::array::Dtype;

/// What went wrong, with the operands that made it so.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are named for what they hold")]
pub enum Error {
    /// MLX refused an operation, or failed while computing it.
    #[error("{op}: {message}")]
    Mlx { op: &'static str, message: String },
    /// Two shapes that do not go together.
    #[error("{op}: shapes {lhs:?} and {rhs:?} do not match")]
    Shape { op: &'static str, lhs: Vec<i32>, rhs: Vec<i32> },
    /// An array of another dtype than the caller asked for.
    #[error("{op}: expected dtype {expected}, found {found}")]
    Dtype { op: &'static str, expected: Dtype, found: Dtype },
    /// An argument outside what the operation accepts.
    #[error("{op}: {message}")]
    Argument { op: &'static str, message: String },
    /// A closure that MLX called has panicked; the panic was stopped before it reached C++.
    #[error("a closure panicked: {message}")]
    Panic { message: String },
    /// A parameter of the model that the checkpoint does not have.
    #[error("missing weight `{path}` in {}", file.display())]
    MissingWeight { path: String, file: PathBuf },
    /// Something this version or this machine cannot do.
    #[error("{what} is not supported: {why}")]
    Unsupported { what: String, why: String },
    /// A file that could not be read or written.
    #[error("{}: {message}", path.display())]
    Io { path: PathBuf, message: String },
    /// A file whose content is not what it should be.
    #[error("{}: {message}", path.display())]
    Invalid { path: PathBuf, message: String },
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Argument`].
    pub fn argument(op: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Error::Argument { op, message }
    }

    /// An [`Error::Io`] for `path`.
    pub fn io(path: impl AsRef<Path>, cause: impl std::fmt::Display) -> Self {
        let path = path.as_ref().to_path_buf();
        let message = cause.to_string();
        Error::Io { path, message }
    }

    /// An [`Error::Invalid`] for `path`.
    pub fn invalid(path: impl AsRef<Path>, message: impl std::fmt::Display) -> Self {
        let path = path.as_ref().to_path_buf();
        let message = message.to_string();
        Error::Invalid { path, message }
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(what: impl Into<String>, why: impl Into<String>) -> Self {
        let (what, why) = (what.into(), why.into());
        Error::Unsupported { what, why }
    }
}
