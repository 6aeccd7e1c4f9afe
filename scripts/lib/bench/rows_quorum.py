"""Row 15: a watch that feeds a quorum queue, beside a bare loop over the same client library and the same bodies."""

import subprocess
import tempfile
import time

from broker import EXCHANGE, QUORUM, Queue
from measure import Failure, environment, pinned, wait_until
from report import Comparison
from rows_paced import PacedRows
from rows_watch import SIZE, write
from service import Service

FILES = 20_000
# Messages without a confirm: what the service has by default (--confirm-window).
WINDOW = 1024


class QuorumRows(PacedRows):
    """The files are in memory, so that no disk decides how fast they come."""

    def row_15(self):
        program = self.bench.bench_target("publisher")
        ours, theirs = [], []
        for _ in range(self.bench.long_rounds):
            with tempfile.NamedTemporaryFile(prefix="ingestor-bench-bodies-") as bodies:
                ours.append(self.watched(bodies))
                theirs.append(self.bare(program, bodies.name))
        files = self.files()
        work = f"{files:,} new files of 1 KiB in memory, to a quorum queue, until it holds all"
        return [Comparison(15, work, "bare loop, same client and bodies", "messages/s", files, ours, files, theirs, 0.9)]

    def files(self):
        return FILES // (10 if self.bench.quick else 1)

    def watched(self, bodies):
        """From the first file's creation; the messages' bodies go into `bodies`, a line each."""
        content = bytes(SIZE)
        with self.directory() as directory, Queue(self.bench.broker(), "quorum", QUORUM) as queue:
            with Service(self.watch(directory)) as service:
                before, began = service.running(), time.monotonic()
                for number in range(self.files()):
                    write(f"{directory}/{number:06}.dat", content)
                wait_until("the last message", lambda: queue.count() >= self.files(), 300, service.runs, 0.02)
                seconds = time.monotonic() - began
                cpu = service.running() - before
                service.stop()
            taken = list(queue.bodies())
        if len(taken) != self.files() or any(b"\n" in body for body in taken):
            raise Failure(f"{len(taken)} messages instead of {self.files()}, a line each")
        bodies.write(b"\n".join(taken) + b"\n")
        bodies.flush()
        return {"seconds": seconds, "cpu": cpu}

    def bare(self, program, bodies):
        """From the first message to the last confirm."""
        with Queue(self.bench.broker(), "quorum", QUORUM) as queue:
            command = pinned(2, [program, self.bench.broker().url, EXCHANGE, bodies, str(WINDOW)])
            done = subprocess.run(command, env=environment(), capture_output=True, text=True)
            if done.returncode != 0:
                raise Failure(f"the bare loop ended with status {done.returncode}: {done.stderr.strip()}")
            said = dict(word.split("=") for word in done.stdout.split())
            if queue.count() != self.files():
                raise Failure(f"{queue.count()} messages of the bare loop instead of {self.files()}")
        return {"seconds": float(said["seconds"]), "cpu": float(said["cpu"])}
