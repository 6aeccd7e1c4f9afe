"""The service, or what stands in its place, as a running process."""

import os
import signal
import subprocess
import tempfile
import time

from measure import Failure, Run, environment, pinned, reap, wait_until

READY_TIMEOUT = 60


class Service:
    def __init__(self, command, cores=2):
        self.log = tempfile.NamedTemporaryFile(prefix="ingestor-bench-", suffix=".log")
        # taskset becomes the command: the process id is the service's.
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            pinned(cores, command),
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.log,
        )

    def __enter__(self):
        wait_until("the line 'ready'", lambda: "ready" in self.said(), READY_TIMEOUT, self.runs)
        return self

    def __exit__(self, *_):
        if self.process.returncode is None:
            # Not Popen.kill: of a process that has ended by itself it takes the status away from reap.
            os.kill(self.process.pid, signal.SIGKILL)
            reap(self.process)
        self.log.close()

    def runs(self):
        # Not reaped: the rusage is for stop().
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def said(self):
        with open(self.log.name, errors="replace") as log:
            return log.read()

    def stop(self):
        """Its orderly end: every confirm is in. The seconds are those of its whole life."""
        run = self.end()
        if self.process.returncode != 0:
            raise Failure(f"it ended with status {self.process.returncode}: {self.said()[-500:]}")
        return run

    def end(self):
        """Whatever its status."""
        self.process.send_signal(signal.SIGTERM)
        usage = reap(self.process)
        return Run(time.monotonic() - self.began, usage.ru_utime + usage.ru_stime)

    def memory(self, field):
        """Bytes. ru_maxrss would not do: it counts what the process was before exec, this interpreter."""
        return memory(self.process.pid, field)

    def ticks(self):
        """Its processor time, in hundredths of a second."""
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def switches(self):
        """How often its threads have gone to sleep, and so have been woken."""
        total = 0
        for task in os.listdir(f"/proc/{self.process.pid}/task"):
            with open(f"/proc/{self.process.pid}/task/{task}/status") as file:
                total += next(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))
        return total


def memory(pid, field):
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0
