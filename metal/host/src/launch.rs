//! Arguments, launches and outputs.

use std::sync::Arc;

use bytemuck::{AnyBitPattern, NoUninit};

use crate::ffi::{BufferArg, LaunchArg, Library, ThreadgroupArg};
use crate::source::{FunctionConstant, Parameter};
use crate::{Error, Result};

/// What a kernel's parameter is given.
#[derive(Debug, Clone)]
pub enum Binding {
    Buffer {
        index: i32,
        reference: bool,
        constant: bool,
    },
    Threadgroup {
        index: i32,
    },
    /// A position or size, by the name of its attribute, as the parameter's type.
    Id {
        attribute: String,
        ty: String,
    },
}

/// The attributes of threads and whether they have three components.
const IDS: [(&str, &str, bool); 22] = [
    ("thread_position_in_grid", "thread_position_in_grid", true),
    ("thread_position_in_threadgroup", "thread_position_in_threadgroup", true),
    ("threadgroup_position_in_grid", "threadgroup_position_in_grid", true),
    ("threads_per_threadgroup", "threads_per_threadgroup", true),
    ("dispatch_threads_per_threadgroup", "dispatch_threads_per_threadgroup", true),
    ("threads_per_grid", "threads_per_grid", true),
    ("threadgroups_per_grid", "threadgroups_per_grid", true),
    ("grid_size", "threads_per_grid", true),
    ("grid_origin", "{0, 0, 0}", true),
    ("thread_index_in_threadgroup", "thread_index_in_threadgroup", false),
    ("thread_index_in_simdgroup", "thread_index_in_simdgroup", false),
    ("simdgroup_index_in_threadgroup", "simdgroup_index_in_threadgroup", false),
    ("thread_index_in_quadgroup", "thread_index_in_quadgroup", false),
    ("quadgroup_index_in_threadgroup", "quadgroup_index_in_threadgroup", false),
    ("simdgroups_per_threadgroup", "simdgroups_per_threadgroup", false),
    ("dispatch_simdgroups_per_threadgroup", "dispatch_simdgroups_per_threadgroup", false),
    ("quadgroups_per_threadgroup", "quadgroups_per_threadgroup", false),
    ("dispatch_quadgroups_per_threadgroup", "dispatch_quadgroups_per_threadgroup", false),
    ("threads_per_simdgroup", "32", false),
    ("thread_execution_width", "32", false),
    ("threads_per_quadgroup", "4", false),
    ("thread_position_in_simdgroup", "thread_index_in_simdgroup", false),
];

/// Gives each parameter its argument; buffers without an index take the next free one, as in Metal.
pub fn bind(kernel: &str, parameters: &[Parameter]) -> Result<Vec<Binding>> {
    let refuse = |p: &Parameter, why: &str| Error::Argument {
        kernel: kernel.into(),
        why: format!("parameter {}: {why}", p.name),
    };
    let (mut next, mut next_threadgroup) = (0, 0);
    let mut bindings = Vec::new();
    for p in parameters {
        let index = |name: &str| {
            let found = p.attributes.iter().find(|a| a.0 == name);
            found.map(|a| a.1.parse().map_err(|_| refuse(p, "its index is no number"))).transpose()
        };
        let id = p.attributes.iter().find_map(|a| IDS.iter().find(|id| id.0 == a.0));
        if p.threadgroup {
            let index = index("threadgroup")?.unwrap_or(next_threadgroup);
            next_threadgroup = index + 1;
            bindings.push(Binding::Threadgroup { index });
        } else if p.pointer || p.reference {
            let index = index("buffer")?.unwrap_or(next);
            next = index + 1;
            bindings.push(Binding::Buffer { index, reference: p.reference, constant: p.constant });
        } else if let Some(id) = id {
            bindings.push(Binding::Id { attribute: id.0.into(), ty: p.ty.clone() });
        } else {
            return Err(refuse(p, "neither a buffer nor a known attribute"));
        }
    }
    Ok(bindings)
}

/// The C++ that calls the kernel with its arguments, and sets function constants.
pub fn launcher(call: &str, bindings: &[Binding], constants: &[FunctionConstant]) -> String {
    let arguments: Vec<String> = bindings
        .iter()
        .map(|b| match b {
            Binding::Buffer { index, reference: true, .. } => {
                format!("mtlhost::Reference{{buffers[{index}]}}")
            }
            Binding::Buffer { index, .. } => format!("mtlhost::Pointer{{buffers[{index}]}}"),
            Binding::Threadgroup { index } => format!("mtlhost::Pointer{{threadgroup[{index}]}}"),
            Binding::Id { attribute, ty } => match IDS.iter().find(|id| id.0 == attribute) {
                Some((_, field, true)) if !field.starts_with('{') => {
                    format!("mtlhost::id<{ty}>(ids.{field})")
                }
                Some((_, value, true)) => format!("{ty}{value}"),
                Some((_, value, false)) if value.starts_with(|c: char| c.is_ascii_digit()) => {
                    format!("{ty}({value})")
                }
                Some((_, field, false)) => format!("{ty}(ids.{field})"),
                None => unreachable!("bound from the same table"),
            },
        })
        .collect();
    let set: String = constants
        .iter()
        .map(|c| {
            let FunctionConstant { name, index } = c;
            format!(
                "  if (index == -1) __builtin_memset((void*)&{name}, 0, sizeof({name}));\n  \
                 if (index == {index} && bytes == sizeof({name})) {{\n    \
                 __builtin_memcpy((void*)&{name}, value, bytes);\n    return true;\n  }}\n"
            )
        })
        .collect();
    format!(
        "#line 1 \"launcher\"\n\
         extern \"C\" void mtlhost_kernel(void* const* buffers, void* const* threadgroup) {{\n  \
         const mtlhost::Ids& ids = *mtlhost_ids();\n  (void)ids;\n  \
         ::{call}({});\n}}\n\
         extern \"C\" bool mtlhost_set_constant(int index, const void* value, size_t bytes) {{\n{set}  \
         return false;\n}}\n",
        arguments.join(", ")
    )
}

/// How many threads a launch has.
#[derive(Debug, Clone, Copy)]
pub enum Grid {
    /// As `dispatchThreads`: the last threadgroups may be smaller.
    Threads([u32; 3]),
    /// As `dispatchThreadgroups`.
    Groups([u32; 3]),
}

/// In which order threads run between two barriers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Forward,
    Reverse,
    /// Drawn anew at each step.
    Random(u64),
}

/// A kernel's argument.
#[derive(Debug, Clone)]
pub struct Buffer {
    bytes: Vec<u8>,
    initialized: bool,
    read_back: bool,
}

impl Buffer {
    /// Values that the kernel reads.
    pub fn input<T: NoUninit>(values: &[T]) -> Self {
        Self { bytes: bytemuck::cast_slice(values).to_vec(), initialized: true, read_back: false }
    }

    /// Room for `length` values; reading one before it is written is a fault.
    pub fn output<T>(length: usize) -> Self {
        Self { bytes: vec![0xff; length * size_of::<T>()], initialized: false, read_back: true }
    }

    /// Values that the kernel reads and changes.
    pub fn in_out<T: NoUninit>(values: &[T]) -> Self {
        Self { read_back: true, ..Self::input(values) }
    }
}

/// A compiled kernel with the arguments given so far. Clone it to launch it again with others.
#[derive(Debug, Clone)]
pub struct Kernel {
    name: String,
    bindings: Vec<Binding>,
    known_constants: Vec<FunctionConstant>,
    library: Arc<Library>,
    buffers: Vec<(i32, Buffer)>,
    threadgroup: Vec<(i32, usize)>,
    constants: Vec<(i32, Vec<u8>)>,
    order: Order,
    divergent_simd: bool,
    equal_writes: bool,
}

impl Kernel {
    pub(crate) fn new(
        name: String,
        bindings: Vec<Binding>,
        known_constants: Vec<FunctionConstant>,
        library: Arc<Library>,
    ) -> Self {
        Self {
            name,
            bindings,
            known_constants,
            library,
            buffers: Vec::new(),
            threadgroup: Vec::new(),
            constants: Vec::new(),
            order: Order::Forward,
            divergent_simd: false,
            equal_writes: false,
        }
    }

    /// The argument of the next buffer parameter, in the order of the signature.
    pub fn buffer(self, buffer: Buffer) -> Self {
        let given = self.buffers.len();
        let indices = self.bindings.iter().filter_map(|b| match b {
            Binding::Buffer { index, .. } => Some(*index),
            _ => None,
        });
        let free = indices.clone().find(|i| !self.buffers.iter().any(|b| b.0 == *i));
        self.buffer_at(free.unwrap_or(given as i32), buffer)
    }

    /// The argument of `[[buffer(index)]]`.
    pub fn buffer_at(mut self, index: i32, buffer: Buffer) -> Self {
        self.buffers.push((index, buffer));
        self
    }

    /// [`Buffer::input`] for the next buffer parameter.
    pub fn input<T: NoUninit>(self, values: &[T]) -> Self {
        self.buffer(Buffer::input(values))
    }

    /// One value for the next buffer parameter, for example of a `constant float&`.
    pub fn scalar<T: NoUninit>(self, value: T) -> Self {
        self.buffer(Buffer::input(&[value]))
    }

    /// [`Buffer::output`] for the next buffer parameter.
    pub fn output<T>(self, length: usize) -> Self {
        self.buffer(Buffer::output::<T>(length))
    }

    /// The size of `[[threadgroup(index)]]`.
    pub fn threadgroup_memory(mut self, index: i32, bytes: usize) -> Self {
        self.threadgroup.push((index, bytes));
        self
    }

    /// The value of `[[function_constant(index)]]`; those not set are zero.
    pub fn constant<T: NoUninit>(mut self, index: i32, value: T) -> Self {
        self.constants.push((index, bytemuck::bytes_of(&value).to_vec()));
        self
    }

    pub fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// Lets lanes of a simdgroup meet at simdgroup operations that others of it do not reach: the operation sees those
    /// that came, as on hardware. Without it that is a fault.
    pub fn divergent_simd(mut self) -> Self {
        self.divergent_simd = true;
        self
    }

    /// Lets several threads write the same value to one place, as kernels do whose last tile overlaps the one before.
    /// Without it that is a race, as it is in the language.
    pub fn equal_writes(mut self) -> Self {
        self.equal_writes = true;
        self
    }

    /// Runs the kernel over `grid`, in threadgroups of `group` threads.
    pub fn launch(&self, grid: Grid, group: [u32; 3]) -> Result<Outputs> {
        self.check()?;
        let (threads, group) = match grid {
            Grid::Threads(t) => (t, std::array::from_fn(|k| group[k].min(t[k]))),
            Grid::Groups(g) => {
                let mut threads = [0; 3];
                for k in 0..3 {
                    threads[k] =
                        g[k].checked_mul(group[k]).ok_or_else(|| self.refuse("the grid is too large"))?;
                }
                (threads, group)
            }
        };
        if threads.contains(&0) || group.contains(&0) {
            return Err(self.refuse("the grid or the threadgroup is empty"));
        }
        let mut data: Vec<Vec<u8>> = self.buffers.iter().map(|b| b.1.bytes.clone()).collect();
        let buffers: Vec<BufferArg> =
            data.iter_mut()
                .zip(&self.buffers)
                .map(|(data, (index, buffer))| BufferArg {
                    data: data.as_mut_ptr(),
                    bytes: data.len() as u64,
                    index: *index,
                    constant: u8::from(self.bindings.iter().any(
                        |b| matches!(b, Binding::Buffer { index: i, constant: true, .. } if i == index),
                    )),
                    initialized: u8::from(buffer.initialized),
                })
                .collect();
        let threadgroup: Vec<ThreadgroupArg> = self
            .threadgroup
            .iter()
            .map(|&(index, bytes)| ThreadgroupArg { bytes: bytes as u64, index })
            .collect();
        let (order, seed) = match self.order {
            Order::Forward => (0, 0),
            Order::Reverse => (1, 0),
            Order::Random(seed) => (2, seed),
        };
        let arg = LaunchArg {
            buffers: std::ptr::null(),
            buffer_count: 0,
            threadgroup: std::ptr::null(),
            threadgroup_count: 0,
            grid: threads,
            group,
            order,
            flags: u32::from(self.divergent_simd) | u32::from(self.equal_writes) << 1,
            seed,
        };
        self.library.launch(&self.name, &self.constants, &buffers, &threadgroup, arg)?;
        let read_back = data.into_iter().zip(&self.buffers).filter(|(_, b)| b.1.read_back);
        Ok(Outputs { buffers: read_back.map(|(data, _)| data).collect() })
    }

    /// As [`Kernel::launch`], in every order of threads, which must agree byte by byte.
    pub fn launch_every_order(&self, grid: Grid, group: [u32; 3]) -> Result<Outputs> {
        let first = self.clone().order(Order::Forward).launch(grid, group)?;
        for order in [Order::Reverse, Order::Random(1), Order::Random(2)] {
            let other = self.clone().order(order).launch(grid, group)?;
            for (output, (a, b)) in first.buffers.iter().zip(&other.buffers).enumerate() {
                if let Some(byte) = a.iter().zip(b).position(|(a, b)| a != b) {
                    return Err(Error::OrderDependent { kernel: self.name.clone(), output, byte });
                }
            }
        }
        Ok(first)
    }

    fn refuse(&self, why: &str) -> Error {
        Error::Argument { kernel: self.name.clone(), why: why.into() }
    }

    fn check(&self) -> Result<()> {
        for (index, _) in &self.buffers {
            if !self.bindings.iter().any(|b| matches!(b, Binding::Buffer { index: i, .. } if i == index)) {
                return Err(self.refuse(&format!("it has no buffer {index}")));
            }
        }
        for b in &self.bindings {
            if let Binding::Threadgroup { index } = b
                && !self.threadgroup.iter().any(|t| t.0 == *index)
            {
                return Err(self.refuse(&format!("threadgroup argument {index} has no size")));
            }
        }
        for (index, _) in &self.constants {
            if !self.known_constants.iter().any(|c| c.index == *index) {
                return Err(self.refuse(&format!("it has no function constant {index}")));
            }
        }
        Ok(())
    }
}

/// What a launch wrote: the outputs and in-outs, in the order in which they were given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outputs {
    buffers: Vec<Vec<u8>>,
}

impl Outputs {
    /// The values of output `k`; panics when there is none.
    pub fn read<T: AnyBitPattern>(&self, k: usize) -> Vec<T> {
        self.buffers[k].chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }

    pub fn bytes(&self, k: usize) -> &[u8] {
        &self.buffers[k]
    }
}
