"""Row 14: files that come one by one, and what each wakes: context switches and processor time a message."""

import os
import re
import statistics
import tempfile
import time
from contextlib import ExitStack

from broker import EXCHANGE, Queue
from measure import Failure, Skip, wait_until
from report import Value
from rows_watch import SIZE, WatchRows, write
from service import Service

# Its files are in memory, so that no disk decides how fast they come.
MEMORY = "/dev/shm"
# Each with its files a second (None: as fast as one thread writes them), whether a queue is bound, and a bar.
PACES = (
    (500, True, 8),
    (2_000, True, 7),
    (None, True, 1.0),
    (10_000, False, 4),
    (None, False, 1.5),
)
# How long files come at a pace, and how many come without one.
SECONDS = 4
AT_FULL_RATE = 20_000
# All is done when its threads have run for no more than this within the pause.
REST_PAUSE = 0.3
REST_SECONDS = 0.002


class PacedRows(WatchRows):
    """As rows 8 to 11, with the files in memory."""

    def directory(self):
        if not os.path.ismount(MEMORY):
            raise Skip(f"{MEMORY} is no file system in memory")
        return tempfile.TemporaryDirectory(prefix="ingestor-bench-watched-", dir=MEMORY)

    def row_14(self):
        lines = []
        for rate, bound, bar in PACES:
            runs = [self.paced(rate, bound) for _ in range(self.bench.long_rounds)]
            pace = f"{rate:,} files/s" if rate else "full rate"
            work = f"{pace}, {'one queue' if bound else 'no queue bound'}"
            for what, unit, its_bar in (("switches", "switches", bar), ("cpu", "µs", None)):
                each = [one[what] for one in runs]
                name = "context switches" if what == "switches" else "processor time"
                lines.append(Value(14, f"{work}: {name} a message", statistics.median(each), unit, its_bar, each))
        seen, _ = self.latencies(50 if self.bench.quick else 200)
        latency = 1e3 * statistics.median(seen)
        return [*lines, Value(14, "idle: from close(2) to the message at a consumer, median", latency, "ms")]

    def paced(self, rate, bound):
        """Switches and microseconds a message, from the first file to the last confirm."""
        files = (rate * SECONDS if rate else AT_FULL_RATE) // (10 if self.bench.quick else 1)
        more = ["--unroutable", "wait" if bound else "warn"]
        content = os.urandom(SIZE)
        with self.directory() as directory, ExitStack() as stack:
            queue = stack.enter_context(Queue(self.bench.broker())) if bound else None
            with Service(self.watch(directory, *more)) as service:
                rest(service)
                before = service.switches(all_of_them=True), service.running()
                began = time.monotonic()
                for number in at_pace(range(files), rate):
                    write(f"{directory}/{number:06}.dat", content)
                written = time.monotonic() - began
                if queue:
                    wait_until("the last message", lambda: queue.count() >= files, 300, service.runs, 0.05)
                rest(service)
                after = service.switches(all_of_them=True), service.running()
                service.stop()
                said = service.said()
        confirmed = int(re.search(r"(\d+) messages confirmed", said)[1])
        if confirmed != files:
            raise Failure(f"{confirmed} messages confirmed instead of {files} at the exchange {EXCHANGE}")
        return {
            "switches": (after[0] - before[0]) / files,
            "cpu": (after[1] - before[1]) / files * 1e6,
            "rate": files / written,
        }


def at_pace(items, rate):
    """Each when its time has come: so many a second, or all at once."""
    began = time.monotonic()
    for number, item in enumerate(items):
        early = began + number / rate - time.monotonic() if rate else 0
        if early > 0:
            time.sleep(early)
        yield item


def rest(service):
    """Waits until its threads have nothing to do."""
    last = service.running()

    def rests():
        nonlocal last
        time.sleep(REST_PAUSE)
        before, last = last, service.running()
        return last - before < REST_SECONDS

    wait_until("its rest", rests, 120, service.runs)
