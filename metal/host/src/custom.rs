//! Kernels as `fast::metal_kernel` takes them: a body, to which MLX writes the signature.

use std::fmt::Write;

use crate::{Kernel, Result, Shader, mlx_source};

/// Inputs with fewer elements are passed in the constant address space.
const CONSTANT_BELOW: usize = 8;

/// The attributes that a body may name without declaring them, and their types.
const ATTRIBUTES: [(&str, &str); 20] = [
    ("dispatch_quadgroups_per_threadgroup", "uint"),
    ("dispatch_simdgroups_per_threadgroup", "uint"),
    ("dispatch_threads_per_threadgroup", "uint3"),
    ("grid_origin", "uint3"),
    ("grid_size", "uint3"),
    ("quadgroup_index_in_threadgroup", "uint"),
    ("quadgroups_per_threadgroup", "uint"),
    ("simdgroup_index_in_threadgroup", "uint"),
    ("simdgroups_per_threadgroup", "uint"),
    ("thread_execution_width", "uint"),
    ("thread_index_in_quadgroup", "uint"),
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

/// An input of a custom kernel: values with a shape.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    pub name: &'a str,
    /// Of an element, in Metal's words: `float`, `half`, `bfloat16_t`, `uint32_t`...
    pub ty: &'a str,
    pub bytes: Vec<u8>,
    pub shape: Vec<i32>,
    /// In elements; row-contiguous if empty.
    pub strides: Vec<i64>,
}

impl<'a> Input<'a> {
    /// A row-contiguous input.
    pub fn new<T: bytemuck::NoUninit>(name: &'a str, ty: &'a str, values: &[T], shape: &[i32]) -> Self {
        let bytes = bytemuck::cast_slice(values).to_vec();
        Self { name, ty, bytes, shape: shape.to_vec(), strides: Vec::new() }
    }

    fn strides(&self) -> Vec<i64> {
        if !self.strides.is_empty() {
            return self.strides.clone();
        }
        let mut strides = vec![1; self.shape.len()];
        for k in (1..self.shape.len()).rev() {
            strides[k - 1] = strides[k] * i64::from(self.shape[k]);
        }
        strides
    }

    fn size(&self) -> usize {
        self.shape.iter().map(|&d| usize::try_from(d).unwrap_or(0)).product()
    }
}

/// A body with its header, template parameters, inputs and outputs.
#[derive(Debug, Clone, Default)]
pub struct Custom<'a> {
    pub name: &'a str,
    pub header: &'a str,
    pub body: &'a str,
    pub inputs: Vec<Input<'a>>,
    /// Name, element type and number of elements of each output.
    pub outputs: Vec<(&'a str, &'a str, usize)>,
    /// Kind (`typename`, `int`, `bool`), name and argument of each template parameter.
    pub template: Vec<(&'a str, &'a str, &'a str)>,
    pub atomic_outputs: bool,
    /// What outputs hold before the kernel runs, as the bytes of one element; nothing if empty.
    pub initial: Vec<u8>,
}

impl Custom<'_> {
    /// The source that MLX would give to Metal.
    pub fn source(&self) -> String {
        let mut text = String::from("#include \"mlx/backend/metal/kernels/utils.h\"\n");
        text += self.header;
        text += "\n";
        if !self.template.is_empty() {
            let list: Vec<String> = self.template.iter().map(|t| format!("{} {}", t.0, t.1)).collect();
            let _ = writeln!(text, "template <{}>", list.join(", "));
        }
        let mut parameters = Vec::new();
        let mut add = |declaration: String| {
            let index = parameters.len();
            parameters.push(format!("  {declaration} [[buffer({index})]]"));
        };
        for input in &self.inputs {
            let Input { name, ty, .. } = input;
            let space = if input.size() < CONSTANT_BELOW { "constant" } else { "device" };
            let reference = if input.shape.is_empty() { "&" } else { "*" };
            add(format!("const {space} {ty}{reference} {name}"));
            if input.shape.is_empty() {
                continue;
            }
            for (what, ty) in [("shape", "int*"), ("strides", "int64_t*"), ("ndim", "int&")] {
                if self.body.contains(&format!("{name}_{what}")) {
                    add(format!("const constant {ty} {name}_{what}"));
                }
            }
        }
        for (name, ty, _) in &self.outputs {
            add(if self.atomic_outputs {
                format!("device atomic<{ty}>* {name}")
            } else {
                format!("device {ty}* {name}")
            });
        }
        for (name, ty) in ATTRIBUTES {
            if self.body.contains(name) {
                parameters.push(format!("  {ty} {name} [[{name}]]"));
            }
        }
        let _ = write!(
            text,
            "[[kernel]] void custom_kernel_{}(\n{}) {{\n#line 1 \"{}\"\n{}\n}}\n",
            self.name,
            parameters.join(",\n"),
            self.name,
            self.body
        );
        text
    }

    /// Compiles it and gives it its inputs and outputs; the outputs of a launch are in the order of `outputs`.
    pub fn kernel(&self) -> Result<Kernel> {
        let arguments: Vec<&str> = self.template.iter().map(|t| t.2).collect();
        let shader = Shader::from_source(self.name, self.source()).include(mlx_source()?);
        let mut kernel = shader.kernel(&format!("custom_kernel_{}", self.name), &arguments)?;
        for input in &self.inputs {
            kernel = kernel.input(&input.bytes);
            if input.shape.is_empty() {
                continue;
            }
            let named = |what: &str| self.body.contains(&format!("{}_{what}", input.name));
            if named("shape") {
                kernel = kernel.input(&input.shape);
            }
            if named("strides") {
                kernel = kernel.input(&input.strides());
            }
            if named("ndim") {
                kernel = kernel.scalar(input.shape.len() as i32);
            }
        }
        for (_, ty, length) in &self.outputs {
            kernel = if self.initial.is_empty() {
                kernel.output::<u8>(length * size_of_type(ty))
            } else {
                kernel.buffer(crate::Buffer::in_out(&self.initial.repeat(*length)))
            };
        }
        Ok(kernel)
    }
}

/// The bytes of one of MLX's element types.
fn size_of_type(ty: &str) -> usize {
    match ty {
        "bool" | "int8_t" | "uint8_t" => 1,
        "half" | "float16_t" | "bfloat16_t" | "int16_t" | "uint16_t" => 2,
        "int64_t" | "uint64_t" | "complex64_t" => 8,
        _ => 4,
    }
}
