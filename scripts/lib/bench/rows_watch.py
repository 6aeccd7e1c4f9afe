"""Rows 8 to 11: files that come, through the service and a private RabbitMQ."""

import calendar
import functools
import hashlib
import json
import os
import random
import statistics
import subprocess
import tempfile
import time

import corpus
from broker import Inbox, Queue
from measure import Failure, environment, pinned, reap, wait_until
from report import Comparison, Value
from service import Service, memory

SIZE = 1024
# The predecessor manages a few files a second: it gets no more than these, of the same.
PREDECESSOR_FILES = 60
# Between two files of the latency row: everything has gone back to sleep.
IDLE_PAUSE = 0.02


class WatchRows:
    def __init__(self, bench):
        self.bench = bench
        self.present, self.coming = (2_000, 2_000) if bench.quick else (20_000, 20_000)

    def watch(self, directory, *more):
        url = self.bench.broker().url
        return [self.bench.binary, "watch", "--data-dir", directory, "--amqp-url", url, "--workers", "2", *more]

    def directory(self):
        """A new one, on the file system of the corpus."""
        return tempfile.TemporaryDirectory(prefix="watched-", dir=self.bench.corpus)

    def burst(self, command, files, once):
        """Seconds from the first file's creation to the last message in the queue, and to the orderly end."""
        chance = random.Random(2)
        contents = {f"{self.present + number:06}.dat": chance.randbytes(SIZE) for number in range(files)}
        with self.directory() as directory, Queue(self.bench.broker()) as queue:
            template = corpus.make(self.bench.corpus, self.present, SIZE)
            subprocess.run(["cp", "-r", f"{template.path}/.", directory], check=True)
            os.sync()  # or this would still be written while the clock runs
            with Service(command(directory)) as service:
                began = time.monotonic()
                for name, content in contents.items():
                    write(f"{directory}/{name}", content)
                written = time.monotonic() - began
                wait_until("the last message", lambda: queue.count() >= files, 600, service.runs)
                seconds = time.monotonic() - began
                run = service.stop() if once else service.end()
                ended = time.monotonic() - began
            messages = queue.drain()
            expected = {f"{directory}/{name}": sha256(content) for name, content in contents.items()}
        if set(messages) != set(expected):
            raise Failure(f"messages for {len(messages)} files instead of {len(expected)}")
        wrong = sum(hashes[-1] != expected[path] for path, hashes in messages.items())
        repeats = sum(len(hashes) - 1 for hashes in messages.values())
        if once and (wrong or repeats):
            raise Failure(f"{wrong} wrong hashes and {repeats} repeats of {files} files")
        return {
            "seconds": seconds,
            "files": files,
            "wrong": wrong,
            "repeats": repeats,
            "seconds_of_writing": written,
            "seconds_to_the_end": ended,
            "cpu": run.cpu,
        }

    def our_burst(self):
        return self.burst(self.watch, self.coming, once=True)

    def their_burst(self):
        url = self.bench.broker().url
        script = f"{corpus.ROOT}/scripts/predecessor.py"
        files = PREDECESSOR_FILES // 6 if self.bench.quick else PREDECESSOR_FILES
        return self.burst(lambda directory: ["/usr/bin/python3", "-B", script, directory, url], files, once=False)

    @functools.cached_property
    def bursts(self):
        """Ours alone, unless row 8 came first."""
        return [self.our_burst() for _ in range(self.bench.long_rounds)]

    def row_8(self):
        ours, theirs = [], []
        for _ in range(self.bench.long_rounds):
            ours.append(self.our_burst())
            theirs.append(self.their_burst())
        self.bursts = ours
        wrong, files = sum(one["wrong"] for one in theirs), sum(one["files"] for one in theirs)
        writing = statistics.median(one["seconds_of_writing"] for one in ours)
        self.bench.note(
            f"row 8: ours includes the writing of the {self.coming:,} files beside it, by one thread: {writing:.2f} s"
        )
        self.bench.note(
            f"row 8: the predecessor was given the first {theirs[0]['files']} of the files; {wrong} of {files} hashes "
            "in its messages were those of a file not yet written"
        )
        work = f"{self.coming:,} new files of 1 KiB in a directory of {self.present:,}, to the broker's queue"
        amounts = ours[0]["files"], theirs[0]["files"]
        return [
            Comparison(8, work, "predecessor", "files/s", amounts[0], ours, amounts[1], theirs, 50),
            Value(
                8,
                "the same, until every confirm is in and the process has ended",
                statistics.median(one["files"] / one["seconds_to_the_end"] for one in ours),
                "files/s",
            ),
        ]

    def row_9(self):
        each = [one["cpu"] / one["files"] * 1e6 for one in self.bursts]
        work = f"processor time a message, start and end of the process included, over {self.coming:,}"
        return [Value(9, work, statistics.median(each), "µs", 60, each)]

    def row_10(self):
        files = 50 if self.bench.quick else 200
        seen, _ = self.latencies(files)
        _, confirmed = self.latencies(files, debug=True)
        rate = self.wake_ups(3 if self.bench.quick else 10)
        lines = []
        for what, each in (("message at a consumer", seen), ("confirm", confirmed)):
            each = sorted(1e3 * seconds for seconds in each)
            work = f"one file at a time, from close(2) to the {what}"
            lines.append(Value(10, f"{work}, median of {files}", statistics.median(each), "ms", raw=each))
            lines.append(Value(10, f"{work}, 99th percentile", each[-(-len(each) * 99 // 100) - 1], "ms"))
        lines.append(Value(10, "idle: wake-ups of all its threads", rate, "a second"))
        return lines

    def latencies(self, files, debug=False):
        """Seconds to each message, and with a DEBUG log those to each confirm."""
        more = ["--log-level", "DEBUG", "--log-format", "json"] if debug else []
        content = random.Random(3).randbytes(SIZE)
        seen, closed = [], {}
        with self.directory() as directory, Inbox(self.bench.broker()) as inbox:
            with Service(self.watch(directory, *more)) as service:
                for number in range(files):
                    time.sleep(IDLE_PAUSE)
                    path = f"{directory}/{number:06}.dat"
                    began, closed[path] = write(path, content)
                    if not inbox.wait_for(path):
                        raise Failure(f"no message for {path}")
                    seen.append(time.monotonic() - began)
                service.stop()
                said = service.said()
        confirmed = [when - closed[path] for path, when in confirms(said)] if debug else []
        if debug and len(confirmed) != files:
            raise Failure(f"{len(confirmed)} confirms in the log instead of {files}: {said[-300:]}")
        return seen, confirmed

    def wake_ups(self, seconds):
        with self.directory() as directory, Service(self.watch(directory)) as service:
            time.sleep(1)  # what starting has left to do
            before = service.switches()
            time.sleep(seconds)
            return (service.switches() - before) / seconds

    def row_11(self):
        return [self.one_large_file(), self.waiting_files()]

    def one_large_file(self):
        size = 64 << 20 if self.bench.quick else 4 << 30
        with self.directory() as directory:
            with open(f"{directory}/sparse", "wb") as file:
                file.truncate(size)
            command = [self.bench.binary, "scan", directory, "--output", "none", "--workers", "1"]
            log = subprocess.DEVNULL
            process = subprocess.Popen(pinned(1, command), env=environment(), stderr=log, stdout=log)
            most = 0
            # It only grows, so that the last look is the one that counts.
            while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                most = memory(process.pid, "VmHWM") or most
                time.sleep(0.002)
            reap(process)
        if process.returncode != 0 or most == 0:
            raise Failure(f"scan of a sparse file ended with status {process.returncode}")
        return Value(11, f"peak memory: one file of {corpus.in_bytes(size)}, 1 worker", most / 1e6, "MB", 40)

    def waiting_files(self):
        files = 5_000 if self.bench.quick else 100_000
        broker = self.bench.broker()
        with self.directory() as directory, Queue(broker) as queue, Service(self.watch(directory)) as service:
            broker.control("set_vm_memory_high_watermark", "0")
            try:
                for number in range(files):
                    write(f"{directory}/{number:06}.dat", b"%d\n" % number)
                wait_until("its rest", steady(service), 300, service.runs, 0.1)
                waiting, arrived = service.memory("VmHWM"), queue.count()
            finally:
                broker.control("set_vm_memory_high_watermark", "0.4")
            if arrived > files // 10:
                raise Failure(f"the broker was not blocked: {arrived} messages came")
            wait_until("the last message", lambda: queue.count() >= files, 300, service.runs)
            most = service.memory("VmHWM")
            service.stop()
            messages = queue.drain()
        if len(messages) != files:
            raise Failure(f"messages for {len(messages)} files instead of {files}")
        work = f"peak memory: {files:,} files that waited for a blocked broker, 2 workers"
        return Value(11, work, most / 1e6, "MB", 100, [waiting / 1e6, most / 1e6])


def steady(service, seconds=3):
    """Whether its memory and its processor time have stayed the same for so long: everything is seen."""
    last = None, time.monotonic()

    def rests():
        nonlocal last
        now = service.memory("VmRSS"), service.ticks()
        if now != last[0]:
            last = now, time.monotonic()
        return time.monotonic() - last[1] >= seconds

    return rests


def confirms(log):
    """Path and time of each confirm in a DEBUG log in JSON."""
    for line in log.splitlines():
        entry = json.loads(line)
        if entry["message"] == "confirmed":
            yield entry["path"], moment(entry["timestamp"])


def moment(text):
    """Seconds since 1970 of `2026-11-23T21:01:57.301812Z`."""
    whole, fraction = text.rstrip("Z").split(".")
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float(f"0.{fraction}")


def write(path, content):
    """Makes a file. Returns when it was closed, by the monotonic clock and by the time of day."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(file, content)
    # Before the call: the event is raised in it.
    closed = time.monotonic(), time.time()
    os.close(file)
    return closed


def sha256(content):
    return hashlib.sha256(content).hexdigest()
