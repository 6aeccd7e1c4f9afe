"""scripts/endurance --faults: each minute one thing is as it ought not to be for a while."""

import os
import resource
import threading
import time

from observe import say

PAUSE_SECONDS = 60
FAULT_SECONDS = 10
# Sparse: takes the service some seconds, and the disk nothing.
HUGE_BYTES = 8 << 30
# The service may open so many more than it has open.
SPARE_DESCRIPTORS = 3


class Faults:
    """A thread that brings them about, one after another, until it is told to stop."""

    def __init__(self, service, broker, directory):
        self.service, self.broker, self.directory = service, broker, directory
        self.done = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._thread.join()

    def _run(self):
        kinds = (self.few_descriptors, self.blocked_broker, self.huge_file, self.files_without_rights)
        number = 0
        while not self._stopped.wait(PAUSE_SECONDS):
            kind = kinds[number % len(kinds)]
            number += 1
            name = kind.__name__.replace("_", " ")
            say(f"fault: {name}")
            kind()
            self.done[name] = self.done.get(name, 0) + 1

    def few_descriptors(self):
        """The limit of open files comes down to hardly more than are open."""
        before = resource.prlimit(self.service.pid, resource.RLIMIT_NOFILE)
        few = len(os.listdir(f"/proc/{self.service.pid}/fd")) + SPARE_DESCRIPTORS
        resource.prlimit(self.service.pid, resource.RLIMIT_NOFILE, (few, before[1]))
        self._stopped.wait(FAULT_SECONDS)
        resource.prlimit(self.service.pid, resource.RLIMIT_NOFILE, before)

    def blocked_broker(self):
        """A memory alarm: the broker takes nothing from a publisher."""
        self.broker.control("set_vm_memory_high_watermark", "0")
        self._stopped.wait(FAULT_SECONDS)
        self.broker.control("set_vm_memory_high_watermark", "0.4")

    def huge_file(self):
        path = f"{self.directory}/huge"
        with open(path, "wb") as file:
            file.truncate(HUGE_BYTES)
        self._stopped.wait(FAULT_SECONDS)
        os.remove(path)

    def files_without_rights(self):
        """To root the rights are open: then these are files that change their metadata alone."""
        paths = [f"{self.directory}/shut-{number}" for number in range(20)]
        for path in paths:
            with open(path, "w") as file:
                file.write(f"{time.time()}")
            os.chmod(path, 0)
        self._stopped.wait(FAULT_SECONDS)
        for path in paths:
            os.chmod(path, 0o644)
        self._stopped.wait(1)
        for path in paths:
            os.remove(path)
