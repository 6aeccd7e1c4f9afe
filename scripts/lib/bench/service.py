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

    def running(self):
        """Seconds for which its threads have run, exact to the microsecond. Those of threads that ended are not counted."""
        return sum(int(text.split()[0]) for text in self._of_threads("schedstat")) / 1e9

    def switches(self, all_of_them=False):
        """How often its threads have gone to sleep, and so have been woken; or also how often they had to stop."""
        kinds = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")[: 1 + all_of_them]
        lines = (line.split() for text in self._of_threads("status") for line in text.splitlines())
        return sum(int(line[1]) for line in lines if line[0].rstrip(":") in kinds)

    def _of_threads(self, name):
        threads = f"/proc/{self.process.pid}/task"
        for thread in os.listdir(threads):
            try:
                with open(f"{threads}/{thread}/{name}") as file:
                    yield file.read()
            except (FileNotFoundError, ProcessLookupError):
                pass  # it has ended meanwhile


def memory(pid, field):
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0
