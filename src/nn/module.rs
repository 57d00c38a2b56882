//! Named traversal of parameters.

use std::collections::HashMap;

use crate::array::{Array, Dtype};
use crate::error::{Error, Result};
use crate::ops;

/// Something with parameters: an array, a layer, a model.
///
/// A type lists its parameters with [`parameters!`](crate::parameters), and everything that works on
/// parameters (training, saving, an account of memory) works on it.
pub trait Module {
    /// Calls `f` with the path and value of every parameter below `path`, in the order of declaration.
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array));

    /// As [`visit`](Self::visit), with values that `f` may replace.
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array));

    /// All parameters with their paths, in the order of declaration.
    fn parameters(&self) -> Vec<(String, Array)> {
        let mut all = Vec::new();
        self.visit("", &mut |path, array| all.push((path.to_owned(), array.clone())));
        all
    }

    /// Replaces all parameters by `values`, which come in the order of [`parameters`](Self::parameters).
    /// Changes nothing and fails unless there are as many, of the same shapes.
    fn set_parameters(&mut self, values: &[Array]) -> Result<()> {
        let mut at = 0;
        let mut error = None;
        self.visit("", &mut |path, old| {
            if let Some(new) = values.get(at)
                && new.shape() != old.shape()
                && error.is_none()
            {
                let (new, old) = (new.shape(), old.shape());
                error = Some(format!("shape {new:?} for `{path}`, which has {old:?}"));
            }
            at += 1;
        });
        if at != values.len() {
            error = Some(format!("{} arrays for {at} parameters", values.len()));
        }
        if let Some(message) = error {
            return Err(Error::argument("set_parameters", message));
        }
        let mut values = values.iter();
        self.visit_mut("", &mut |_, array| {
            if let Some(new) = values.next() {
                *array = new.clone();
            }
        });
        Ok(())
    }

    /// Replaces the parameters that `values` names. Changes nothing and fails where a name or a shape is
    /// not the module's.
    fn update_parameters(&mut self, values: &HashMap<String, Array>) -> Result<()> {
        let mut current = self.parameters();
        let mut found = 0;
        for (path, array) in &mut current {
            if let Some(new) = values.get(path) {
                *array = new.clone();
                found += 1;
            }
        }
        if found != values.len() {
            let unknown = values.keys().find(|key| !current.iter().any(|(path, _)| path == *key));
            let message = format!("no parameter `{}`", unknown.map_or("", String::as_str));
            return Err(Error::argument("update_parameters", message));
        }
        let values: Vec<Array> = current.into_iter().map(|(_, array)| array).collect();
        self.set_parameters(&values)
    }

    /// Casts every floating-point parameter to `dtype`. What is packed in integers stays. Fails for a dtype
    /// that is not floating-point.
    fn set_dtype(&mut self, dtype: Dtype) -> Result<()> {
        if !dtype.is_floating() {
            return Err(Error::argument("set_dtype", format!("{dtype} is not a floating-point dtype")));
        }
        let mut result = Ok(());
        self.visit_mut("", &mut |_, array| {
            if result.is_ok() && array.dtype().is_floating() {
                result = ops::astype(array, dtype).map(|cast| *array = cast);
            }
        });
        result
    }

    /// Bytes that the parameters take.
    fn nbytes(&self) -> usize {
        let mut sum = 0;
        self.visit("", &mut |_, array| sum += array.nbytes());
        sum
    }
}

/// `path.name`, or the one that is not empty.
pub fn join(path: &str, name: &str) -> String {
    match (path, name) {
        ("", only) | (only, "") => only.to_owned(),
        _ => format!("{path}.{name}"),
    }
}

impl Module for Array {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        f(path, self);
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        f(path, self);
    }
}

impl<T: Module> Module for Option<T> {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        if let Some(module) = self {
            module.visit(path, f);
        }
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        if let Some(module) = self {
            module.visit_mut(path, f);
        }
    }
}

impl<T: Module + ?Sized> Module for Box<T> {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        (**self).visit(path, f);
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        (**self).visit_mut(path, f);
    }
}

impl<T: Module> Module for Vec<T> {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Array)) {
        for (i, module) in self.iter().enumerate() {
            module.visit(&join(path, &i.to_string()), f);
        }
    }
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Array)) {
        for (i, module) in self.iter_mut().enumerate() {
            module.visit_mut(&join(path, &i.to_string()), f);
        }
    }
}

/// Lists the fields of a type that hold parameters: `parameters!(Attention { q_proj, k_proj })`.
///
/// A field is a [`Module`](crate::nn::Module): an array, a layer, or a `Vec`, `Option` or `Box` of one.
/// Its path is its name, or what follows it: `parameters!(Model { layers: "model.layers" })`. A generic
/// type comes with its bounds: `parameters!(<F: FeedForward> Block<F> { mlp })`.
#[macro_export]
macro_rules! parameters {
    (< $($generic:ident : $bound:path),* > $module:ty { $($field:ident $(: $path:literal)?),* $(,)? }) => {
        impl<$($generic: $bound),*> $crate::nn::Module for $module {
            $crate::parameters!(@visits $($field $(: $path)?),*);
        }
    };
    ($module:ty { $($field:ident $(: $path:literal)?),* $(,)? }) => {
        impl $crate::nn::Module for $module {
            $crate::parameters!(@visits $($field $(: $path)?),*);
        }
    };
    (@visits $($field:ident $(: $path:literal)?),*) => {
        fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a $crate::Array)) {
            $({
                let path = $crate::nn::join(path, $crate::parameters!(@name $field $($path)?));
                $crate::nn::Module::visit(&self.$field, &path, f);
            })*
        }
        fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut $crate::Array)) {
            $({
                let path = $crate::nn::join(path, $crate::parameters!(@name $field $($path)?));
                $crate::nn::Module::visit_mut(&mut self.$field, &path, f);
            })*
        }
    };
    (@name $field:ident) => { stringify!($field) };
    (@name $field:ident $path:literal) => { $path };
}
