//! Step 7: what was found, done, proven and measured, for programs and for people.

use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::convert::{Conversion, Plan};
use super::inspect::Inspection;
use super::measure::{Sample, Speed};
use super::parity::{Measured, Outcome, Parity, TOLERANCE};
use super::step::write_json;
use crate::error::Result;
use crate::io::atomic::write_bytes;

/// A finished port, or one that a rung of parity has stopped.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Version of this program.
    pub mlxport: String,
    /// Version of MLX.
    pub mlx: String,
    /// The source folder's name.
    pub source: String,
    /// What the checkpoint is.
    pub inspection: Inspection,
    /// What was done with it.
    pub plan: Plan,
    /// The weight map, and the converted files.
    pub conversion: Conversion,
    /// How the model compares with its source framework.
    pub parity: Parity,
    /// The deviation of the logits in the dtype that the model is used in. Not a gate.
    pub as_used: Option<Measured>,
    /// What it generates; `None` where a rung failed.
    pub sample: Option<Sample>,
    /// How fast it is on this machine; `None` where a rung failed.
    pub speed: Option<Speed>,
}

impl Report {
    /// Writes `report.json` and `report.md`.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        write_json(&folder.join("report.json"), self)?;
        write_bytes(&folder.join("report.md"), self.to_markdown().as_bytes())
    }

    /// The report for people.
    pub fn to_markdown(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.markdown(&mut out);
        out
    }

    fn markdown(&self, out: &mut String) -> std::fmt::Result {
        let (i, plan) = (&self.inspection, &self.plan);
        let verdict = match self.parity.failure() {
            None => "proven".to_owned(),
            Some(rung) => format!("NOT proven: rung `{}` failed", rung.name),
        };
        writeln!(out, "# {}: {verdict}\n", self.source)?;
        writeln!(out, "Ported by mlxport {} with MLX {}.\n", self.mlxport, self.mlx)?;

        writeln!(out, "## Source\n")?;
        writeln!(out, "| | |\n| --- | --- |")?;
        writeln!(out, "| model type | `{}` ({}) |", i.model_type, i.architectures.join(", "))?;
        writeln!(out, "| parameters | {} in {} tensors |", grouped(i.parameters), i.tensors.len())?;
        let dtypes: Vec<String> = plan.dtypes.iter().map(|(dtype, n)| format!("{n} {dtype}")).collect();
        writeln!(out, "| weights | {} bytes: {} |", grouped(i.weight_bytes), dtypes.join(", "))?;
        writeln!(out, "| licence | {} |", i.license.as_deref().unwrap_or("none given"))?;
        writeln!(out, "| tokenizer | {} |", if i.tokenizer { "tokenizer.json" } else { "none" })?;
        if !i.code.is_empty() {
            writeln!(out, "| Python files, not run | {} |", i.code.join(", "))?;
        }
        writeln!(out, "\n| file | bytes | SHA-256 |\n| --- | --- | --- |")?;
        for file in &i.files {
            writeln!(out, "| {} | {} | `{}` |", file.name, grouped(file.bytes), file.sha256)?;
        }

        writeln!(out, "\n## Parity\n")?;
        writeln!(
            out,
            "Computed in float32. A deviation is the largest absolute difference over the standard deviation of the \
             reference; {TOLERANCE:.0e} passes.\n"
        )?;
        writeln!(out, "| rung | outcome | worst deviation | |\n| --- | --- | --- | --- |")?;
        for rung in &self.parity.rungs {
            let outcome = match rung.outcome {
                Outcome::Passed => "passed",
                Outcome::Failed => "**failed**",
                Outcome::Skipped => "skipped",
            };
            let worst = rung.worst().map_or(String::new(), |worst| format!("{worst:.1e}"));
            writeln!(out, "| {} | {outcome} | {worst} | {} |", rung.name, rung.detail)?;
        }
        for rung in self.parity.rungs.iter().filter(|rung| rung.measured.len() > 1) {
            writeln!(out, "\n| {} | deviation |\n| --- | --- |", rung.name)?;
            for m in &rung.measured {
                let relative =
                    m.deviation.as_ref().map_or("other shape".into(), |d| format!("{:.1e}", d.relative));
                let mark = if m.passes() { "" } else { " **diverges**" };
                writeln!(out, "| {} | {relative}{mark} |", m.name)?;
            }
        }
        if let Some(d) = self.as_used.as_ref().and_then(|m| m.deviation.as_ref()) {
            writeln!(
                out,
                "\nIn the dtype of its weights the model's logits deviate by {:.1e}: rounding, not a gate.",
                d.relative
            )?;
        }

        if let Some(sample) = &self.sample {
            writeln!(out, "\n## Sample\n")?;
            let text = sample.text.clone().unwrap_or_else(|| format!("{:?}", sample.tokens));
            writeln!(out, "Greedy, after `{}`:\n", sample.prompt.escape_debug())?;
            for line in text.lines() {
                writeln!(out, "    {line}")?;
            }
        }
        if let Some(speed) = &self.speed {
            writeln!(out, "\n## Speed\n\n{speed}")?;
        }

        writeln!(out, "\n## Weight map\n\n```")?;
        for line in &self.conversion.table {
            writeln!(out, "{line}")?;
        }
        writeln!(out, "```")
    }
}

/// `1234567` as `1 234 567`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}
