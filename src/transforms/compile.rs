//! Functions whose graph is built once, simplified and fused.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Once;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::array::Array;
use crate::device::{DeviceKind, current_device, default_device};
use crate::error::{Error, Result};
use crate::ffi::{self, Closure, VectorArray, call, sys};
use crate::ops;

/// How much is done to compiled functions, in the whole process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompileMode {
    /// Functions run as they are.
    Disabled,
    /// Operations are fused, but common ones are not merged.
    NoSimplify,
    /// Common operations are merged, but none are fused.
    NoFuse,
    /// Both; where every process starts, unless `MLX_DISABLE_COMPILE` is set.
    Enabled,
}

static MODE: AtomicU8 = AtomicU8::new(CompileMode::Enabled as u8);

/// Sets the mode. It holds from the next call of a compiled function, on every thread.
pub fn set_compile_mode(mode: CompileMode) -> Result<()> {
    let code = match mode {
        CompileMode::Disabled => sys::MLX_COMPILE_MODE_DISABLED,
        CompileMode::NoSimplify => sys::MLX_COMPILE_MODE_NO_SIMPLIFY,
        CompileMode::NoFuse => sys::MLX_COMPILE_MODE_NO_FUSE,
        CompileMode::Enabled => sys::MLX_COMPILE_MODE_ENABLED,
    };
    call!(mlx_set_compile_mode;; code)?;
    MODE.store(mode as u8, Ordering::Relaxed);
    Ok(())
}

/// [`CompileMode::Disabled`].
pub fn disable_compile() -> Result<()> {
    set_compile_mode(CompileMode::Disabled)
}

/// [`CompileMode::Enabled`].
pub fn enable_compile() -> Result<()> {
    set_compile_mode(CompileMode::Enabled)
}

/// A compiled function of arrays. Dropping it frees its graphs.
pub struct Compiled {
    f: Rc<Traced>,
    shapeless: bool,
    /// The function as MLX compiled it for each stream and mode it was called with.
    versions: RefCell<Vec<Version>>,
}

struct Version {
    stream: sys::mlx_stream,
    mode: u8,
    compiled: Rc<Closure<'static>>,
}

/// Compiles `f`: the first call with arguments of given shapes and dtypes runs it on placeholders; later
/// calls reuse the graph, in which elementwise operations are fused.
///
/// `f` must be pure. Arrays that it captures are constants, with the values they have at the first call;
/// state that changes goes in as arguments and comes out as values. Inside `f` nothing can be evaluated.
///
/// On the CPU, MLX builds fused operations with the system's `g++` when they are first evaluated. On a
/// machine without it the function runs uncompiled, which a warning (`tracing`) says once.
///
/// ```
/// use mlxport::{Array, transforms};
/// # fn main() -> mlxport::Result<()> {
/// let scale = Array::from(0.5f32);
/// let f = transforms::compile(move |args| &args[0] * &scale + &args[1]);
/// let y = f.call([&Array::from(4.0f32), &Array::from(1.0f32)])?;
/// assert_eq!(y[0].item::<f32>()?, 3.0);
/// # Ok(())
/// # }
/// ```
pub fn compile<R: Into<Vec<Array>>>(f: impl Fn(&[Array]) -> Result<R> + 'static) -> Compiled {
    Compiled::new(f, false)
}

/// As [`compile`], with one graph for arguments of any shapes, as long as the numbers of dimensions and
/// the dtypes stay. A function with an operation that needs to know its shapes fails when called.
pub fn compile_shapeless<R: Into<Vec<Array>>>(f: impl Fn(&[Array]) -> Result<R> + 'static) -> Compiled {
    Compiled::new(f, true)
}

impl Compiled {
    fn new<R: Into<Vec<Array>>>(f: impl Fn(&[Array]) -> Result<R> + 'static, shapeless: bool) -> Self {
        let f = Box::new(move |args: &[Array]| f(args).map(Into::into));
        let f = Rc::new(Traced { f, running: Cell::new(false) });
        Self { f, shapeless, versions: RefCell::default() }
    }

    /// The values of the function.
    pub fn call<'a>(&self, args: impl IntoIterator<Item = &'a Array>) -> Result<Vec<Array>> {
        // MLX's cache does not bear a function that calls itself while it is traced.
        if self.f.running.get() || !can_compile() {
            let args: Vec<Array> = args.into_iter().cloned().collect();
            return self.f.run(&args);
        }
        ffi::ready(default_device())?;
        let args = VectorArray::new(args);
        let compiled = self.version()?;
        match ffi::on_deep_stack(|| compiled.apply(&args)) {
            // MLX takes a captured array that is an argument as well for a mistake; here it is a constant.
            Err(Error::Mlx { message, .. }) if message.contains("uncaptured inputs") => {
                let args = args.to_arrays()?.iter().map(ops::copy).collect::<Result<Vec<_>>>()?;
                ffi::on_deep_stack(|| compiled.apply(&VectorArray::new(&args)))
            }
            other => other,
        }
    }

    fn version(&self) -> Result<Rc<Closure<'static>>> {
        let (stream, mode) = (ffi::current_stream(), MODE.load(Ordering::Relaxed));
        let same = |v: &&Version| v.stream.ctx == stream.ctx && v.mode == mode;
        if let Some(version) = self.versions.borrow().iter().find(same) {
            return Ok(Rc::clone(&version.compiled));
        }
        let (f, shapeless) = (Rc::clone(&self.f), self.shapeless);
        let plain = Closure::new(Box::new(move |args| f.run(args)));
        let mut compiled = Closure::default();
        call!(mlx_compile; compiled.raw; plain, shapeless)?;
        let compiled = Rc::new(compiled);
        self.versions.borrow_mut().push(Version { stream, mode, compiled: Rc::clone(&compiled) });
        Ok(compiled)
    }
}

/// The user's function, which knows whether it is running.
struct Traced {
    f: Box<ffi::Function<'static>>,
    running: Cell<bool>,
}

impl Traced {
    fn run(&self, args: &[Array]) -> Result<Vec<Array>> {
        struct Restore<'a>(&'a Cell<bool>, bool);
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                self.0.set(self.1);
            }
        }
        let _restore = Restore(&self.running, self.running.replace(true));
        (self.f)(args)
    }
}

/// Whether MLX can build fused operations for the current device.
fn can_compile() -> bool {
    static SAID: Once = Once::new();
    let can = current_device().kind == DeviceKind::Gpu || ffi::cpu_compiler_is_available();
    if !can {
        SAID.call_once(|| {
            tracing::warn!("no g++ on this machine: compiled functions run uncompiled on the CPU")
        });
    }
    can
}
