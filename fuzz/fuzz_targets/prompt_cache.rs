//! Any bytes as a prompt cache: `scripts/fuzz prompt_cache`.

#![no_main]

use std::collections::BTreeMap;
use std::io::Write;

use libfuzzer_sys::fuzz_target;
use mlxport::cache::Cache;

fuzz_target!(|data: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(data).expect("room for it");
    let Ok((mut cache, _)) = Cache::load(file.path()) else { return };
    let _ = (cache.describe(), cache.eval(), cache.row(0), cache.check_of(&cache));
    let again = tempfile::NamedTempFile::new().expect("a temporary file");
    if cache.save(again.path(), &BTreeMap::new()).is_ok() {
        let (loaded, _) = Cache::load(again.path()).expect("what was saved can be loaded");
        assert_eq!(loaded.layers().len(), cache.layers().len());
    }
    let _ = Cache::merge([&cache, &cache]).and_then(|merged| merged.eval());
    let _ = cache.trim(1);
});
