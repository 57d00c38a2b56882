//! Which implementation runs.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use crate::error::{Error, Result};

/// An implementation of a kernel. Of two, the greater is the faster; whatever runs the one runs the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// Operations of MLX.
    Reference,
    /// Rust for any CPU.
    Portable,
    /// x86 with AVX2, FMA and F16C.
    Avx2,
    /// The same with AVX-512 F, BW, DQ, VL, VNNI and VBMI.
    Avx512,
    /// The same with AVX-512 BF16.
    Avx512Bf16,
    /// The same with AMX-BF16, on Linux.
    Amx,
}

impl Path {
    /// Every path, the fastest last.
    pub const ALL: [Self; 6] =
        [Self::Reference, Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// `reference`, `portable`, `avx2`, `avx512`, `avx512-bf16` or `amx`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Amx => "amx",
        }
    }

    /// Whether this machine can run it.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        match self {
            Self::Reference | Self::Portable => true,
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("avx512vbmi")
            }
            Self::Avx512Bf16 => Self::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            Self::Amx => Self::Avx512Bf16.is_available() && super::product::cpu::amx::available(),
        }
    }

    /// Whether this machine can run it.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        matches!(self, Self::Reference | Self::Portable)
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

/// The path of this thread: the forced one, or the fastest one of this machine.
pub(super) fn current() -> Path {
    FORCED.get().unwrap_or_else(fastest)
}

/// The path that a kernel takes now which has, besides the reference and the portable one, those of `has`.
pub(crate) fn active_of(has: &[Path]) -> Path {
    let current = current();
    let below = has.iter().copied().filter(|&path| path <= current).max();
    below.unwrap_or(current.min(Path::Portable))
}

/// What of this machine is fastest. AMX has passed its tests on an emulated CPU only
/// (docs/performance.md).
fn fastest() -> Path {
    static FASTEST: LazyLock<Path> = LazyLock::new(|| {
        Path::ALL.into_iter().rev().find(|path| path.is_available()).unwrap_or(Path::Reference)
    });
    *FASTEST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_takes_what_it_has() {
        let on = |active, has: &[Path]| {
            FORCED.set(Some(active));
            let path = active_of(has);
            FORCED.set(None);
            path
        };
        assert_eq!(on(Path::Amx, &[Path::Avx2]), Path::Avx2);
        assert_eq!(on(Path::Amx, &[Path::Avx2, Path::Avx512]), Path::Avx512);
        assert_eq!(on(Path::Avx2, &[Path::Avx512, Path::Avx2]), Path::Avx2);
        assert_eq!(on(Path::Avx2, &[Path::Avx512]), Path::Portable);
        assert_eq!(on(Path::Portable, &[Path::Avx2]), Path::Portable);
        assert_eq!(on(Path::Reference, &[Path::Avx2]), Path::Reference);
        assert_eq!(on(Path::Avx512, &[]), Path::Portable);
    }
}
