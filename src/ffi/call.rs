//! Typed calls: each argument is a Rust value whose type says which C value it becomes, so that the
//! Rust compiler checks every call against the generated signature.

use std::ffi::{CStr, c_char};

use super::sys;
use crate::array::Dtype;

/// A Rust value that can be handed to C for the length of one call.
pub(crate) trait CArg {
    type C;
    fn c(&self) -> Self::C;
}

impl<T: CArg + ?Sized> CArg for &T {
    type C = T::C;
    fn c(&self) -> T::C {
        (**self).c()
    }
}

macro_rules! by_value {
    ($($t:ty),*) => { $(
        impl CArg for $t {
            type C = $t;
            fn c(&self) -> $t {
                *self
            }
        }
    )* };
}
by_value!(i32, f32, f64, bool, u32, u64, usize);

impl CArg for Dtype {
    type C = sys::mlx_dtype;
    fn c(&self) -> sys::mlx_dtype {
        self.code()
    }
}

impl CArg for CStr {
    type C = *const c_char;
    fn c(&self) -> *const c_char {
        self.as_ptr()
    }
}

impl CArg for Option<i32> {
    type C = sys::mlx_optional_int;
    fn c(&self) -> Self::C {
        Self::C { value: self.unwrap_or(0), has_value: self.is_some() }
    }
}

impl CArg for Option<f32> {
    type C = sys::mlx_optional_float;
    fn c(&self) -> Self::C {
        Self::C { value: self.unwrap_or(0.0), has_value: self.is_some() }
    }
}

impl CArg for Option<Dtype> {
    type C = sys::mlx_optional_dtype;
    fn c(&self) -> Self::C {
        Self::C { value: self.unwrap_or(Dtype::Float32).code(), has_value: self.is_some() }
    }
}

/// `call!(mlx_f; outputs...; args...)`: one C call under the lock, as `Result<()>`. An argument is a
/// name, a name in brackets for a slice (pointer and length), or `stream` for the current stream.
macro_rules! call {
    ($f:ident; $($out:expr),*; $($args:tt)*) => {
        $crate::ffi::call!(@ $f; [$(&mut $out),*]; []; $($args)*)
    };
    (@ $f:ident; $out:tt; $acc:tt; , $($rest:tt)+) => {
        $crate::ffi::call!(@ $f; $out; $acc; $($rest)+)
    };
    (@ $f:ident; $out:tt; [$($acc:tt)*]; [$slice:expr] $(, $($rest:tt)*)?) => {
        $crate::ffi::call!(@ $f; $out; [$($acc)* ($slice.as_ptr()) ($slice.len())]; $($($rest)*)?)
    };
    (@ $f:ident; $out:tt; [$($acc:tt)*]; stream $(, $($rest:tt)*)?) => {
        $crate::ffi::call!(@ $f; $out; [$($acc)* ($crate::ffi::current_stream())]; $($($rest)*)?)
    };
    (@ $f:ident; $out:tt; [$($acc:tt)*]; $arg:ident $(, $($rest:tt)*)?) => {
        $crate::ffi::call!(@ $f; $out; [$($acc)* ($crate::ffi::CArg::c(&$arg))]; $($($rest)*)?)
    };
    (@ $f:ident; [$($out:expr),*]; [$(($acc:expr))*];) => {{
        let _guard = $crate::ffi::enter();
        // SAFETY: outputs are live handles of this thread, slices and handles outlive the call, and
        // the compiler has checked every argument against the generated signature.
        #[allow(unsafe_code)]
        let code = unsafe { $crate::ffi::sys::$f($($out,)* $($acc),*) };
        $crate::ffi::check(stringify!($f), code)
    }};
}

/// `op!(mlx_f(args...))`: an operation on the current stream with one output, as `Result<Array>`.
macro_rules! op {
    ($f:ident($($args:tt)*)) => {{
        let mut out = $crate::ffi::ArrayHandle::empty();
        $crate::ffi::call!($f; out.0; $($args)* , stream)
            .and_then(|()| $crate::ffi::finish(stringify!($f), out))
    }};
}

/// As [`op!`], with two outputs.
macro_rules! ops2 {
    ($f:ident($($args:tt)*)) => {{
        let mut first = $crate::ffi::ArrayHandle::empty();
        let mut second = $crate::ffi::ArrayHandle::empty();
        $crate::ffi::call!($f; first.0, second.0; $($args)* , stream).and_then(|()| Ok((
            $crate::ffi::finish(stringify!($f), first)?,
            $crate::ffi::finish(stringify!($f), second)?,
        )))
    }};
}

/// As [`op!`], with a list of outputs, as `Result<Vec<Array>>`.
macro_rules! ops_vec {
    ($f:ident($($args:tt)*)) => {{
        let mut out = $crate::ffi::VectorArray::empty();
        $crate::ffi::call!($f; out.0; $($args)* , stream).and_then(|()| {
            let outputs = out.to_arrays()?;
            outputs.iter().try_for_each(|array| $crate::ffi::check_size(stringify!($f), array))?;
            Ok(outputs)
        })
    }};
}

pub(crate) use {call, op, ops_vec, ops2};
