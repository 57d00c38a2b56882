//! `mlxport devices`

use super::{Outcome, print, print_json};
use crate::device::{Device, DeviceInfo, Machine};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Outcome {
    let machine = Machine::here()?;
    if args.json {
        return print_json(&machine);
    }
    print(describe(&machine))?;
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
