//! Files of a checkpoint, which are regular ones and not too long.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// Whether there is something of this name: also a link that leads nowhere, which is not to be overlooked.
pub(crate) fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Opens a file, and says how long it is. Fails for directories, and for pipes and devices before it waits
/// for them.
pub(crate) fn open(path: &Path) -> Result<(File, u64)> {
    let io = |e: std::io::Error| Error::io(path, e);
    let about = fs::metadata(path).map_err(|e| match is_there(path) {
        true => Error::io(path, format!("a link that leads nowhere ({e}): download the checkpoint again")),
        false => io(e),
    })?;
    if about.is_dir() {
        return Err(Error::io(path, "is a directory, not a file"));
    }
    if !about.is_file() {
        return Err(Error::io(path, "not a regular file"));
    }
    let file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    Ok((file, length))
}

/// The bytes of a file, which has `most` of them at most.
pub(crate) fn whole(path: &Path, most: u64) -> Result<Vec<u8>> {
    let (file, length) = open(path)?;
    let too_long = || Error::invalid(path, format!("longer than {most} bytes: not what its name says"));
    if length > most {
        return Err(too_long());
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.take(most + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > most { Err(too_long()) } else { Ok(bytes) }
}

/// The text of a file of at most so many bytes.
pub(crate) fn text(path: &Path, most: u64) -> Result<String> {
    String::from_utf8(whole(path, most)?).map_err(|e| Error::invalid(path, e))
}
