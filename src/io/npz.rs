//! NumPy's `.npz`: a zip archive of `.npy` files.

use std::collections::BTreeMap;
use std::io::{BufReader, Seek, SeekFrom, Write};
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
        let mut failure = None;
        let mut archive = ZipWriter::new(Kept { inner: out, failure: &mut failure });
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
        failure.map_or(Ok(()), |e| Err(fail(e)))
    })
}

/// A writer that keeps its first failure and is silent from then on: an archive that cannot be finished
/// complains on standard error.
struct Kept<'a, W> {
    inner: W,
    failure: &'a mut Option<std::io::Error>,
}

impl<W> Kept<'_, W> {
    fn keep<T>(&mut self, f: impl FnOnce(&mut W) -> std::io::Result<T>, usual: T) -> std::io::Result<T> {
        if self.failure.is_some() {
            return Ok(usual);
        }
        Ok(f(&mut self.inner).unwrap_or_else(|e| {
            *self.failure = Some(e);
            usual
        }))
    }
}

impl<W: Write> Write for Kept<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.keep(|inner| inner.write(bytes), bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.keep(|inner| inner.flush(), ())
    }
}

impl<W: Seek> Seek for Kept<'_, W> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.keep(|inner| inner.seek(to), 0)
    }
}
