//! Logits and greedy tokens against transformers and mlx-lm.

use mlxport::cache::{Cache, LayerCache};
use mlxport::generate::{FinishReason, Options, Tokens};
use mlxport::models::{check_tokens, probe};
use mlxport::nn::Module;
use mlxport::{Array, Dtype, ops};

use super::{Fixture, LOGITS, columns, error};

/// The logits of `ids`, fed through a fresh cache in pieces of these lengths.
fn in_pieces(fixture: &Fixture, ids: &Array, lengths: &[i32]) -> Vec<f32> {
    let mut cache = fixture.model.make_cache();
    let (mut start, mut parts) = (0, Vec::new());
    for length in lengths {
        let piece = columns(ids, start, start + length);
        parts.push(fixture.model.forward(&piece, &mut cache).unwrap());
        start += length;
    }
    assert_eq!((start, cache.offset()), (20, 20));
    ops::concatenate(&parts, 1).unwrap().to_vec().unwrap()
}

#[test]
fn whole_sequences_give_the_logits_of_the_source() {
    for name in Fixture::ALL {
        let fixture = Fixture::load(name);
        for rows in [1, 2] {
            let (ids, expected) = fixture.rows(rows);
            let mut stateless = fixture.model.make_cache().stateless();
            for cache in [&mut stateless, &mut fixture.model.make_cache()] {
                let logits = fixture.model.forward(&ids, cache).unwrap();
                let error = error(&logits.to_vec().unwrap(), expected);
                assert!(error < LOGITS, "{name}, batch of {rows}: {error:.1e}");
            }
            assert_eq!(stateless.offset(), 0);
        }
    }
}

#[test]
fn any_split_of_a_sequence_gives_the_logits_of_the_whole() {
    let splits: [&[i32]; 6] =
        [&[1; 20], &[19, 1], &[5, 7, 1, 3, 4], &[1, 2, 1, 3, 1, 4, 8], &[6, 1, 1, 6, 6], &[10, 10]];
    // Keys in a cache keep the base that held when they came, so a dynamic base tells splits apart.
    for name in Fixture::ALL.into_iter().filter(|name| *name != "rope_dynamic") {
        let fixture = Fixture::load(name);
        for (split, rows) in splits.iter().zip([1, 2, 1, 2, 1, 2]) {
            let (ids, expected) = fixture.rows(rows);
            let error = error(&in_pieces(&fixture, &ids, split), expected);
            assert!(error < LOGITS, "{name} in pieces of {split:?}: {error:.1e}");
        }
    }
}

#[test]
fn greedy_tokens_are_those_of_the_source() {
    for name in Fixture::ALL.into_iter().filter(|name| *name != "rope_dynamic") {
        let fixture = Fixture::load(name);
        for prefill_step in [512, 7] {
            let mut cache = fixture.model.make_cache();
            let options = Options { max_tokens: 12, prefill_step, ..Options::default() };
            let tokens = Tokens::new(&*fixture.model, &mut cache, &fixture.prompt(), options).unwrap();
            let tokens: Vec<_> = tokens.map(Result::unwrap).collect();
            let ids: Vec<i32> = tokens.iter().map(|t| t.id).collect();
            assert_eq!(ids, fixture.greedy, "{name}, prompt in steps of {prefill_step}");
            assert_eq!(tokens[11].finish_reason, Some(FinishReason::Length));
            assert!(tokens.iter().all(|t| t.logprob <= 0.0 && t.logprob > -10.0));
        }
    }
}

#[test]
fn a_generation_ends_with_its_stop_token() {
    let fixture = Fixture::load("llama");
    let stop = fixture.greedy[4];
    let at = fixture.greedy.iter().position(|&id| id == stop).unwrap();
    let mut cache = fixture.model.make_cache();
    let options = Options { stop: vec![39, stop], ..Options::default() };
    let mut tokens = Tokens::new(&*fixture.model, &mut cache, &fixture.prompt(), options).unwrap();
    let last = tokens.by_ref().map(Result::unwrap).last().unwrap();
    assert_eq!((last.id, last.finish_reason), (stop, Some(FinishReason::Stop)));
    let stats = tokens.stats();
    assert_eq!((stats.prompt_tokens, stats.generated_tokens), (20, at + 1));
    assert!(stats.prompt_tps() > 0.0 && stats.generation_tps() > 0.0 && stats.peak_memory > 0);
}

#[test]
fn prompts_that_the_model_cannot_read_are_refused() {
    let fixture = Fixture::load("llama");
    for prompt in [&[][..], &[40], &[3, -1], &[i32::MAX]] {
        let mut cache = fixture.model.make_cache();
        assert!(Tokens::new(&*fixture.model, &mut cache, prompt, Options::default()).is_err());
    }
    assert!(check_tokens(&*fixture.model, &[0, 39]).is_ok());
    let mut other = Cache::new([LayerCache::Stateless, LayerCache::Stateless]);
    assert!(fixture.model.forward(&fixture.ids, &mut other).is_err(), "a cache of another model");
}

#[test]
fn a_generation_can_be_stopped_while_it_reads_the_prompt() {
    let fixture = Fixture::load("llama");
    let mut cache = fixture.model.make_cache();
    let options = Options { prefill_step: 4, ..Options::default() };
    let tokens = Tokens::new(&*fixture.model, &mut cache, &fixture.prompt(), options).unwrap();
    let mut read = Vec::new();
    let mut tokens = tokens.on_prefill(|done, of| {
        read.push((done, of));
        if done == 8 { Err(mlxport::Error::argument("test", "enough")) } else { Ok(()) }
    });
    assert!(tokens.next().unwrap().is_err());
    assert!(tokens.next().is_none());
    drop(tokens);
    assert_eq!(read, [(4, 20), (8, 20)]);
    assert_eq!(cache.offset(), 8);
}

#[test]
fn every_stage_reports_to_a_listener() {
    let fixture = Fixture::load("qwen3");
    let run = || fixture.model.forward(&fixture.ids, &mut fixture.model.make_cache()).unwrap();
    let (logits, stages) = probe::record(run);
    let names: Vec<&str> = stages.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "embeddings",
        "layers.0.self_attn",
        "layers.0.mlp",
        "layers.0",
        "layers.1.self_attn",
        "layers.1.mlp",
        "layers.1",
        "norm",
        "logits",
    ];
    assert_eq!(names, expected);
    assert!(stages[..8].iter().all(|(_, x)| x.shape() == [2, 20, 32]));
    assert_eq!(stages[8].1.to_vec::<f32>().unwrap(), logits.to_vec::<f32>().unwrap());
    run();
    assert!(probe::record(|| ()).1.is_empty(), "nobody listened");
}

#[test]
fn parameters_have_the_names_of_the_checkpoint() {
    for name in Fixture::ALL {
        let mut fixture = Fixture::load(name);
        let file = mlxport::io::SafeTensors::open(fixture.dir.join("model.safetensors")).unwrap();
        let mut expected: Vec<&str> = file.keys().collect();
        let parameters = fixture.model.parameters();
        let mut found: Vec<&str> = parameters.iter().map(|(path, _)| path.as_str()).collect();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected, "{name}");
        let bytes: usize = parameters.iter().map(|(_, array)| array.nbytes()).sum();
        assert_eq!(fixture.model.nbytes(), bytes);

        let zeros: Vec<Array> = parameters.iter().map(|(_, a)| ops::zeros_like(a).unwrap()).collect();
        assert!(fixture.model.set_parameters(&zeros[1..]).is_err());
        fixture.model.set_parameters(&zeros).unwrap();
        let mut cache = fixture.model.make_cache();
        let logits = fixture.model.forward(&fixture.ids, &mut cache).unwrap();
        assert_eq!(ops::max(&ops::abs(&logits).unwrap(), .., false).unwrap().item::<f32>().unwrap(), 0.0);
    }
}

#[test]
fn named_parameters_are_replaced_and_others_refused() {
    let mut fixture = Fixture::load("llama");
    let half = |shape: &[i32]| ops::full(shape, 0.5, Dtype::Float32).unwrap();
    let name = "model.norm.weight".to_owned();
    fixture.model.update_parameters(&[(name.clone(), half(&[32]))].into()).unwrap();
    let norm = fixture.model.parameters().into_iter().find(|(path, _)| *path == name).unwrap().1;
    assert_eq!(norm.to_vec::<f32>().unwrap(), [0.5; 32]);
    assert!(fixture.model.update_parameters(&[(name, half(&[31]))].into()).is_err());
    assert!(
        fixture.model.update_parameters(&[("model.nrom.weight".to_owned(), half(&[32]))].into()).is_err()
    );
}
