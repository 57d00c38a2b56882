//! Errors.

use crate::array::Dtype;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug)]
pub enum Error {
    Argument { op: &'static str, message: String },
    Unsupported { what: String, why: String },
    Dtype { op: &'static str, expected: Dtype, found: Dtype },
}

impl Error {
    pub fn argument(op: &'static str, message: impl Into<String>) -> Self {
        Self::Argument { op, message: message.into() }
    }

    pub fn unsupported(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into(), why: why.into() }
    }
}
