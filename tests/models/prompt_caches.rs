//! Prompt caches: in mlx-lm's files, in both directions, and for prompts that begin alike.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mlxport::cache::{Cache, LayerCache, RotatingKvCache};
use mlxport::checkpoint::Config;
use mlxport::generate::{KvQuantization, Options, PrefixCache, Remembered, Tokens};
use mlxport::io::{SafeTensors, load_safetensors, save_safetensors};
use mlxport::models::{LanguageModel, MODEL_TYPES, load_as, takes_limit};
use mlxport::ops::{Quantization, QuantizationMode};
use mlxport::{Array, Dtype, ops};
use proptest::prelude::*;
use serde_json::Value;

use super::{Fixture, LOGITS, bundled, error};

fn path(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/prompt_cache");
    folder.join(format!("{name}.safetensors"))
}

fn ids(tokens: &[i32]) -> Array {
    Array::from_slice(tokens, &[1, tokens.len() as i32]).unwrap()
}

/// The logits of tokens that come one at a time.
fn decode(model: &dyn LanguageModel, tokens: &[i32], cache: &mut Cache) -> Vec<f32> {
    let step = |id: &i32| model.forward(&ids(&[*id]), cache).unwrap().to_vec::<f32>().unwrap();
    tokens.iter().flat_map(step).collect()
}

#[test]
fn caches_that_mlx_lm_has_saved_go_on_as_there() {
    for (name, model) in [
        ("kv", Fixture::load("q4").model),
        ("rotating", Fixture::load("sliding").model),
        ("quantized", bundled::model()),
        ("dynamic", Fixture::load("rope_dynamic").model),
    ] {
        let expect = SafeTensors::open(path(&format!("{name}.expect"))).unwrap();
        let tokens: Vec<i32> = expect.array("ids").unwrap().to_vec().unwrap();
        let expected: Vec<f32> = expect.array("logits").unwrap().to_vec().unwrap();
        let (cache, metadata) = Cache::load(path(name)).unwrap();
        cache.check_of(&model.make_cache()).unwrap();
        assert_eq!(cache.offset(), if name == "dynamic" { 21 } else { 11 });
        assert_eq!((metadata["model"].as_str(), metadata["a.b"].as_str()), (name, "é"));
        let found = decode(&*model, &tokens, &mut cache.clone());
        let worst = error(&found, &expected);
        assert!(worst < LOGITS, "{name}: {worst:.1e}");

        // Saved and loaded again, it goes on with the very same numbers.
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("again.safetensors");
        cache.save(&file, &metadata).unwrap();
        let (mut again, metadata_again) = Cache::load(&file).unwrap();
        assert_eq!(metadata_again, metadata);
        assert_eq!(decode(&*model, &tokens, &mut again), found);
        let other = if name == "rotating" { bundled::model() } else { Fixture::load("sliding").model };
        let other = other.make_cache();
        assert!(again.check_of(&other).is_err(), "{name}: a cache of another model");
    }
}

#[test]
fn caches_of_every_class_survive_a_file() {
    let (cache, _) = Cache::load(path("classes")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("again.safetensors");
    cache.save(&file, &BTreeMap::new()).unwrap();
    let (again, _) = Cache::load(&file).unwrap();
    assert_eq!(cache.layers().len(), 8);
    assert_eq!(cache.offset(), 11);
    for (one, other) in cache.layers().iter().zip(again.layers()) {
        assert_eq!(one.position(), other.position());
        assert_eq!(one.arrays().len(), other.arrays().len());
    }
    // What a file says that was loaded and saved once, it says again.
    let twice = folder.path().join("twice.safetensors");
    again.save(&twice, &BTreeMap::new()).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), std::fs::read(&twice).unwrap());
    let padded = Cache::new([LayerCache::kv()]).pad_left(&[1, 0]).unwrap();
    assert!(padded.save(&file, &BTreeMap::new()).is_err());
}

#[test]
fn files_that_are_no_prompt_caches_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wrong.safetensors");
    let broken =
        |name: &str, change: &dyn Fn(&mut BTreeMap<String, Array>, &mut BTreeMap<String, String>)| {
            let (mut arrays, mut metadata) = load_safetensors(path(name)).unwrap();
            change(&mut arrays, &mut metadata);
            let arrays = arrays.iter().map(|(key, array)| (key.as_str(), array));
            save_safetensors(&file, arrays, &metadata).unwrap();
            Cache::load(&file).map(drop).expect_err("it is broken").to_string()
        };
    let text = |key: &'static str, value: &'static str| {
        move |_: &mut BTreeMap<String, Array>, texts: &mut BTreeMap<String, String>| {
            texts.insert(key.to_owned(), value.to_owned());
        }
    };
    let number = |key: &'static str, value: i32| {
        move |arrays: &mut BTreeMap<String, Array>, _: &mut BTreeMap<String, String>| {
            arrays.insert(key.to_owned(), Array::from(value));
        }
    };
    assert!(broken("kv", &text("1.0", "os.system")).contains("os.system"));
    assert!(broken("kv", &text("1.1", "KVCache")).contains("layer 1"));
    assert!(broken("kv", &text("1.18446744073709551616", "KVCache")).contains("metadata"));
    assert!(broken("kv", &text("3", "")).contains("metadata"));
    assert!(broken("kv", &|_, texts| texts.clear()).contains("not a prompt cache"));
    assert!(broken("kv", &number("0.2", -1)).contains("-1"));
    assert!(broken("kv", &number("0.2", 257)).contains("257"));
    assert!(broken("kv", &number("0.3", 1)).contains("more parts"));
    assert!(broken("kv", &number("0.2.0.0.0.0.0.0.0.0.0.0.0.0", 1)).contains("place"));
    assert!(broken("kv", &number("x", 1)).contains("place"));
    assert!(broken("kv", &|arrays, _| drop(arrays.remove("0.1"))).contains("missing"));
    assert!(broken("kv", &|arrays, _| drop(arrays.remove("0.2"))).contains("missing"));
    for shape in [&[1, 2, 256][..], &[1, 2, 255, 8], &[1, 1, 256, 8], &[1, 2, 0, 8]] {
        let smaller = ops::zeros(shape, mlxport::Dtype::Float32).unwrap();
        let put =
            |arrays: &mut BTreeMap<String, Array>| drop(arrays.insert("0.1".to_owned(), smaller.clone()));
        assert!(broken("kv", &|arrays, _| put(arrays)).contains("shape"));
    }
    assert!(broken("rotating", &number("1.3", 6)).contains("window"), "it would keep all");
    assert!(broken("rotating", &number("1.4", 0)).contains("from 1"));
    assert!(broken("rotating", &number("1.5", 12)).contains("12"));
    assert!(broken("quantized", &number("0.3", 0)).contains("group"));
    assert!(broken("quantized", &number("0.4", 7)).contains("7 bits"));
    assert!(broken("quantized", &number("0.4", 4)).contains("codes"));
    assert!(broken("quantized", &|arrays, _| drop(arrays.remove("0.0.1"))).contains("three"));
    assert!(broken("classes", &text("2.3.1", "scalar")).contains("`1.1`"));
    assert!(broken("classes", &text("2.15.1", "none")).contains("class"));
    // What is behind a gap does not count, and here that is all.
    assert!(broken("classes", &|arrays, _| drop(arrays.remove("1.0.0"))).contains("first state"));
    std::fs::write(&file, b"not safetensors").unwrap();
    assert!(Cache::load(&file).is_err());
    assert!(Cache::load(folder.path().join("missing")).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn damaged_files_never_crash(damage in prop::collection::vec((0..4000usize, any::<u8>()), 1..6), cut in 0..90_000usize) {
        let mut bytes = std::fs::read(path("classes")).unwrap();
        for (at, byte) in damage {
            bytes[at] = byte;
        }
        if cut < 70_000 {
            bytes.truncate(cut);
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("damaged.safetensors");
        std::fs::write(&file, bytes).unwrap();
        if let Ok((cache, _)) = Cache::load(&file) {
            let _ = cache.eval();
            let _ = cache.row(0);
        }
    }
}

/// A prompt of any length.
fn prompt(seed: i32, length: i32) -> Vec<i32> {
    (0..length).map(|i| (seed * 13 + i * i * 5 + i * 3) % 40).collect()
}

/// However long a text is, few states of it are kept, the closest to each other near its end.
#[test]
fn boundaries_do_not_grow_with_the_text() {
    let fixture = Fixture::load("sliding");
    let (mut cache, options) = (fixture.model.make_cache(), Options { max_tokens: 1, ..Options::default() });
    let tokens = Tokens::new(&*fixture.model, &mut cache, &prompt(1, 600), options).unwrap();
    let mut tokens = tokens.with_boundaries(8);
    tokens.next().unwrap().unwrap();
    let at: Vec<i32> = tokens.take_boundaries().iter().map(|boundary| boundary.position()).collect();
    assert_eq!((at.len(), at[0], &at[14..]), (16, 8, &[592, 599][..]), "{at:?}");
    // A text that shares all but some tokens is read anew from not much farther back.
    let near = |pair: &[i32]| pair[1] - pair[0] <= 8 + (599 - pair[0]) * 2 / 3;
    assert!(at.windows(2).all(near), "{at:?}");
}

#[test]
fn a_prompt_that_begins_like_another_is_read_from_there_on() {
    // (checkpoint, tokens read of the second prompt, of the third, which is the first text gone on)
    // A layer with a window comes back to multiples of 8 only: 39 tokens are shared, and 32 are reused.
    for (name, second, third) in
        [("llama", 10, 5), ("mistral", 10, 5), ("qwen3_sliding", 10, 5), ("sliding", 17, 5), ("q4", 10, 5)]
    {
        let fixture = Fixture::load(name);
        let model = &*fixture.model;
        let mut prefixes = PrefixCache::new(1 << 30);
        let options = Options { max_tokens: 6, ..Options::default() };
        let mut run = |prompt: &[i32]| {
            let (mut cache, reused) = prefixes.begin(model, prompt).unwrap();
            assert_eq!(cache.offset() as usize, reused);
            let tokens = Tokens::new(model, &mut cache, &prompt[reused..], options.clone()).unwrap();
            let mut tokens = tokens.with_boundaries(8);
            let generated: Vec<i32> = tokens.by_ref().map(|token| token.unwrap().id).collect();
            let (read, boundaries) = (tokens.stats().prompt_tokens, tokens.take_boundaries());
            drop(tokens);
            let text = [prompt, &generated].concat();
            prefixes.insert(Remembered::new(text.clone(), cache, boundaries));
            (text, read)
        };
        let alone = |prompt: &[i32]| {
            let mut cache = model.make_cache();
            let tokens = Tokens::new(model, &mut cache, prompt, options.clone()).unwrap();
            let generated: Vec<i32> = tokens.map(|token| token.unwrap().id).collect();
            [prompt, &generated].concat()
        };
        let first = prompt(1, 60);
        let (text, read) = run(&first);
        assert_eq!((&text, read), (&alone(&first), 60), "{name}");

        let other = [&first[..39], &prompt(3, 10)[..]].concat();
        assert_ne!(other[39], first[39]);
        let (found, read) = run(&other);
        assert_eq!(found, alone(&other), "{name}");
        assert_eq!(read, second, "{name}: tokens read");

        // The last token generated was never read.
        let more = [&text[..], &prompt(3, 4)].concat();
        let (found, read) = run(&more);
        assert_eq!(found, alone(&more), "{name}");
        assert_eq!(read, third, "{name}: tokens read");

        // The same again: only its last token is read, or what is behind the last boundary.
        let (found, read) = run(&more);
        assert_eq!(found, alone(&more), "{name}");
        assert!(read <= 2, "{name}: {read}");
        assert_eq!(run(&prompt(9, 12)).1, 12, "nothing is shared");
    }
}

#[test]
fn a_cache_of_another_size_is_refused_with_both_sizes() {
    let rotating = |size, keep| LayerCache::Rotating(RotatingKvCache::new(size, keep));
    let told = |found: LayerCache, made: LayerCache| {
        Cache::new([found]).check_of(&Cache::new([made])).unwrap_err().to_string()
    };
    let one = told(rotating(8, 0), rotating(6, 0));
    assert!(one.contains("max_size 8, keep 0") && one.contains("max_size 6, keep 0"), "{one}");
    let other = told(rotating(8, 4), rotating(8, 0));
    assert!(other.contains("max_size 8, keep 4") && other.contains("max_size 8, keep 0"), "{other}");
    let chunks = told(LayerCache::chunks(7), LayerCache::chunks(9));
    assert!(chunks.contains("chunk_size 7") && chunks.contains("chunk_size 9"), "{chunks}");
    let list = |count| LayerCache::List(vec![LayerCache::kv(), LayerCache::states(count)]);
    let lists = told(list(2), list(3));
    assert!(lists.contains("KVCache, ArraysCache of 2") && lists.contains("ArraysCache of 3"), "{lists}");
}

#[test]
fn old_texts_are_forgotten_beyond_a_limit() {
    let fixture = Fixture::load("llama");
    let mut prefixes = PrefixCache::new(0);
    let remembered = |tokens: &[i32]| {
        let mut cache = fixture.model.make_cache();
        fixture.model.forward(&ids(tokens), &mut cache).unwrap();
        Remembered::new(tokens.to_vec(), cache, Vec::new())
    };
    let one = remembered(&[1, 2, 3]);
    let bytes = one.nbytes();
    assert!(bytes > 0);
    prefixes.insert(one);
    assert!(prefixes.is_empty());
    let mut prefixes = PrefixCache::new(2 * bytes);
    for tokens in [&[1, 2, 3][..], &[4, 5, 6], &[4, 5, 6, 7]] {
        prefixes.insert(remembered(tokens));
    }
    assert_eq!(prefixes.len(), 2, "a text takes the place of its beginning");
    assert_eq!(prefixes.begin(&*fixture.model, &[1, 2, 9]).unwrap().1, 2);
    prefixes.insert(remembered(&[8]));
    assert_eq!(
        prefixes.begin(&*fixture.model, &[4, 5, 6]).unwrap().1,
        0,
        "the one not used for longest went"
    );
    assert_eq!(
        prefixes.begin(&*fixture.model, &[1, 2, 3]).unwrap().1,
        2,
        "the last token is read in any case"
    );
}

#[test]
fn quantized_keys_and_values_are_near_the_others_and_count_alike() {
    let model = bundled::model();
    let prompt: Vec<i32> = (0..40).map(|i| (i * 37 + 5) % 1000).collect();
    let run = |quantization: Option<(i32, usize)>, rest: &[i32]| {
        let how = |bits| Quantization { group_size: 32, bits, mode: QuantizationMode::Affine };
        let mut cache = model.make_cache();
        for (i, piece) in prompt.chunks(9).enumerate() {
            model.forward(&ids(piece), &mut cache).unwrap();
            if let Some((bits, _)) = quantization.filter(|(_, start)| *start <= i) {
                cache.quantize(how(bits)).unwrap();
            }
        }
        let nbytes = cache.nbytes();
        (decode(&*model, rest, &mut cache), nbytes)
    };
    let rest = [7, 300, 12];
    let (plain, bytes) = run(None, &rest);
    for start in [0, 2, 4] {
        let (found, fewer) = run(Some((8, start)), &rest);
        let worst = error(&found, &plain);
        assert!(worst < 0.05 && worst > 0.0, "from piece {start}: {worst:.1e}");
        assert!(fewer * 2 < bytes, "{fewer} bytes for {bytes}");
    }
    let coarse = error(&run(Some((2, 0)), &rest).0, &plain);
    assert!(coarse > 0.05, "{coarse:.1e}");

    // The decode loop quantizes from a length on, and the result can be trimmed.
    let how = Quantization { group_size: 32, bits: 8, mode: QuantizationMode::Affine };
    for (start, quantized) in [(0, true), (42, true), (60, false)] {
        let kv_quantization = Some(KvQuantization { how, start });
        let options = Options { max_tokens: 8, prefill_step: 16, kv_quantization, ..Options::default() };
        let mut cache = model.make_cache();
        assert_eq!(Tokens::new(&*model, &mut cache, &prompt, options).unwrap().count(), 8);
        let is = cache.layers().iter().all(|layer| matches!(layer, LayerCache::Quantized(_)));
        assert_eq!((is, cache.offset()), (quantized, 47), "from {start} on");
        cache.trim(40).unwrap();
        assert_eq!(cache.offset(), 7);
    }
    // Wrong groups are errors, not crashes.
    let mut cache = Fixture::load("llama").model.make_cache();
    assert!(cache.quantize(Quantization { bits: 7, ..how }).is_err());
    assert!(cache.quantize(Quantization { mode: QuantizationMode::Mxfp4, group_size: 32, bits: 4 }).is_err());
    cache.quantize(how).unwrap();
    let narrow = Fixture::load("llama");
    assert!(narrow.model.forward(&ids(&[1, 2]), &mut cache).unwrap_err().to_string().contains("8"));
}

/// What mlx-lm generates with `max_kv_size`, and which models it leaves alone (`tests/oracle/prompt_cache.py`).
#[test]
fn limited_caches_generate_what_mlx_lm_does_with_them() {
    let recorded: Value = serde_json::from_str(include_str!("../fixtures/prompt_cache/limits.json")).unwrap();
    let numbers = |of: &Value| serde_json::from_value::<Vec<i32>>(of.clone()).unwrap();
    let mut failed = Vec::new();
    for case in recorded["cases"].as_array().unwrap() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(case["model"].as_str().unwrap());
        let model = load_as(&dir, Dtype::Float32).unwrap();
        let limits = takes_limit(Config::load(&dir).unwrap().model_type().unwrap());
        let size = case["size"].as_i64().filter(|_| limits);
        let made = model.make_cache();
        let mut cache = size.map_or(Ok(made.clone()), |size| made.limited(size as i32)).unwrap();
        let prefill_step = case["step"].as_u64().unwrap() as usize;
        let options = Options { max_tokens: 32, prefill_step, ..Options::default() };
        let tokens = Tokens::new(&*model, &mut cache, &numbers(&case["prompt"]), options).unwrap();
        let found: Vec<i32> = tokens.map(|token| token.unwrap().id).collect();
        if found != numbers(&case["tokens"]) {
            failed.push(format!("{found:?}, not as in {case}"));
        }
    }
    for (list, limits) in [("own", false), ("plain", true)] {
        let names: Vec<&str> = recorded[list].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        for name in MODEL_TYPES.iter().filter(|name| names.contains(name)) {
            if takes_limit(name) != limits {
                failed.push(format!("{name}: {}", !limits));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn a_limited_cache_keeps_the_first_and_the_last_positions() {
    let fixture = Fixture::load("llama");
    let mut cache = fixture.model.make_cache().limited(9).unwrap();
    let tokens = prompt(4, 30);
    fixture.model.forward(&ids(&tokens[..20]), &mut cache).unwrap();
    let found = decode(&*fixture.model, &tokens[20..], &mut cache);
    assert!(found.iter().all(|x| x.is_finite()));
    let LayerCache::Rotating(ring) = &cache.layers()[0] else { panic!("{cache:?}") };
    assert_eq!(ring.offset(), 30);
    assert_eq!(cache.layers()[0].arrays()[0].shape()[2], 9);
    assert!(fixture.model.make_cache().limited(4).is_err() && cache.limited(20).is_err());
    let windowed = Cache::new([LayerCache::Rotating(RotatingKvCache::new(3, 0))]).limited(50).unwrap();
    windowed.check_of(&Cache::new([LayerCache::Rotating(RotatingKvCache::new(3, 0))])).unwrap();
}
