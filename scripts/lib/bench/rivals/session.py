"""A contestant with all the processes that it starts."""

import os
import signal
import subprocess
import tempfile

from service import memory

TICKS = os.sysconf("SC_CLK_TCK")


class Session:
    """They have a session of their own, by which they are found."""

    def __init__(self, command, environment):
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def runs(self):
        return self.process.poll() is None

    def said(self):
        """The end of what it has written."""
        self.log.seek(0)
        return self.log.read().decode(errors="replace").strip()[-300:]

    def cpu(self):
        """Seconds of processor time, of those that have ended, too."""
        return sum(sum(map(int, fields[11:15])) for _, fields in self._processes()) / TICKS

    def memory(self):
        """Bytes at their peaks, in sum."""
        total = 0
        for pid, _ in self._processes():
            try:
                total += memory(pid, "VmHWM")
            except OSError:
                pass
        return total

    def end(self):
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid, _ in self._processes():
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                pass

    def _processes(self):
        for name in os.listdir("/proc"):
            if not name.isdecimal():
                continue
            try:
                with open(f"/proc/{name}/stat") as file:
                    fields = file.read().rsplit(")", 1)[1].split()
            except OSError:
                continue  # it has ended meanwhile
            if int(fields[3]) == self.process.pid:
                yield int(name), fields
