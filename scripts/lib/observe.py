"""For scripts/endurance and scripts/scale: the service as it is seen from outside, by /proc, its metrics and its log."""

import argparse
import calendar
import contextlib
import http.client
import json
import math
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from broker import Broker
from measure import CORES, Failure, wait_until
from service import Service

ROOT = os.path.realpath(f"{os.path.dirname(__file__)}/../..")
TICKS = os.sysconf("SC_CLK_TCK")
LATENCY = "apollonia_end_to_end_seconds"
# After lost events a rescan may be put off for so long (src/watch/rescan.rs).
RESCAN_PAUSE = 30


def say(text):
    print(f"== {text}", file=sys.stderr, flush=True)


def target():
    return os.path.join(ROOT, os.environ.get("CARGO_TARGET_DIR") or "target")


def binary():
    """The build that INGESTOR_TEST_BINARY names, else the release build, made now."""
    named = os.environ.get("INGESTOR_TEST_BINARY")
    if named:
        if not os.access(named, os.X_OK):
            sys.exit(f"error: INGESTOR_TEST_BINARY: {named} cannot be run")
        return os.path.realpath(named)
    say("building")
    if subprocess.run(["cargo", "build", "--release", "--locked"], cwd=ROOT).returncode != 0:
        sys.exit("error: cargo build failed; the lines above say why")
    return f"{target()}/release/apollonia-ingestor"


def run(main):
    """With an orderly end for every process and directory, by whatever signal."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)


@contextlib.contextmanager
def private_broker(name, directory):
    """A directory for this run alone, and a RabbitMQ that serves."""
    with contextlib.ExitStack() as stack:
        # Real, as it stands in the messages.
        work = os.path.realpath(tempfile.mkdtemp(prefix=f"{name}-", dir=directory))
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        say("starting a private RabbitMQ")
        broker = stack.enter_context(Broker())
        broker.wait_until_it_serves()
        yield work, broker


def becoming(user):
    """The beginning of a command that another user is to run; nothing for `None`."""
    if user is None:
        return []
    return ["setpriv", "--reuid", user, "--regid", str(pwd.getpwnam(user).pw_gid), "--clear-groups"]


class Observed(Service):
    """The service with a control socket and a log of JSON lines. It is not ready yet when it has been made."""

    def __init__(self, program, directory, url, work, *more, user=None):
        self.socket = f"{work}/socket"
        command = [program, "watch", "--data-dir", directory, "--amqp-url", url, "--control-socket", self.socket]
        self.exec_time = time.time()
        super().__init__([*becoming(user), *command, "--log-format", "json", *more], cores=len(CORES))
        self.pid = self.process.pid
        self.lines = []
        self._read = 0

    def __enter__(self):
        return self

    def until(self, what, enough, timeout, pause=0.02):
        try:
            wait_until(what, enough, timeout, self.runs, pause)
        except Failure as failure:
            raise Failure(f"{failure}: {self.said()[-1000:]}") from None

    def ready(self, timeout=60):
        """Seconds from exec to the line `ready`, both by the time of day."""
        self.until("the line 'ready'", lambda: self.line("ready"), timeout)
        return moment(self.line("ready")["timestamp"]) - self.exec_time

    def log_lines(self):
        """What it has logged so far; whatever is no line of JSON stands as an ERROR."""
        with open(self.log.name, "rb") as log:
            log.seek(self._read)
            *whole, _unfinished = log.read().split(b"\n")
        for line in whole:
            self._read += len(line) + 1
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.lines.append({"level": "ERROR", "message": line.decode(errors="replace"), "timestamp": None})
        return self.lines

    def line(self, beginning):
        """The first line that begins so."""
        return next((line for line in self.log_lines() if line["message"].startswith(beginning)), None)

    def misloaded(self, files):
        """What it says of its ledger at the start, unless it is that it knows so many files and all of them."""
        said = self.line("the ledger holds")["message"]
        return None if said == f"the ledger holds {files} of {files} files" else said

    def complaints(self):
        """Lines of WARN and ERROR, counted by kind: what stands in quotation marks, and numbers, make no other kind."""
        kinds = {}
        for line in self.log_lines():
            if line["level"] in ("WARN", "ERROR"):
                kind = re.sub(r"\d+", "N", re.sub(r'"[^"]*"', '"…"', line["message"]))
                kinds[line["level"], kind] = kinds.get((line["level"], kind), 0) + 1
        return kinds

    def metrics(self):
        """Name, with its labels as they are written, -> value."""
        connection = http.client.HTTPConnection("localhost", timeout=10)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(10)
            connection.sock.connect(self.socket)
            connection.request("GET", "/metrics", headers={"Connection": "close"})
            text = connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise Failure(f"the control socket does not answer: {error!r}") from None
        finally:
            connection.close()
        numbers = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in numbers}

    def confirmed(self):
        return int(self.metrics()["apollonia_messages_confirmed_total"])

    def rests(self):
        """Whether everything that it knows of is confirmed and in the ledger, as far as its metrics say."""
        now = self.metrics()
        waiting = ("pending_files", "in_flight_files", "unconfirmed_messages", "ledger_waiting_rows")
        return not any(now[f"apollonia_{name}"] for name in waiting)

    def come_to_rest(self, seconds, timeout):
        """Waits until it has rested for so long, without a further confirm."""
        last = None, time.monotonic()

        def enough():
            nonlocal last
            now = self.confirmed() if self.rests() else None
            if now is None or now != last[0]:
                last = now, time.monotonic()
            return now is not None and time.monotonic() - last[1] >= seconds

        self.until("its rest", enough, timeout, 0.2)

    def cpu(self):
        """Seconds of processor time."""
        return self.ticks() / TICKS

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def threads(self):
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def watches(self):
        """How many inotify watches the kernel lists. Descriptors that are copies of one another list the same."""
        found = set()
        for name in os.listdir(f"/proc/{self.pid}/fdinfo"):
            # A file that is being read is closed meanwhile.
            with contextlib.suppress(FileNotFoundError), open(f"/proc/{self.pid}/fdinfo/{name}") as info:
                found.update(line for line in info if line.startswith("inotify wd:"))
        return len(found)


def overflows(metrics):
    return int(sum(value for name, value in metrics.items() if name.startswith("apollonia_overflows_total")))


def latencies(before, after, *shares):
    """Quantiles of what the histogram counted in between, in seconds: linear within a bucket, as Prometheus has them;
    nothing where nothing was counted, infinite above the last bound."""
    bucket = re.compile(rf'{LATENCY}_bucket{{le="(.*)"}}')
    grown = []
    for name, count in after.items():
        found = bucket.fullmatch(name)
        if found:
            grown.append((float(found[1].replace("+Inf", "inf")), count - before.get(name, 0)))
    grown.sort()
    total = grown[-1][1]
    return [quantile(grown, share * total) if total else None for share in shares]


def quantile(cumulative, rank):
    lower = below = 0
    for bound, count in cumulative:
        if count >= rank and count > below:
            return math.inf if bound == math.inf else lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return math.inf


def moment(text):
    """Seconds since 1970 of `2026-11-23T21:01:57.301812Z`."""
    whole, fraction = text.rstrip("Z").split(".")
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float(f"0.{fraction}")


def in_bytes(count):
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000


def parsed(parser):
    """What was typed, --directory checked."""
    parser.add_argument("--directory")
    options = parser.parse_args()
    if options.directory and not os.path.isdir(options.directory):
        parser.error(f"--directory: {options.directory} is not a directory")
    return options


def positive(text):
    """For argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)
