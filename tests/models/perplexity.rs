//! Perplexities against mlx-lm (`tests/oracle/perplexity.py`).

use mlxport::generate::{PerplexitySettings, perplexity};
use serde::Deserialize;

use super::Fixture;

#[derive(Deserialize)]
struct Expected {
    name: String,
    length: usize,
    /// -1 for all.
    samples: i64,
    batch: usize,
    perplexity: f64,
    standard_error: f64,
}

#[test]
fn perplexities_are_those_of_mlx_lm() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/perplexity.json");
    let rows: Vec<Expected> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for row in rows {
        let fixture = Fixture::load(&row.name);
        let ids: Vec<i32> = fixture.ids.to_vec().unwrap();
        let settings = PerplexitySettings {
            sequence_length: row.length,
            batch_size: row.batch,
            num_samples: usize::try_from(row.samples).ok(),
        };
        let found = perplexity(&*fixture.model, &ids, settings, &mut || Ok(())).unwrap();
        let error = |found: f64, expected: f64| ((found - expected) / expected).abs();
        assert!(error(found.perplexity, row.perplexity) < 1e-5, "{}: {found:?}", row.name);
        assert!(error(found.standard_error, row.standard_error) < 1e-4, "{}: {found:?}", row.name);
        assert_eq!(found.tokens, found.samples * (row.length - 1));
    }
    let fixture = Fixture::load("llama");
    let run = |ids: &[i32], settings| perplexity(&*fixture.model, ids, settings, &mut || Ok(()));
    let settings = PerplexitySettings { sequence_length: 5, ..PerplexitySettings::default() };
    assert!(run(&[1, 2, 3, 4], settings).is_err(), "too short");
    assert!(run(&[1, 2, 3, 4, 40], settings).is_err(), "not in the vocabulary");
    assert!(run(&[1; 9], PerplexitySettings { sequence_length: 1, ..settings }).is_err());
    assert!(run(&[1; 9], PerplexitySettings { batch_size: 0, ..settings }).is_err());
}
