//! Files that appear whole or not at all.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// A file that was written beside its place and is not there yet. Dropped, it leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Pending {
    file: NamedTempFile,
    path: PathBuf,
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
        let file = builder.tempfile_in(folder(path)).map_err(fail)?;
        let mut writer = BufWriter::with_capacity(1 << 20, file.as_file());
        content(&mut writer)?;
        writer.flush().map_err(fail)?;
        drop(writer);
        file.as_file().sync_all().map_err(fail)?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    /// Puts the file in its place, where it replaces what was there.
    pub(crate) fn place(self) -> Result<()> {
        let Self { file, path } = self;
        file.persist(&path).map_err(|e| Error::io(&path, e.error))?;
        sync_folder(&path)
    }
}

/// Writes `path` whole or not at all.
pub(crate) fn write_whole(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<&File>) -> Result<()>,
) -> Result<()> {
    Pending::write(path, content)?.place()
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
