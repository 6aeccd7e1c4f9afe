//! Processes that are stopped for a while.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use super::wait::retry;

/// SIGSTOP, and returns once no thread goes on: the kernel stops them all when one of them takes the signal, which can be late
/// on a busy machine.
#[track_caller]
pub fn pause(process: Pid) {
    kill_process(process, Signal::STOP).expect("the process takes a signal");
    wait_until_paused(process);
}

/// SIGCONT.
#[track_caller]
pub fn resume(process: Pid) {
    kill_process(process, Signal::CONT).expect("the process takes a signal");
}

/// Waits until a process that was sent SIGSTOP has no thread that runs or can be woken. One that waits in the kernel for a
/// device stops before it returns.
#[track_caller]
pub fn wait_until_paused(process: Pid) {
    retry("the stop of all threads of a process", || {
        let states = thread_states(process);
        if states.contains(['R', 'S']) { Err(format!("their states are {states}")) } else { Ok(()) }
    });
}

/// A letter for each thread (proc_pid_stat(5)).
fn thread_states(process: Pid) -> String {
    let threads = fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())).expect("a process");
    let stats = threads.filter_map(|thread| fs::read_to_string(thread.expect("a thread").path().join("stat")).ok());
    // The name before it is in parentheses, and may have any character.
    stats.filter_map(|stat| stat.rsplit_once(") ")?.1.chars().next()).collect()
}
