//! What the process uses, by the names that Prometheus' own clients have for it: processor time, memory, descriptors, threads.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{Counter, Gauge};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::maker::Maker;

/// The numbers of this process, which [`Process::look`] reads from the kernel. What the kernel does not give away is NaN,
/// which no comparison of an alert takes for a small number.
#[derive(Debug)]
pub struct Process {
    cpu_seconds: Counter,
    open_fds: Gauge,
    max_fds: Gauge,
    virtual_bytes: Gauge,
    resident_bytes: Gauge,
    threads: Gauge,
}

impl Process {
    pub(super) fn register(make: &Maker) -> Self {
        let gauge = |name, help| make.add(Gauge::new(name, help));
        let began = SystemTime::now().duration_since(UNIX_EPOCH).map_or(f64::NAN, |since| since.as_secs_f64());
        gauge("process_start_time_seconds", "When the process was started, in seconds since 1970.").set(began);
        Self {
            cpu_seconds: make.add(Counter::new("process_cpu_seconds_total", "Processor time, the kernel's included.")),
            open_fds: gauge("process_open_fds", "Open file descriptors."),
            max_fds: gauge("process_max_fds", "The limit of open file descriptors."),
            virtual_bytes: gauge("process_virtual_memory_bytes", "Size of the address space."),
            resident_bytes: gauge("process_resident_memory_bytes", "Memory that is resident."),
            threads: gauge("process_threads", "Threads of the process."),
        }
    }

    /// Reads the numbers of this moment.
    pub(crate) fn look(&self) {
        let used = clock_gettime(ClockId::ProcessCPUTime);
        let seconds = used.tv_sec as f64 + used.tv_nsec as f64 / 1e9;
        self.cpu_seconds.inc_by((seconds - self.cpu_seconds.get()).max(0.0));
        // One of them is open for this very look.
        let open = fs::read_dir("/proc/self/fd").map_or(f64::NAN, |entries| entries.count() as f64 - 1.0);
        self.open_fds.set(open);
        self.max_fds.set(getrlimit(Resource::Nofile).current.map_or(f64::INFINITY, |limit| limit as f64));
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        self.virtual_bytes.set(number(&status, "VmSize:") * 1024.0);
        self.resident_bytes.set(number(&status, "VmRSS:") * 1024.0);
        self.threads.set(number(&status, "Threads:"));
    }
}

/// The number behind this word at the beginning of a line of `/proc/PID/status` (proc_pid_status(5)); NaN where there is none.
fn number(status: &str, word: &str) -> f64 {
    let line = status.lines().find_map(|line| line.strip_prefix(word));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|digits| digits.parse().ok()).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_status_is_found_by_its_word() {
        let status = "Name:\tx\nVmPeak:\t  9 kB\nVmSize:\t  236248 kB\nThreads:\t7\n";
        assert_eq!((number(status, "VmSize:"), number(status, "Threads:")), (236_248.0, 7.0));
        assert!(number(status, "VmRSS:").is_nan());
    }
}
