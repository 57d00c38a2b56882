//! Kernels for Apple's GPUs: the shaders of `metal/`, and how they are started.
//!
//! MLX writes the function around a shader's body itself, from the arrays at hand, and compiles it when it first
//! runs. So a file, which compiles as it is, has one function template, written as MLX would write it; MLX gets
//! what comes before it, its body, and the names of its inputs and outputs. MLX puts inputs of less than eight
//! elements in another address space: bodies say `auto` for pointers.
//!
//! None has run on a GPU; tests run them on the CPU (`metal/host`).

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::path::{Path, current};
use super::{CustomKernel, Spec};
use crate::array::Array;
use crate::device::{DeviceKind, current_device};
use crate::error::{Error, Result};
use crate::fast::{self, KernelSource, MetalKernel, TemplateArg};
use crate::transforms::{self, CustomFunction};
use crate::{metal, ops};

/// A file of `metal/`, and the kernel in it.
#[derive(Debug, PartialEq, Eq)]
pub struct Shader {
    /// Of the file and of the kernel.
    pub name: &'static str,
    /// The file.
    pub source: &'static str,
    /// Whether inputs are read by their strides; else MLX copies those that are not row-major.
    pub strided: bool,
    /// Whether it has run on a GPU.
    pub seen_on_gpu: bool,
}

macro_rules! shaders {
    ($($constant:ident = $name:literal $(($strided:ident))?;)*) => {
        $(pub(crate) static $constant: Shader = Shader {
            name: $name,
            source: include_str!(concat!("../../metal/", $name, ".metal")),
            strided: shaders!(@ $($strided)?),
            seen_on_gpu: false,
        };)*

        /// Every shader.
        pub static SHADERS: &[&Shader] = &[$(&$constant),*];
    };
    (@ strided) => { true };
    (@) => { false };
}

shaders! {
    ADD_RMS_NORM = "add_rms_norm";
    GATED = "gated";
    GATED_DELTA = "gated_delta";
    QUANTIZED_ATTENTION = "quantized_attention" (strided);
    RMS_NORM_ROPE = "rms_norm_rope" (strided);
    STATE_SPACE = "state_space";
    TERNARY_MATMUL = "ternary_matmul";
    TERNARY_MATVEC = "ternary_matvec";
    TOP_K_SAMPLE = "top_k_sample";
}

/// What MLX needs of a shader.
#[derive(Debug, PartialEq, Eq)]
pub struct Parts {
    /// What comes before the function.
    pub header: &'static str,
    /// Names of the inputs, in order.
    pub inputs: Vec<&'static str>,
    /// Names of the outputs, in order.
    pub outputs: Vec<&'static str>,
    /// What is inside the function.
    pub body: &'static str,
}

impl Shader {
    /// Takes the file apart.
    pub fn parts(&self) -> Result<Parts> {
        let wrong =
            || Error::argument("shader", format!("metal/{}.metal has no kernel of its name", self.name));
        let (header, rest) = self.source.split_once("\ntemplate <").ok_or_else(wrong)?;
        let (_, rest) = rest.split_once("[[kernel]] void ").ok_or_else(wrong)?;
        let (name, rest) = rest.split_once('(').ok_or_else(wrong)?;
        let (parameters, rest) = rest.split_once(") {\n").ok_or_else(wrong)?;
        let (body, _) = rest.split_once("\n}\n").ok_or_else(wrong)?;
        if name != self.name {
            return Err(wrong());
        }
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for parameter in parameters.split(",\n").map(str::trim) {
            let Some((declared, _)) = parameter.split_once(" [[buffer(") else { continue };
            let name = declared.rsplit([' ', '*', '&']).next().unwrap_or_default();
            let about = ["_shape", "_strides", "_ndim"].iter().any(|end| name.ends_with(end));
            match declared.starts_with("const ") {
                true if about => {}
                true => inputs.push(name),
                false => outputs.push(name),
            }
        }
        Ok(Parts { header, inputs, outputs, body })
    }
}

/// One start of a shader.
#[derive(Debug)]
pub struct Launch<'a> {
    /// What is started.
    pub shader: &'static Shader,
    /// Its inputs. None is empty.
    pub inputs: &'a [Array],
    /// Its template's arguments, in order.
    pub template: &'a [(&'static str, TemplateArg)],
    /// Threads in all, by dimension.
    pub grid: [i32; 3],
    /// Threads of a group, by dimension.
    pub thread_group: [i32; 3],
    /// Its outputs. None is empty.
    pub outputs: &'a [Spec],
}

/// What can run a shader in place of the GPU.
pub type Runner = dyn Fn(&Launch<'_>) -> Result<Vec<Array>>;

thread_local! {
    static RUNNER: RefCell<Option<Rc<Runner>>> = const { RefCell::new(None) };
    static KERNELS: RefCell<HashMap<&'static str, Rc<MetalKernel>>> = RefCell::default();
}

/// Runs `f`, in which this thread's kernels start their shaders with `runner`, on any device: to test them
/// without a GPU.
pub fn with_runner<R>(runner: Rc<Runner>, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<Rc<Runner>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            RUNNER.set(self.0.take());
        }
    }
    let _restore = Restore(RUNNER.replace(Some(runner)));
    f()
}

/// Whether kernels with a shader run on the device of the current scope: a CPU, or where shaders run.
pub(super) fn or_cpu() -> bool {
    current_device().kind == DeviceKind::Cpu || is_active()
}

/// Whether shaders run here: on a stream of a GPU with Metal, unless the reference is forced.
pub(crate) fn is_active() -> bool {
    let on_gpu = || current_device().kind == DeviceKind::Gpu && metal::is_available();
    current() != Path::Reference && (RUNNER.with_borrow(Option::is_some) || on_gpu())
}

impl Launch<'_> {
    /// The outputs, computed when they are needed.
    pub(crate) fn run(&self) -> Result<Vec<Array>> {
        if let Some(runner) = RUNNER.with_borrow(Clone::clone) {
            return runner(self);
        }
        let kernel = kernel(self.shader)?;
        let outputs: Vec<_> = self.outputs.iter().map(|spec| (&spec.shape[..], spec.dtype)).collect();
        let launch = fast::Launch {
            grid: self.grid,
            thread_group: self.thread_group,
            outputs: &outputs,
            template: self.template,
            init_value: None,
            verbose: false,
        };
        kernel.apply(&self.inputs.iter().collect::<Vec<_>>(), &launch)
    }
}

/// The shader as MLX has it, once for each thread.
fn kernel(shader: &'static Shader) -> Result<Rc<MetalKernel>> {
    if let Some(kernel) = KERNELS.with_borrow(|kernels| kernels.get(shader.name).cloned()) {
        return Ok(kernel);
    }
    let Parts { header, inputs, outputs, body } = shader.parts()?;
    let source = KernelSource {
        name: shader.name,
        inputs: &inputs,
        outputs: &outputs,
        body,
        header,
        ensure_row_contiguous: !shader.strided,
    };
    let kernel = Rc::new(MetalKernel::compile(&source, false)?);
    tracing::info!(kernel = shader.name, path = "metal", "first use");
    KERNELS.with_borrow_mut(|kernels| kernels.insert(shader.name, Rc::clone(&kernel)));
    Ok(kernel)
}

/// The outputs of `kernel` by its shader, with the derivatives and `vmap` of its reference.
pub(super) fn apply(kernel: impl CustomKernel, inputs: &[&Array]) -> Result<Vec<Array>> {
    let kernel = Rc::new(kernel);
    let [k, by_vjp, by_jvp, by_vmap] = std::array::from_fn(|_| Rc::clone(&kernel));
    let f = CustomFunction::new(move |inputs: &[Array]| {
        // Shaders count in `int`.
        let small = inputs.iter().all(|x| x.size() <= i32::MAX as usize);
        match small.then(|| k.metal(inputs)).flatten() {
            Some(outputs) => outputs,
            None => k.reference(inputs),
        }
    })
    .vjp(move |primals: &[Array], cotangents: &[Array], _: &[Array]| {
        let floating: Vec<i32> =
            (0..).zip(primals).filter(|(_, x)| x.dtype().is_floating()).map(|(i, _)| i).collect();
        let (f, vars) = of(&by_vjp, primals, &floating);
        let (_, found) = transforms::vjp(f, &vars, cotangents)?;
        let mut all = primals.iter().map(ops::zeros_like).collect::<Result<Vec<_>>>()?;
        floating.iter().zip(found).for_each(|(&i, gradient)| all[i as usize] = gradient);
        Ok(all)
    })
    .jvp(move |primals: &[Array], tangents: &[Array], argnums: &[i32]| {
        let (f, vars) = of(&by_jvp, primals, argnums);
        Ok(transforms::jvp(f, &vars, tangents)?.1)
    })
    .vmap(move |inputs: &[Array], axes: &[Option<i32>]| {
        let count = by_vmap.outputs(&specs(inputs, axes))?.len();
        let axes_out = vec![0; count];
        let outputs = transforms::vmap_with(|args| by_vmap.reference(args), inputs, axes, &axes_out)?;
        Ok((outputs, axes_out))
    });
    f.build()?.call(inputs.iter().copied())
}

/// The reference as a function of the inputs `argnums`, and these.
fn of<'a>(
    kernel: &'a Rc<impl CustomKernel>,
    primals: &'a [Array],
    argnums: &'a [i32],
) -> (impl Fn(&[Array]) -> Result<Vec<Array>> + 'a, Vec<Array>) {
    let vars = argnums.iter().map(|&i| primals[i as usize].clone()).collect();
    let f = move |vars: &[Array]| {
        let mut all = primals.to_vec();
        argnums.iter().zip(vars).for_each(|(&i, var)| all[i as usize] = var.clone());
        kernel.reference(&all)
    };
    (f, vars)
}

/// What the inputs are without their mapped axes.
fn specs(inputs: &[Array], axes: &[Option<i32>]) -> Vec<Spec> {
    let spec = |(x, axis): (&Array, &Option<i32>)| {
        let mut shape = x.shape().to_vec();
        if let &Some(axis) = axis {
            shape.remove(axis as usize);
        }
        Spec::new(&shape, x.dtype())
    };
    inputs.iter().zip(axes).map(spec).collect()
}

/// `[rows, width]` of `x`, which is not empty.
pub(super) fn rows(x: &Array) -> Result<(Array, [i32; 2])> {
    let width = x.shape().last().copied().unwrap_or(1);
    let rows = ops::reshape(x, &[-1, width])?;
    let count = rows.dim(0)?;
    Ok((rows, [count, width]))
}

/// Threads, in whole simdgroups, that share `count` pieces: at most `most`.
pub(super) fn threads(count: i32, most: i32) -> i32 {
    (count.clamp(1, most) + 31) / 32 * 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attributes that MLX looks for, in its order, and their types.
    const ATTRIBUTES: [(&str, &str); 11] = [
        ("simdgroup_index_in_threadgroup", "uint"),
        ("simdgroups_per_threadgroup", "uint"),
        ("thread_index_in_simdgroup", "uint"),
        ("thread_index_in_threadgroup", "uint"),
        ("thread_position_in_grid", "uint3"),
        ("thread_position_in_threadgroup", "uint3"),
        ("threadgroup_position_in_grid", "uint3"),
        ("threadgroups_per_grid", "uint3"),
        ("threads_per_grid", "uint3"),
        ("threads_per_simdgroup", "uint"),
        ("threads_per_threadgroup", "uint3"),
    ];

    /// The parameters as MLX would write them, with types only where it always gives the same.
    fn written_by_mlx(parts: &Parts) -> Vec<String> {
        let mut parameters = Vec::new();
        let mut add = |parameter: String| {
            let index = parameters.len();
            parameters.push(format!("{parameter} [[buffer({index})]]"));
        };
        for input in &parts.inputs {
            add(format!("const {input}"));
            let about = [("_shape", "int*"), ("_strides", "int64_t*"), ("_ndim", "int&")];
            for (end, kind) in
                about.into_iter().filter(|(end, _)| parts.body.contains(&format!("{input}{end}")))
            {
                add(format!("const constant {kind} {input}{end}"));
            }
        }
        parts.outputs.iter().for_each(|output| add(format!("device {output}")));
        for (name, kind) in ATTRIBUTES.into_iter().filter(|(name, _)| parts.body.contains(name)) {
            parameters.push(format!("{kind} {name} [[{name}]]"));
        }
        parameters
    }

    /// The parameters of the file, without the types of inputs and outputs.
    fn in_file(shader: &Shader) -> Vec<String> {
        let (_, rest) = shader.source.split_once("[[kernel]] void ").unwrap();
        let parameters = rest.split_once('(').unwrap().1.split_once(") {\n").unwrap().0;
        let plain = |parameter: &str| {
            let words: Vec<&str> = parameter.split_whitespace().collect();
            match words.as_slice() {
                [constness @ "const", space, kind, name, at] => {
                    let about = ["_shape", "_strides", "_ndim"].iter().any(|end| name.ends_with(end));
                    // Scalars are references in the constant address space, everything else a pointer to the device's.
                    assert!(
                        about || *space == if kind.ends_with('&') { "constant" } else { "device" },
                        "{parameter}"
                    );
                    if about { words.join(" ") } else { format!("{constness} {name} {at}") }
                }
                [space @ "device", kind, name, at] if kind.ends_with('*') => format!("{space} {name} {at}"),
                _ => words.join(" "),
            }
        };
        parameters.split(",\n").map(plain).collect()
    }

    #[test]
    fn files_have_the_signatures_that_mlx_writes() {
        for shader in SHADERS {
            let parts = shader.parts().unwrap();
            assert_eq!(in_file(shader), written_by_mlx(&parts), "{}", shader.name);
            assert!(!parts.outputs.is_empty() && shader.source.is_ascii(), "{}", shader.name);
            // MLX finds names anywhere in the text.
            for (input, end) in parts.inputs.iter().flat_map(|i| ["_shape", "_strides"].map(|end| (i, end))) {
                let name = format!("{input}{end}");
                let is_whole =
                    |at: usize| !parts.body[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
                let whole = parts.body.match_indices(&name).all(|(at, _)| is_whole(at));
                assert!(whole, "{}: {name}", shader.name);
            }
            assert_eq!(parts.body.contains("_strides"), shader.strided, "{}", shader.name);
            // The address space of a pointer is what MLX makes it.
            assert!(!parts.body.contains("device "), "{}", shader.name);
        }
    }

    #[test]
    fn a_file_without_its_kernel_is_refused() {
        let without = Shader { name: "other", ..GATED };
        assert!(without.parts().unwrap_err().to_string().contains("other"));
        assert!(Shader { source: "", ..without }.parts().is_err());
    }
}
