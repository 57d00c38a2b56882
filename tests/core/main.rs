//! Arrays, devices, streams: the contracts of the safe core.

mod arrays;
mod contracts_errors;
mod contracts_memory;
mod contracts_threads;
mod coverage;
mod distributed;
mod fast;
mod fft;
mod indexing;
mod kernels;
mod linalg;
mod losses;
mod ops_arguments;
mod ops_hostile;
mod ops_quantized;
mod optim;
mod random;
mod transforms_compile;
mod transforms_custom;
mod transforms_derivatives;
mod transforms_export;
mod transforms_grad;
mod transforms_vector;
