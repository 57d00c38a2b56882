//! `mlxport convert`

use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};

use super::{Outcome, check_interrupt, print, print_json};
use crate::array::Dtype;
use crate::error::Error;
use crate::ops::{Quantization, QuantizationMode};
use crate::port::{Recipe, Rewrite, rewrite};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The source checkpoint: a directory, a GGUF file or a Hugging Face id
    #[arg(value_name = "SRC")]
    pub(super) source: PathBuf,
    /// Directory for the result; it must not be there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Quantize the matrices that are dense
    #[arg(long, conflicts_with = "dequantize")]
    quantize: bool,
    /// Bits of a code
    #[arg(long, value_name = "B", requires = "quantize")]
    bits: Option<i32>,
    /// Codes that share a scale
    #[arg(long, value_name = "G", requires = "quantize")]
    group_size: Option<i32>,
    /// How codes become numbers: affine, mxfp4, mxfp8 or nvfp4
    #[arg(long, value_name = "M", requires = "quantize", value_parser = mode, default_value = "affine")]
    mode: QuantizationMode,
    /// Mix bits by a recipe
    #[arg(long, value_name = "RECIPE", requires = "quantize", conflicts_with = "bits")]
    predicate: Option<Recipe>,
    /// Make the matrices dense that are quantized
    #[arg(long)]
    dequantize: bool,
    /// Dtype of what is not quantized: float16, bfloat16 or float32; by default the config's
    #[arg(long, value_name = "T", value_parser = dtype)]
    dtype: Option<Dtype>,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
}

fn mode(name: &str) -> Result<QuantizationMode, Error> {
    name.parse()
}

fn dtype(name: &str) -> Result<Dtype, Error> {
    let known = [Dtype::Float16, Dtype::Bfloat16, Dtype::Float32];
    let found = known.into_iter().find(|dtype| dtype.to_string() == name);
    found.ok_or_else(|| Error::argument("dtype", format!("`{name}` is not float16, bfloat16 or float32")))
}

pub(super) fn run(args: &Args) -> Outcome {
    let usual = Quantization::from(args.mode);
    let quantize = args.quantize.then_some(Quantization {
        mode: args.mode,
        group_size: args.group_size.unwrap_or(usual.group_size),
        bits: args.bits.unwrap_or(usual.bits),
    });
    let options = Rewrite {
        source: args.source.clone(),
        out: args.out.clone(),
        quantize,
        recipe: args.predicate,
        dequantize: args.dequantize,
        dtype: args.dtype,
    };
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}");
    bar.set_style(style.expect("a fixed template"));
    let done = rewrite(&options, &mut |written, all| {
        bar.set_length(all);
        bar.set_position(written);
        check_interrupt()
    });
    bar.finish_and_clear();
    let done = done?;
    if args.json {
        return print_json(&done);
    }
    print(format_args!(
        "{}: {} parameters, {:.1} MiB, {:.3} bits for each\n",
        args.out.display(),
        done.parameters,
        done.weight_bytes as f64 / f64::from(1 << 20),
        done.bits_per_weight,
    ))
}
