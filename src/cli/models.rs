//! `mlxport models`

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Outcome, print, print_json};
use crate::models::{MODEL_TYPES, ModelStatus, has_no_reference, model_statuses, module_of};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Print them as a JSON list
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row<'a> {
    model_type: &'a str,
    /// What implements it.
    module: Option<&'static str>,
    /// Null for what no sweep has run.
    status: Option<&'a ModelStatus>,
}

pub(super) fn run(args: &Args) -> Outcome {
    let statuses = model_statuses()?;
    let by_type: BTreeMap<&str, &ModelStatus> =
        statuses.iter().map(|status| (status.model_type.as_str(), status)).collect();
    let mut types = MODEL_TYPES.to_vec();
    types.sort_unstable();
    let rows = types.iter().map(|name| Row {
        model_type: name,
        module: module_of(name),
        status: by_type.get(name).copied(),
    });
    if args.json {
        return print_json(&rows.collect::<Vec<_>>());
    }
    let width = types.iter().map(|name| name.len()).max().unwrap_or(0);
    let lines = rows.map(|row| match row.status {
        Some(s) => {
            let name = row.model_type;
            format!(
                "{name:width$}  {:>3}/{:<3} cases, worst error {:.1e}\n",
                s.passed, s.total, s.worst_error
            )
        }
        None if has_no_reference(row.model_type) => {
            format!("{:width$}  no reference runs it\n", row.model_type)
        }
        None => format!("{:width$}  not measured\n", row.model_type),
    });
    print(lines.collect::<String>())
}
