"""Runs of whole processes: wall-clock, processor time, turns."""

import os
import subprocess
import tempfile
import time
from dataclasses import dataclass, field

# The service and its rivals run on the first of these that this process may use.
CORES = sorted(os.sched_getaffinity(0))


class Failure(Exception):
    """Something did not do what it was measured for."""


class Skip(Exception):
    """A row that cannot be measured here, and why."""


@dataclass
class Run:
    seconds: float
    # User and system, of the process and of all that it has waited for.
    cpu: float


@dataclass
class Job:
    """A command to be timed."""

    name: str
    command: list
    cores: int
    cwd: str = None
    # Called with what the command wrote to standard error, after the clock has stopped.
    check: object = None
    # The same work with readable output: lines of processes side by side run into each other.
    one_by_one: list = None
    env: dict = field(default_factory=dict)


def pinned(cores, command):
    if len(CORES) < cores:
        raise Skip(f"needs {cores} cores, this process may use {len(CORES)}")
    return ["taskset", "-c", ",".join(map(str, CORES[:cores])), *command]


def environment(**more):
    """Ours, without settings of the service that happen to be in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("INGESTOR_")}
    for name in ("AMQP_CONNECTION_STRING", "DATA_DIRECTORY", "STATE_DIRECTORY", "LOG_LEVEL"):
        kept.pop(name, None)
    return {**kept, **more}


def reap(process):
    """Waits for a process; its rusage holds its children's, too."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage


def run(job, output=None):
    with tempfile.TemporaryFile() as log:
        began = time.monotonic()
        process = subprocess.Popen(
            pinned(job.cores, job.one_by_one if output and job.one_by_one else job.command),
            cwd=job.cwd,
            env=environment(**job.env),
            stdin=subprocess.DEVNULL,
            stdout=output or subprocess.DEVNULL,
            stderr=log,
        )
        usage = reap(process)
        seconds = time.monotonic() - began
        log.seek(0)
        said = log.read().decode(errors="replace")
    if process.returncode != 0:
        raise Failure(f"{job.name} ended with status {process.returncode}: {' '.join(said.split())[-500:]}")
    if job.check:
        job.check(said)
    return Run(seconds, usage.ru_utime + usage.ru_stime)


def output_of(job):
    """What it writes to standard output, untimed."""
    with tempfile.TemporaryFile() as output:
        run(job, output)
        output.seek(0)
        return output.read().decode(errors="replace")


def in_turns(jobs, rounds, before=lambda: None):
    """A B A B: what the machine does meanwhile meets all of them."""
    runs = {job.name: [] for job in jobs}
    for _ in range(rounds):
        for job in jobs:
            before()
            runs[job.name].append(run(job))
    return runs


def wait_until(what, enough, timeout, alive=lambda: True, pause=0.01):
    deadline = time.monotonic() + timeout
    while not enough():
        if not alive():
            raise Failure(f"{what} did not come: the process has ended")
        if time.monotonic() > deadline:
            raise Failure(f"{what} did not come within {timeout} s")
        time.sleep(pause)
