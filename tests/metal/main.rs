//! The runner of Metal shaders (`metal/host`), and the shaders that it runs.

mod runner;
