//! The machine as far as it matters here. What a system does not tell is `None`.

use std::collections::BTreeSet;
use std::fs;

/// Cores this process may use, counting a core with two hardware threads once: the second thread of a core has no
/// arithmetic units of its own, and a barrier waits for the slowest.
pub fn physical_cores() -> usize {
    let logical = logical_cores();
    let Some(allowed) = allowed_cpus() else { return logical };
    let core = |cpu: &usize| {
        let read = |what: &str| {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/{what}");
            fs::read_to_string(path).ok()?.trim().parse::<i64>().ok()
        };
        Some((read("physical_package_id")?, read("core_id")?))
    };
    let cores: Option<BTreeSet<_>> = allowed.iter().map(core).collect();
    cores.map_or(logical, |cores| cores.len().clamp(1, logical))
}

/// Hardware threads that this process may use, by its affinity and its share of a container.
pub fn logical_cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

fn allowed_cpus() -> Option<Vec<usize>> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    parse_cpu_list(list.trim())
}

/// Lists such as `0-3,8,10-11`.
fn parse_cpu_list(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        // More than any machine has: a list that cannot be true is not used.
        if last < first || last - first > 1 << 16 {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

pub fn cpu_name() -> Option<String> {
    cpuinfo(&fs::read_to_string("/proc/cpuinfo").ok()?, "model name")
}

/// The value of a field, of the first processor.
fn cpuinfo(info: &str, field: &str) -> Option<String> {
    let mut fields = info.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(name, _)| name.trim() == field).map(|(_, value)| value.trim().to_string())
}

/// What tells processors of one name apart: numbers of the design, and the sizes of the caches.
pub fn cpu_design() -> String {
    const FIELDS: [&str; 7] =
        ["cpu family", "model", "stepping", "CPU implementer", "CPU variant", "CPU part", "CPU revision"];
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let numbers = FIELDS.iter().filter_map(|field| Some(format!("{field} {}", cpuinfo(&info, field)?)));
    let mut caches = cache_sizes();
    caches.sort_unstable();
    let caches = caches.iter().map(|bytes| format!("cache {bytes}"));
    numbers.chain(caches).collect::<Vec<_>>().join(", ")
}

/// Threads that waited for a core or ran on one over the last minute, on average.
pub fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// Total and available bytes.
pub fn memory() -> Option<(u64, u64)> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some((field("MemTotal")?, field("MemAvailable")?))
}

/// Bytes that this process may still take: what the machine has available, and no more than its container is given.
pub fn free_memory() -> Option<u64> {
    const LIMITS: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    // A container without a limit says `max`, or a number beyond all machines.
    let limit = LIMITS.iter().find_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
    let available = memory().map(|(_, available)| available);
    [available, limit].into_iter().flatten().min()
}

/// Bytes of the largest cache of the first processor.
pub fn largest_cache() -> Option<u64> {
    cache_sizes().into_iter().max()
}

/// Bytes of each cache of the first processor.
fn cache_sizes() -> Vec<u64> {
    let folders = fs::read_dir("/sys/devices/system/cpu/cpu0/cache");
    let size =
        |folder: fs::DirEntry| parse_cache_size(fs::read_to_string(folder.path().join("size")).ok()?.trim());
    folders.map_or_else(|_| Vec::new(), |folders| folders.flatten().filter_map(size).collect())
}

/// Sizes such as `32K`.
fn parse_cache_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// Vector instructions that the processor has and that kernels care about.
pub fn instruction_sets() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let all = [
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("fma", std::arch::is_x86_feature_detected!("fma")),
            ("f16c", std::arch::is_x86_feature_detected!("f16c")),
            ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
            ("avx512bw", std::arch::is_x86_feature_detected!("avx512bw")),
            ("avx512vl", std::arch::is_x86_feature_detected!("avx512vl")),
            ("avx512vnni", std::arch::is_x86_feature_detected!("avx512vnni")),
            ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
        ];
        all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
    }
    #[cfg(target_arch = "aarch64")]
    {
        let all = [
            ("neon", std::arch::is_aarch64_feature_detected!("neon")),
            ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
            ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
            ("sve", std::arch::is_aarch64_feature_detected!("sve")),
        ];
        all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(parse_cpu_list("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_cpu_list("7"), Some(vec![7]));
        assert_eq!(parse_cpu_list("3-1"), None);
        assert_eq!(parse_cpu_list(""), None);
        assert_eq!(parse_cpu_list("0-99999999"), None);
    }

    #[test]
    fn sizes_of_caches_are_read() {
        assert_eq!(parse_cache_size("32K"), Some(32 << 10));
        assert_eq!(parse_cache_size("2M"), Some(2 << 20));
        assert_eq!(parse_cache_size("512"), Some(512));
        assert_eq!(parse_cache_size("K"), None);
        assert_eq!(parse_cache_size("9x"), None);
        assert_eq!(parse_cache_size("99999999999999999999K"), None);
    }

    #[test]
    fn fields_of_processors_are_read() {
        let info = "processor\t: 0\nmodel\t\t: 207\nmodel name\t: A: B\n\nmodel\t\t: 208\n";
        assert_eq!(cpuinfo(info, "model").as_deref(), Some("207"));
        assert_eq!(cpuinfo(info, "model name").as_deref(), Some("A: B"));
        assert_eq!(cpuinfo(info, "stepping"), None);
        assert_eq!(cpu_design(), cpu_design());
    }

    #[test]
    fn there_is_a_core() {
        assert!((1..=logical_cores()).contains(&physical_cores()));
    }
}
