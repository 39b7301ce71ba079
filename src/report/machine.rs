//! The machine a run was made on: without it no figure about its speed means anything.

use serde::{Deserialize, Serialize};

/// What `manifest.json` remembers of a machine. What the system does not say is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// The optimiser step from which on the run was made here.
    pub from_step: u64,
    /// The processor's name.
    pub cpu: String,
    /// Vector instructions that matter here.
    pub instructions: Vec<String>,
    /// Processors that this process may use.
    pub cores: usize,
    /// Memory of the machine, in bytes.
    pub memory_bytes: Option<u64>,
    /// System and kernel.
    pub os: String,
    /// Where the network ran: `cpu`, `cuda:0`, ...
    pub device: String,
    /// Numbers of the convolutions.
    pub precision: String,
    /// Threads of network and losses.
    pub threads: usize,
    /// Decoding threads.
    pub workers: usize,
    /// Version of libtorch.
    pub libtorch: String,
    /// Version of this program.
    pub lemniscate: String,
}

impl Machine {
    /// This machine, as far as it says; what a run makes of it is the caller's to fill in.
    pub fn here() -> Self {
        Machine {
            cpu: cpu_name(),
            instructions: instructions(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_bytes(),
            os: os_name(),
            libtorch: env!("LIBTORCH_VERSION").to_owned(),
            lemniscate: env!("CARGO_PKG_VERSION").to_owned(),
            ..Machine::default()
        }
    }

    /// Whether a run goes on as it was: the same in everything but the step.
    pub fn same_as(&self, other: &Machine) -> bool {
        Machine { from_step: 0, ..self.clone() } == Machine { from_step: 0, ..other.clone() }
    }

    /// `AMD EPYC 7B13, 2 cores, 24.0 GiB, Debian GNU/Linux 12 (Linux 6.1.0); cpu, fp32, 2 threads, 1 worker; libtorch 2.11.0, lemniscate 0.1.0`.
    pub fn describe(&self) -> String {
        let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let memory = self.memory_bytes.map(|bytes| format!(", {}", gibibytes(bytes))).unwrap_or_default();
        format!(
            "{}, {}{memory}, {}; {}, {}, {}, {}; libtorch {}, lemniscate {}",
            self.cpu,
            count(self.cores, "core"),
            self.os,
            self.device,
            self.precision,
            count(self.threads, "thread"),
            count(self.workers, "worker"),
            self.libtorch,
            self.lemniscate
        )
    }
}

/// Ticks a second in `/proc`, on every processor that libtorch runs on.
const TICKS_PER_S: f64 = 100.0;

/// Seconds since this process was started, to two hundredths: also what loading libraries took, and what a shell did before
/// its `exec`. `None` where the system does not say.
pub fn process_age() -> Option<f64> {
    age(&read("/proc/self/stat"), &read("/proc/uptime"))
}

fn age(stat: &str, uptime: &str) -> Option<f64> {
    // The second field is a name in parentheses, which may hold anything; the 22nd is the start, in ticks since the system's.
    let (_, after_name) = stat.rsplit_once(')')?;
    let started: f64 = after_name.split_whitespace().nth(19)?.parse().ok()?;
    let up: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    // Some containers count their own time since start, beside which the process's means nothing.
    let hundredths = (100.0 * (up - started / TICKS_PER_S)).round();
    (hundredths >= 0.0).then_some(hundredths / 100.0)
}

/// `23.5 GiB`.
pub fn gibibytes(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The value of the first `KEY<separator>value` line.
fn value(text: &str, key: &str, separator: char) -> Option<String> {
    let mut lines = text.lines().filter_map(|line| line.split_once(separator));
    let (_, value) = lines.find(|(name, _)| name.trim() == key)?;
    Some(value.trim().trim_matches('"').to_owned()).filter(|value| !value.is_empty())
}

/// One number or name that macOS tells.
fn sysctl(name: &str) -> Option<String> {
    if !cfg!(target_os = "macos") {
        return None;
    }
    let output = std::process::Command::new("sysctl").args(["-n", name]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn cpu_name() -> String {
    let listed = read("/proc/cpuinfo");
    // ARM systems under Linux have no model name; some have the board's.
    value(&listed, "model name", ':')
        .or_else(|| value(&listed, "Model", ':'))
        .or_else(|| sysctl("machdep.cpu.brand_string"))
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn memory_bytes() -> Option<u64> {
    let kibibytes = value(&read("/proc/meminfo"), "MemTotal", ':');
    let kibibytes = kibibytes.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.map(|n| n * 1024).or_else(|| sysctl("hw.memsize")?.parse().ok())
}

fn os_name() -> String {
    let distribution = value(&read("/etc/os-release"), "PRETTY_NAME", '=');
    let kernel = read("/proc/sys/kernel/osrelease");
    match (distribution, kernel.trim()) {
        (Some(name), "") => name,
        (Some(name), kernel) => format!("{name} (Linux {kernel})"),
        (None, "") => match sysctl("kern.osproductversion") {
            Some(version) => format!("macOS {version}"),
            None => std::env::consts::OS.to_owned(),
        },
        (None, kernel) => format!("Linux {kernel}"),
    }
}

#[cfg(target_arch = "x86_64")]
fn instructions() -> Vec<String> {
    let has = [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
    ];
    has.into_iter().filter(|(_, has)| *has).map(|(name, _)| name.to_owned()).collect()
}

#[cfg(target_arch = "aarch64")]
fn instructions() -> Vec<String> {
    let has = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
    ];
    has.into_iter().filter(|(_, has)| *has).map(|(name, _)| name.to_owned()).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn instructions() -> Vec<String> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_in_the_systems_files() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz\nmodel name\t: other\nempty :\n";
        assert_eq!(value(text, "model name", ':').as_deref(), Some("Some CPU @ 2.0GHz"));
        assert_eq!((value(text, "empty", ':'), value(text, "model", ':')), (None, None));
        let os = value("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n", "PRETTY_NAME", '=');
        assert_eq!(os.as_deref(), Some("Debian GNU/Linux 12"));
    }

    #[test]
    fn a_process_has_an_age() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 98 0 0 0 0 0 0 0 20 0 1 0 12345 2650112 213\n";
        assert_eq!(age(stat, "130.50 250.00\n"), Some(7.05));
        for (stat, uptime) in
            [(stat, "3.00 9.00\n"), (stat, ""), ("", "130.50 1.0"), ("7 (a) S 1", "130.50 1.0")]
        {
            assert_eq!(age(stat, uptime), None);
        }
        assert_eq!(process_age().is_some(), cfg!(target_os = "linux"));
    }

    #[test]
    fn this_machine_says_something_and_reads_back() {
        let here = Machine { device: "cpu".into(), threads: 1, from_step: 7, ..Machine::here() };
        assert!(!here.cpu.is_empty() && !here.os.is_empty() && here.cores > 0);
        assert!(here.libtorch.split('.').count() == 3, "{}", here.libtorch);
        let again: Machine = serde_json::from_str(&serde_json::to_string(&here).unwrap()).unwrap();
        assert_eq!(again, here);
        assert!(again.same_as(&Machine { from_step: 9, ..here.clone() }));
        assert!(!again.same_as(&Machine { threads: 2, ..here.clone() }));
        assert!(here.describe().contains("1 thread, 0 workers; libtorch 2."), "{}", here.describe());
        // A file of another version lacks some, and has others.
        let partial: Machine = serde_json::from_str(r#"{"cpu":"x","watts":3}"#).unwrap();
        assert_eq!(partial.cpu, "x");
    }
}
