"""scripts/endurance --faults: each minute one thing is as it ought not to be for a while."""

import os
import subprocess
import threading
import time

from broker import EXCHANGE
from observe import becoming, say

PAUSE_SECONDS = 60
FAULT_SECONDS = 10
# Sparse: takes the service some seconds, and the disk nothing.
HUGE_BYTES = 8 << 30
# The service may open so many more than it has open.
SPARE_DESCRIPTORS = 3


class Faults:
    """A thread that brings them about, one after another, until it is told to stop."""

    def __init__(self, service, broker, directory, user):
        self.service, self.broker, self.directory, self.user = service, broker, directory, user
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
        kinds = (
            self.few_descriptors,
            self.blocked_broker,
            self.huge_file,
            self.files_without_rights,
            self.no_queue_bound,
            self.closed_connections,
        )
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
        few = len(os.listdir(f"/proc/{self.service.pid}/fd")) + SPARE_DESCRIPTORS
        before = self._limit_descriptors(few)
        self._stopped.wait(FAULT_SECONDS)
        self._limit_descriptors(before)

    def _limit_descriptors(self, most):
        """Returns the limit before. To set that of another user's process takes a privilege that root may lack."""
        command = [*becoming(self.user), "prlimit", f"--pid={self.service.pid}"]
        before = subprocess.check_output([*command, "--nofile", "--output=SOFT", "--noheadings"], text=True)
        subprocess.check_call([*command, f"--nofile={most}:"])
        return int(before)

    def blocked_broker(self):
        """A memory alarm: the broker takes nothing from a publisher."""
        self.broker.control("set_vm_memory_high_watermark", "0")
        self._stopped.wait(FAULT_SECONDS)
        self.broker.control("set_vm_memory_high_watermark", "0.4")

    def no_queue_bound(self):
        """The exchange loses its bindings, and gets them back."""
        self._evaluate(
            f"Bound = [B || B <- rabbit_binding:list(<<\"/\">>), element(4, element(2, B)) == <<\"{EXCHANGE}\">>], "
            "application:set_env(rabbit, bound, Bound), [ok = rabbit_binding:remove(B, <<>>) || B <- Bound]."
        )
        self._stopped.wait(FAULT_SECONDS)
        self._evaluate("{ok, Bound} = application:get_env(rabbit, bound), [ok = rabbit_binding:add(B, <<>>) || B <- Bound].")

    def closed_connections(self):
        """The broker closes the service's connections, and no others."""
        self._evaluate(
            "[rabbit_networking:close_connection(P, \"endurance\") || P <- rabbit_networking:connections(), "
            "Info <- [catch rabbit_networking:connection_info(P, [client_properties])], "
            f"nomatch =/= binary:match(term_to_binary(Info), <<\"pid {self.service.pid}\">>)]."
        )
        self._stopped.wait(FAULT_SECONDS)

    def _evaluate(self, expression):
        self.broker.control("eval", expression)

    def huge_file(self):
        path = f"{self.directory}/huge"
        with open(path, "wb") as file:
            file.truncate(HUGE_BYTES)
        self._stopped.wait(FAULT_SECONDS)
        os.remove(path)

    def files_without_rights(self):
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
