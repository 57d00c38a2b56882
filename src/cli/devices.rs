//! `mlxport devices`

use serde::Serialize;

use super::{Outcome, print, print_json};
use crate::device::{Device, DeviceInfo, Machine};
use crate::kernels::metal::{SHADERS, Shader};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    machine: Machine,
    shaders: Vec<ShaderReport>,
}

#[derive(Serialize)]
struct ShaderReport {
    name: &'static str,
    seen_on_gpu: bool,
}

impl From<&&Shader> for ShaderReport {
    fn from(shader: &&Shader) -> Self {
        Self { name: shader.name, seen_on_gpu: shader.seen_on_gpu }
    }
}

pub(super) fn run(args: &Args) -> Outcome {
    let machine = Machine::here()?;
    if args.json {
        return print_json(&Report { machine, shaders: SHADERS.iter().map(|s| s.into()).collect() });
    }
    print(describe(&machine))?;
    let (seen, unseen): (Vec<&Shader>, Vec<&Shader>) =
        SHADERS.iter().copied().partition(|shader| shader.seen_on_gpu);
    for (shaders, what) in [(seen, "run on a GPU"), (unseen, "not run on a GPU")] {
        let names: Vec<&str> = shaders.iter().map(|shader| shader.name).collect();
        if !names.is_empty() {
            print(format_args!("shaders    {} ({what})\n", names.join(", ")))?;
        }
    }
    for device in Device::all() {
        print(format_args!("device     {device}\n"))?;
        for (key, value) in device.info()? {
            match value {
                DeviceInfo::Text(text) => print(format_args!("           {key}: {text}\n"))?,
                DeviceInfo::Size(size) => print(format_args!("           {key}: {size}\n"))?,
            }
        }
    }
    Ok(())
}

/// The machine in a few lines.
pub(super) fn describe(machine: &Machine) -> String {
    let Machine { mlxport, mlx, backends, blas, cpu, cores, cpu_features, kernels, memory_bytes } = machine;
    format!(
        "mlxport    {mlxport}\nmlx        {mlx}\nbackends   {}\nblas       {blas}\n\
         cpu        {cpu}, {cores} cores\nfeatures   {}\nkernels    {kernels}\nmemory     {:.1} GiB\n",
        backends.join(", "),
        cpu_features.join(" "),
        *memory_bytes as f64 / (1u64 << 30) as f64,
    )
}
