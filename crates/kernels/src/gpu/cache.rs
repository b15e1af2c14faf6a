//! Compiled kernels kept in a file from one run to the next, where the interface has a cache (Vulkan).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A file that is larger holds kernels that nobody compiles any more, and is begun anew.
const MOST: usize = 64 << 20;

/// What is kept of a device's compiled kernels. That there is none, or that it cannot be written, slows the next start and does
/// nothing else.
#[derive(Clone)]
pub(crate) struct KernelCache {
    pub cache: wgpu::PipelineCache,
    file: Arc<PathBuf>,
    /// The checksum of what the file holds.
    kept: Arc<Mutex<u64>>,
}

impl KernelCache {
    /// The cache of this device in a folder; `None` where the interface has none.
    pub fn open(device: &wgpu::Device, info: &wgpu::AdapterInfo, folder: &Path) -> Option<KernelCache> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let file = folder.join(wgpu::util::pipeline_cache_key(info)?);
        let data = fs::read(&file).ok().and_then(unsealed).filter(|data| data.len() <= MOST);
        let kept = data.as_deref().map_or(0, checksum);
        let wanted =
            wgpu::PipelineCacheDescriptor { label: Some("exotherm"), data: data.as_deref(), fallback: true };
        // SAFETY: the data is as it was written, and was written of such a cache by this device's driver, which the name and
        // the data's own head tell.
        let cache = unsafe { device.create_pipeline_cache(&wanted) };
        Some(KernelCache { cache, file: Arc::new(file), kept: Arc::new(Mutex::new(kept)) })
    }

    /// Writes the file anew if there is more to keep than it holds.
    pub fn keep(&self) {
        let Some(data) = self.cache.get_data() else { return };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let now = checksum(&data);
        if now != *kept && write(&self.file, sealed(data)).is_ok() {
            *kept = now;
        }
    }
}

/// Written beside and moved, so that nobody finds half a file.
fn write(file: &Path, bytes: Vec<u8>) -> std::io::Result<()> {
    let folder = file.parent().ok_or(std::io::ErrorKind::NotFound)?;
    let beside = file.with_extension(std::process::id().to_string());
    fs::create_dir_all(folder)?;
    fs::write(&beside, bytes)?;
    fs::rename(&beside, file)
}

/// FNV-1a: what was cut off or overwritten is noticed.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn sealed(mut data: Vec<u8>) -> Vec<u8> {
    let seal = checksum(&data).to_le_bytes();
    data.extend(seal);
    data
}

/// What was sealed, if it is still the same.
fn unsealed(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let seal = bytes.split_off(bytes.len().checked_sub(8)?);
    (checksum(&bytes).to_le_bytes() == seal[..]).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_is_not_taken() {
        for data in [vec![], vec![7], (0..1000u32).map(|i| (i * 7) as u8).collect()] {
            let file = sealed(data.clone());
            assert_eq!(unsealed(file.clone()), Some(data));
            for i in 0..file.len() {
                let mut other = file.clone();
                other[i] ^= 4;
                assert_eq!(unsealed(other), None);
                assert_eq!(unsealed(file[..i].to_vec()), None);
            }
        }
    }
}
