//! Files and folders that appear whole or not at all.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use tempfile::{NamedTempFile, TempDir};

use crate::error::{Error, Result};

/// What is being written and is not in its place.
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// An entry of [`UNFINISHED`], until it is dropped.
#[derive(Debug)]
struct Listed(PathBuf);

impl Listed {
    /// Makes a temporary file or folder; at no time is it there and not listed.
    fn make<T: AsRef<Path>>(make: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<(T, Self)> {
        let mut unfinished = UNFINISHED.lock();
        let made = make()?;
        let path = made.as_ref().to_path_buf();
        unfinished.insert(path.clone());
        Ok((made, Self(path)))
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        UNFINISHED.lock().remove(&self.0);
    }
}

/// Removes what is not finished, for a process that is about to end: none can be begun any more.
#[cfg(feature = "cli")]
pub(crate) fn discard_unfinished() {
    let unfinished = UNFINISHED.lock();
    for path in unfinished.iter() {
        // A file may come into a folder while it is emptied.
        let removed = || fs::remove_dir_all(path).is_ok();
        let _ = if path.is_dir() { (0..3).any(|_| removed()) } else { fs::remove_file(path).is_ok() };
    }
    std::mem::forget(unfinished);
}

/// A file that was written beside its place and is not there yet. Dropped, it leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Pending {
    file: NamedTempFile,
    path: PathBuf,
    listed: Listed,
}

impl Pending {
    /// Writes what will be `path`, down to the disk.
    pub(crate) fn write(
        path: &Path,
        content: impl FnOnce(&mut BufWriter<&File>) -> Result<()>,
    ) -> Result<Self> {
        let fail = |e: std::io::Error| Error::io(path, e);
        if !folder(path).is_dir() {
            return Err(Error::io(path, format!("there is no folder {}", folder(path).display())));
        }
        let name = path.file_name().ok_or_else(|| Error::io(path, "not a file name"))?;
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".tmp");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let (file, listed) = Listed::make(|| builder.tempfile_in(folder(path))).map_err(fail)?;
        let mut writer = BufWriter::with_capacity(1 << 20, file.as_file());
        content(&mut writer)?;
        writer.flush().map_err(fail)?;
        drop(writer);
        file.as_file().sync_all().map_err(fail)?;
        Ok(Self { file, path: path.to_path_buf(), listed })
    }

    /// Puts the file in its place, where it replaces what was there.
    pub(crate) fn place(self) -> Result<()> {
        let Self { file, path, listed: _listed } = self;
        file.persist(&path).map_err(|e| Error::io(&path, e.error))?;
        sync_folder(&path)
    }
}

/// A folder in the making, beside its place. Dropped, it leaves nothing behind.
#[derive(Debug)]
pub(crate) struct PendingFolder {
    temporary: TempDir,
    path: PathBuf,
    listed: Listed,
}

impl PendingFolder {
    /// An empty folder that will be `path`.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let parent = folder(path);
        if !parent.is_dir() {
            return Err(Error::io(path, format!("there is no folder {}", parent.display())));
        }
        let make = || tempfile::Builder::new().prefix(".model-").tempdir_in(parent);
        let (temporary, listed) = Listed::make(make).map_err(|e| Error::io(parent, e))?;
        Ok(Self { temporary, path: path.to_path_buf(), listed })
    }

    /// Where it is now.
    pub(crate) fn temporary(&self) -> &Path {
        self.temporary.path()
    }

    /// Puts the folder in its place, with the permissions that folders have there.
    pub(crate) fn place(self) -> Result<()> {
        let Self { temporary, path, listed: _listed } = self;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // A temporary folder is the owner's alone.
            let usual = fs::metadata(folder(&path)).map_or(0o755, |meta| meta.permissions().mode() & 0o777);
            let usual = fs::Permissions::from_mode(usual | 0o700);
            fs::set_permissions(temporary.path(), usual).map_err(|e| Error::io(temporary.path(), e))?;
        }
        fs::rename(temporary.path(), &path).map_err(|e| Error::io(&path, e))?;
        // It is not there any more.
        let _ = temporary.keep();
        Ok(())
    }
}

/// Writes `path` whole or not at all.
pub(crate) fn write_whole(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<&File>) -> Result<()>,
) -> Result<()> {
    Pending::write(path, content)?.place()
}

/// Writes `path` whole or not at all.
#[cfg(feature = "text")]
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole(path, |file| file.write_all(bytes).map_err(|e| Error::io(path, e)))
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a rename in the folder of `path` last through a loss of power.
fn sync_folder(path: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(folder(path)).and_then(|folder| folder.sync_all()).map_err(|e| Error::io(path, e))?;
    Ok(())
}
