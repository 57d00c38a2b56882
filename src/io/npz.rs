//! NumPy's `.npz`: a zip archive of `.npy` files.

use std::collections::BTreeMap;
use std::io::{BufReader, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

use super::atomic::write_whole;
use super::{npy, read};
use crate::array::HostTensor;
use crate::error::{Error, Result};

/// Deflate makes at most so many bytes of one.
const MOST_INFLATED: u64 = 1032;

/// Reads every array of a `.npz` file, stored or compressed; members that are not `.npy` are left out.
/// As [`load_npy`](super::load_npy) for each.
pub fn load_npz(path: impl AsRef<Path>) -> Result<BTreeMap<String, HostTensor>> {
    let path = path.as_ref();
    let (file, _) = read::open(path)?;
    let invalid = |e: zip::result::ZipError| Error::invalid(path, e);
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(invalid)?;
    let mut tensors = BTreeMap::new();
    for at in 0..archive.len() {
        let mut member = archive.by_index(at).map_err(invalid)?;
        let name = member.name().map_err(invalid)?.into_owned();
        let Some(name) = name.strip_suffix(".npy").map(str::to_owned) else { continue };
        let at_most = member.compressed_size().saturating_mul(MOST_INFLATED).min(member.size());
        let tensor = npy::read(&mut member, at_most).map_err(|e| e.at(path, &name))?;
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(Error::invalid(path, format!("`{name}` occurs twice")));
        }
    }
    Ok(tensors)
}

/// Writes arrays as a `.npz` file, whole or not at all, compressed if `compress` says so. The same
/// arrays give the same bytes. As [`save_npy`](super::save_npy) for each.
pub fn save_npz(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, HostTensor>,
    compress: bool,
) -> Result<()> {
    let path = path.as_ref();
    let method = if compress { CompressionMethod::Deflated } else { CompressionMethod::Stored };
    let fail = |e: std::io::Error| Error::io(path, e);
    write_whole(path, |out| {
        let mut archive = ZipWriter::new(out);
        for (name, tensor) in tensors {
            let header = npy::header(tensor).map_err(|e| e.at(path, name))?;
            let options = SimpleFileOptions::default()
                .compression_method(method)
                .last_modified_time(DateTime::default())
                .large_file(tensor.bytes().len() > u32::MAX as usize / 2);
            archive.start_file(format!("{name}.npy"), options).map_err(|e| Error::io(path, e))?;
            archive.write_all(&header).and_then(|()| archive.write_all(tensor.bytes())).map_err(fail)?;
        }
        archive.finish().map_err(|e| Error::io(path, e))?;
        Ok(())
    })
}
