//! Several processes that compute together.
//!
//! Each process is a member of a [`Group`], and every member makes the same collective calls in the same
//! order. The operations are lazy like all others; they run on the CPU (with NCCL: on the GPU). Started
//! alone, a process is a group of size 1, in which collective operations give their argument back.

use crate::array::{Array, Dtype, element_count};
use crate::error::{Error, Result};
use crate::ffi::{self, GroupHandle, call, op};

/// How processes find each other and communicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The first of the others that the environment is set up for.
    Any,
    /// TCP. `MLX_HOSTFILE` names a JSON file with a list of addresses per process, such as
    /// `[["10.0.0.1:5000"], ["10.0.0.2:5000"]]`; `MLX_RANK` is the process's place in it.
    Ring,
    /// An MPI library, for programs that `mpirun` started.
    Mpi,
    /// NVIDIA's library, in builds with CUDA.
    Nccl,
    /// RDMA over Thunderbolt, on macOS.
    Jaccl,
}

impl Backend {
    fn name(self) -> &'static std::ffi::CStr {
        match self {
            Backend::Any => c"any",
            Backend::Ring => c"ring",
            Backend::Mpi => c"mpi",
            Backend::Nccl => c"nccl",
            Backend::Jaccl => c"jaccl",
        }
    }

    /// Whether this build and machine can communicate so.
    pub fn is_available(self) -> bool {
        ffi::distributed_is_available(self.name())
    }
}

/// Processes that communicate.
#[derive(Debug)]
pub struct Group(GroupHandle);

impl Group {
    /// Joins the group of all processes, once per backend; later calls give the same group again.
    /// Waits for the other members.
    ///
    /// Where the environment sets up no group, the process is alone, or it is an error if `strict`.
    pub fn join(backend: Backend, strict: bool) -> Result<Self> {
        let mut group = GroupHandle::empty();
        let name = backend.name();
        call!(mlx_distributed_init; group.0; strict, name)?;
        Ok(Self(group))
    }

    /// This process's number, from 0.
    pub fn rank(&self) -> i32 {
        self.0.rank()
    }

    /// The number of processes.
    pub fn size(&self) -> i32 {
        self.0.size()
    }

    /// The group of the members that give the same `color`, ordered by `key`. Not every backend has it.
    pub fn split(&self, color: i32, key: i32) -> Result<Self> {
        let mut group = GroupHandle::empty();
        let this = &self.0;
        call!(mlx_distributed_group_split; group.0; this, color, key)?;
        Ok(Self(group))
    }

    /// The sum of every member's `x`. All have the same shape and dtype.
    pub fn all_sum(&self, x: &Array) -> Result<Array> {
        let group = &self.0;
        op!(mlx_distributed_all_sum(x, group))
    }

    /// The largest of every member's elements.
    pub fn all_max(&self, x: &Array) -> Result<Array> {
        let group = &self.0;
        op!(mlx_distributed_all_max(x, group))
    }

    /// The smallest of every member's elements.
    pub fn all_min(&self, x: &Array) -> Result<Array> {
        let group = &self.0;
        op!(mlx_distributed_all_min(x, group))
    }

    /// Every member's `x`, one after the other along the first axis.
    pub fn all_gather(&self, x: &Array) -> Result<Array> {
        let group = &self.0;
        op!(mlx_distributed_all_gather(x, group))
    }

    /// This member's part of the sum: the first axis, which the size of the group divides, is shared out.
    /// Not every backend has it.
    pub fn sum_scatter(&self, x: &Array) -> Result<Array> {
        let group = &self.0;
        op!(mlx_distributed_sum_scatter(x, group))
    }

    /// Sends `x` to a member, when the result (which is `x`) is computed. Fails in a group of size 1.
    pub fn send(&self, x: &Array, to: i32) -> Result<Array> {
        let group = &self.0;
        op!(mlx_distributed_send(x, to, group))
    }

    /// What a member sends, whose shape and dtype must be known. Fails in a group of size 1.
    pub fn recv(&self, shape: &[i32], dtype: Dtype, from: i32) -> Result<Array> {
        if element_count(shape).and_then(|n| n.checked_mul(dtype.size())).is_none() {
            return Err(Error::argument("recv", format!("impossible shape {shape:?}")));
        }
        let group = &self.0;
        op!(mlx_distributed_recv([shape], dtype, from, group))
    }

    /// What a member sends, of the shape and dtype of `x`. Fails in a group of size 1.
    pub fn recv_like(&self, x: &Array, from: i32) -> Result<Array> {
        let group = &self.0;
        op!(mlx_distributed_recv_like(x, from, group))
    }
}
