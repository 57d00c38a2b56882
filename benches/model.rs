//! A whole model of random weights: reading a prompt and generating, on MLX's own operations and on ours.
//! `MLXPORT_BENCH_SHAPE` names another shape than `qwen3-0.6b`.

use mlxport::Result;
use mlxport::generate::{Speed, SpeedSettings, speed};
use mlxport::kernels::{self, Path};
use mlxport::ops::Quantization;
use mlxport::synth::{self, Shape};

fn report(name: &str, speed: &Speed) {
    let SpeedSettings { prompt_tokens, generate_tokens, runs, .. } = speed.settings;
    let (prompt, generation) = (speed.prompt_tps, speed.generation_tps);
    println!(
        "{name}: {prompt_tokens} prompt tokens at {:.2} tokens/s ({:.2} to {:.2}), {generate_tokens} generated at \
         {:.2} tokens/s ({:.2} to {:.2}), {runs} runs, {:.1} MiB of weights",
        prompt.median,
        prompt.min,
        prompt.max,
        generation.median,
        generation.min,
        generation.max,
        speed.weight_bytes as f64 / (1 << 20) as f64,
    );
}

fn main() -> Result<()> {
    let name = std::env::var("MLXPORT_BENCH_SHAPE").unwrap_or_else(|_| "qwen3-0.6b".to_owned());
    let folder = std::env::temp_dir().join(format!("mlxport-bench-{}", std::process::id()));
    let model = folder.join("model");
    synth::write(Shape::named(&name)?, Some(Quantization::affine(64, 4)), &model)?;
    let measure = |path, prompt_tokens, generate_tokens, runs| {
        let settings = SpeedSettings { prompt_tokens, generate_tokens, runs, batch_size: 1 };
        kernels::force(path, || speed(&model, settings, &mut || Ok(())))?
    };
    let result = (|| {
        report(&format!("{name} 4-bit, {}", kernels::active()), &measure(kernels::active(), 512, 64, 3)?);
        // A token takes seconds.
        report(&format!("{name} 4-bit, reference"), &measure(Path::Reference, 2, 3, 1)?);
        Ok(())
    })();
    let _ = std::fs::remove_dir_all(&folder);
    result
}
