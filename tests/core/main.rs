//! Arrays, devices, streams: the contracts of the safe core.

mod arrays;
mod transforms_grad;
