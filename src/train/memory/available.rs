//! How much memory this process may still take: what the machine has left, and the limits that it runs under.
//!
//! Linux's own files are read: `/proc/meminfo`, the control groups of both versions, the limits of the process. Elsewhere
//! nothing is known, and nothing is refused.

use std::fs;
use std::path::{Path, PathBuf};

/// Memory that may still be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Available {
    /// In bytes.
    pub bytes: u64,
    /// What sets the bound, in words.
    pub limit: String,
}

/// The tightest bound on this process, if any is known.
pub fn available() -> Option<Available> {
    available_under(Path::new("/"))
}

/// [`available`] of a system whose files are under `root`.
fn available_under(root: &Path) -> Option<Available> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let machine = kib_after(&read("proc/meminfo"), "MemAvailable:")
        .map(|bytes| Available { bytes, limit: "what the machine has left".into() });
    let status = read("proc/self/status");
    let process = address_space(&read("proc/self/limits")).zip(kib_after(&status, "VmSize:"));
    let process = process.map(|(limit, taken)| Available {
        bytes: limit.saturating_sub(taken),
        limit: "the limit on the address space, ulimit -v".into(),
    });
    let groups = groups(root, &read("proc/self/cgroup"));
    machine.into_iter().chain(process).chain(groups).min_by_key(|available| available.bytes)
}

/// The number of KiB after `name` in a file of lines like `VmSize:  123 kB`, in bytes.
fn kib_after(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The soft limit in `/proc/self/limits`, in bytes, if there is one.
fn address_space(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The bounds of every memory control group that the process is in.
fn groups(root: &Path, memberships: &str) -> Vec<Available> {
    let mut found = Vec::new();
    for line in memberships.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (mount, files) = if controllers.is_empty() {
            ("sys/fs/cgroup", ["memory.max", "memory.current", "inactive_file "])
        } else if controllers.split(',').any(|name| name == "memory") {
            let files = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "];
            ("sys/fs/cgroup/memory", files)
        } else {
            continue;
        };
        let mount = root.join(mount);
        // A limit of a group binds all groups in it. In a container the path may be the host's, of which only the
        // top is visible here.
        let inside: PathBuf = mount.join(path.trim_start_matches('/'));
        for folder in inside.ancestors().take_while(|folder| folder.starts_with(&mount)) {
            found.extend(group(folder, files));
        }
    }
    found
}

/// What `folder`'s limit leaves; files that can be dropped from memory at any time do not count as taken.
fn group(folder: &Path, [limit, usage, cache]: [&str; 3]) -> Option<Available> {
    let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let most = number(limit)?;
    let statistics = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let cached = statistics.lines().find_map(|line| line.strip_prefix(cache)?.trim().parse::<u64>().ok());
    let taken = number(usage)?.saturating_sub(cached.unwrap_or(0));
    Some(Available {
        bytes: most.saturating_sub(taken),
        limit: format!("the limit of the control group, {}", folder.join(limit).display()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system with these files.
    fn system(files: &[(&str, &str)]) -> Option<Available> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        available_under(root.path())
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:  8000 kB\nMemFree:  10 kB\nMemAvailable:   4000 kB\n");

    #[test]
    fn the_machine_alone() {
        let found = system(&[MEMINFO]).unwrap();
        assert_eq!((found.bytes, found.limit.as_str()), (4000 << 10, "what the machine has left"));
        assert_eq!(system(&[]), None);
        assert_eq!(system(&[("proc/meminfo", "MemAvailable: lots\n")]), None);
    }

    #[test]
    fn the_address_space() {
        let limits = |soft: &str| {
            format!("Limit   Soft Limit  Hard Limit  Units\nMax address space   {soft}   unlimited  bytes\n")
        };
        let status = ("proc/self/status", "Name: x\nVmSize:\t    1000 kB\n");
        let found = system(&[MEMINFO, status, ("proc/self/limits", &limits("2048000"))]).unwrap();
        assert!(found.bytes == 1000 << 10 && found.limit.contains("ulimit"), "{found:?}");
        let found = system(&[MEMINFO, status, ("proc/self/limits", &limits("unlimited"))]).unwrap();
        assert_eq!(found.bytes, 4000 << 10);
        assert_eq!(system(&[status, ("proc/self/limits", &limits("5"))]).unwrap().bytes, 0);
    }

    #[test]
    fn control_groups_of_the_second_version() {
        let found = system(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/user/job\n"),
            ("sys/fs/cgroup/user/job/memory.max", "max\n"),
            ("sys/fs/cgroup/user/job/memory.current", "5\n"),
            ("sys/fs/cgroup/user/memory.max", "1000000\n"),
            ("sys/fs/cgroup/user/memory.current", "700000\n"),
            ("sys/fs/cgroup/user/memory.stat", "anon 5\ninactive_file 200000\n"),
        ])
        .unwrap();
        assert!(found.bytes == 500_000 && found.limit.contains("user/memory.max"), "{found:?}");
    }

    #[test]
    fn control_groups_of_the_first_version_whose_path_is_the_hosts() {
        let found = system(&[
            MEMINFO,
            ("proc/self/cgroup", "7:cpu,cpuacct:/docker/abc\n5:memory:/docker/abc\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1500000\n"),
            ("sys/fs/cgroup/memory/memory.stat", "cache 9\ntotal_inactive_file 100000\n"),
        ])
        .unwrap();
        assert!(found.bytes == 600_000, "{found:?}");
    }

    /// On Linux something is always known.
    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine() {
        assert!(available().is_some_and(|found| found.bytes > 0));
    }
}
