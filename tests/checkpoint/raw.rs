//! Safetensors files made by hand, from the format's description.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A temporary directory, removed at the end of the test.
pub fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// The bytes of a file with this header and data.
pub fn bytes(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
    out
}

/// Writes a file with this header and data.
pub fn write(dir: &Path, name: &str, header: &str, data: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes(header, data)).unwrap();
    path
}

/// Writes a file of `float32` tensors, `(name, shape, values)`, with the header padded to 8 bytes.
pub fn write_f32(dir: &Path, name: &str, tensors: &[(&str, &[i32], &[f32])]) -> PathBuf {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (key, shape, values) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        entries.push(format!(
            r#""{key}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{}]}}"#,
            data.len()
        ));
    }
    let header = format!("{{{}}}", entries.join(","));
    write(dir, name, &format!("{header:w$}", w = header.len().next_multiple_of(8)), &data)
}
