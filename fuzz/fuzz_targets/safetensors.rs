//! Any bytes as a safetensors file: `scripts/fuzz safetensors`.

#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use mlxport::io::SafeTensors;

fuzz_target!(|data: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(data).expect("room for it");
    let Ok(file) = SafeTensors::open(file.path()) else { return };
    for key in file.keys() {
        if let Ok(array) = file.array(key) {
            let bytes = array.to_host().expect("a tensor that was accepted can be read");
            assert_eq!(bytes.shape(), file.info(key).expect("it was accepted").shape);
        }
    }
});
