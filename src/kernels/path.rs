//! Which implementation runs.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// An implementation of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Path {
    /// Operations of MLX.
    Reference,
    /// Rust for any CPU.
    Portable,
    /// x86 with AVX2, FMA and F16C.
    Avx2,
}

impl Path {
    /// Every path, the fastest last.
    pub const ALL: [Self; 3] = [Self::Reference, Self::Portable, Self::Avx2];

    /// `reference`, `portable` or `avx2`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
        }
    }

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Reference | Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 => false,
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Path {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|p| p.name() == name);
        found.ok_or_else(|| Error::argument("path", format!("unknown path `{name}`")))
    }
}

thread_local! {
    static FORCED: Cell<Option<Path>> = const { Cell::new(None) };
}

/// Runs `f`, in which this thread's operations take `path` when they are added to the graph. Fails if this
/// machine cannot run it.
pub fn force<R>(path: Path, f: impl FnOnce() -> R) -> Result<R> {
    struct Restore(Option<Path>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    if !path.is_available() {
        return Err(Error::unsupported(format!("the path `{path}`"), "the CPU lacks its instructions"));
    }
    let _restore = Restore(FORCED.replace(Some(path)));
    Ok(f())
}

/// The path that kernels of this thread take now: the forced one, or the fastest of this machine.
pub fn active() -> Path {
    FORCED.get().unwrap_or_else(fastest)
}

fn fastest() -> Path {
    let available = Path::ALL.into_iter().rev().find(|p| p.is_available());
    available.unwrap_or(Path::Reference)
}
