//! Resident memory of this process.

/// Bytes of physical memory that the process has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResidentBytes {
    pub current: u64,
    /// The most it ever had.
    pub peak: u64,
}

/// What the system says of this process; `None` where it cannot be read so (anything but Linux).
pub fn resident_bytes() -> Option<ResidentBytes> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    parse_status(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// Lines such as `VmRSS:\t    1234 kB`.
fn parse_status(status: &str) -> Option<ResidentBytes> {
    let field = |name: &str| -> Option<u64> {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(ResidentBytes { current: field("VmRSS")?, peak: field("VmHWM")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_found() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t     100 kB\nRssAnon:\t 7 kB\n";
        assert_eq!(parse_status(status), Some(ResidentBytes { current: 102_400, peak: 2_097_152 }));
        assert_eq!(parse_status("VmRSS:\t100 kB\n"), None);
        assert_eq!(parse_status("VmRSS:\t100 MB\nVmHWM:\t100 kB\n"), None);
        assert_eq!(parse_status("VmRSS:\t99999999999999999999 kB\nVmHWM:\t1 kB\n"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_that_is_touched_is_seen() {
        let before = resident_bytes().expect("Linux tells");
        let touched = std::hint::black_box(vec![1u8; 64 << 20]);
        let during = resident_bytes().expect("Linux tells");
        assert!(during.current >= before.current + (48 << 20), "{before:?} {during:?}");
        assert!(during.peak >= during.current);
        drop(touched);
    }
}
