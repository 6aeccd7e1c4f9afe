"""scripts/endurance: a long run, a sample every few seconds, and what became of the service."""

import argparse
import contextlib
import csv
import os
import shutil
import subprocess
import sys
import threading
import time

import observe
import plot
import verdict
from faults import Faults
from measure import Failure, environment, wait_until
from observe import RESCAN_PAUSE, Observed, in_bytes, positive, say
from writer import Writer

SAMPLE_SECONDS = 5
# Looks at the number of descriptors in one sample.
LOOKS = 10
REST_SECONDS = 3
ORDINARY_USER = "nobody"

COLUMNS = (
    "seconds",
    "rss_bytes",
    "descriptors",
    "descriptors_most",
    "threads",
    "messages",
    "messages_per_second",
    "p50_seconds",
    "p99_seconds",
    "pending_files",
    "oldest_pending_seconds",
    "overflows",
    "ledger_rows",
    "ledger_bytes",
    "cpu_seconds",
    "received",
    "versions_written",
    "files",
    "directories",
)


class Consumer:
    """`listen`, and the lines that it has printed."""

    def __init__(self, program, url, work):
        self.log = open(f"{work}/listen.log", "w+")
        self.process = subprocess.Popen(
            [program, "listen", "--amqp-url", url],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )
        self.received = 0
        threading.Thread(target=self._count, daemon=True).start()
        wait_until("the consumer", lambda: "ready" in self.said(), 60, self.runs)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.log.close()

    def _count(self):
        while piece := os.read(self.process.stdout.fileno(), 1 << 20):
            self.received += piece.count(b"\n")

    def runs(self):
        return self.process.poll() is None

    def said(self):
        with open(self.log.name, errors="replace") as log:
            return log.read()

    def take_all(self, messages, repeats):
        """Every message that was confirmed has come; with `repeats` some may have come twice."""
        wait_until(f"the last of {messages} messages", lambda: self.received >= messages, 60, self.runs)
        # What was not confirmed when a connection was closed is published again.
        if self.received != messages and not repeats:
            raise Failure(f"the consumer got {self.received} messages, {messages} were confirmed")


class Run:
    def __init__(self, options, program, broker, work, results):
        self.options, self.program, self.work = options, program, work
        self.broker, self.url = broker, broker.url
        self.data, self.results = f"{work}/data", results
        # With faults an ordinary user runs the service: to root no file is without rights.
        self.user = ORDINARY_USER if options.faults and os.geteuid() == 0 else None
        if self.user:
            shutil.chown(work, self.user)
        self.samples = []
        self.complaints = {}
        self.failures = []
        # How often each fault was brought about.
        self.faults = {}
        # Messages of the second start, once it has come to an end.
        self.restarted = None

    def service(self, *more):
        recursive = [] if self.options.flat else ["--recursive"]
        state = ["--state-dir", f"{self.work}/state"]
        # A closed connection is one of the faults.
        faults = ["--reconnect-seconds", "60"] if self.options.faults else []
        return Observed(self.program, self.data, self.url, self.work, *state, *recursive, *faults, *more, user=self.user)

    def whole(self):
        os.mkdir(self.data)
        with Consumer(self.program, self.url, self.work) as consumer:
            with self.service() as service:
                try:
                    service.ready()
                    self.live(service, consumer)
                    received = consumer.received
                finally:
                    self.complained(service)
            with self.service("--log-level", "DEBUG") as service:
                try:
                    self.restart(service)
                    if consumer.received != received:
                        self.failures.append(f"{consumer.received - received} messages came after the restart")
                finally:
                    self.complained(service)

    def live(self, service, consumer):
        options = self.options
        with Writer(self.data, options.rate, options.directories, options.flat) as writer:
            wait_until("the first files", writer.full.is_set, 600, writer.process.is_alive, 0.1)
            say(f"{options.minutes} minutes from now")
            faults = Faults(service, self.broker, self.data, self.user)
            self.faults = faults.done
            try:
                with faults if options.faults else contextlib.nullcontext():
                    self.watch(service, consumer, writer)
            finally:
                self.write_down()
            in_order = writer.stop()
            self.written = writer.counts()
        if not in_order:
            raise Failure("the writer failed; the lines above say why")
        say("waiting until the service rests")
        lost = observe.overflows(service.metrics())
        service.come_to_rest(RESCAN_PAUSE + REST_SECONDS if lost else REST_SECONDS, 600)
        self.end = service.metrics()
        consumer.take_all(int(self.end["apollonia_messages_confirmed_total"]), self.options.faults)
        self.files = sum(len(files) for _, _, files in os.walk(self.data))
        self.compare("files in the tree", self.files, "rows in the ledger", int(self.end["apollonia_ledger_rows"]))
        # The kernel's peak lags a little behind the value of the moment.
        self.peak = max(service.memory("VmHWM"), *(sample["rss_bytes"] for sample in self.samples))
        say("stopping it")
        service.stop()

    def watch(self, service, consumer, writer):
        last = self.look(service, time.monotonic(), None)
        began = last["when"]
        for number in range(1, int(self.options.minutes * 60 / SAMPLE_SECONDS) + 1):
            counts = []
            for look in range(1, LOOKS + 1):
                due = began + (number - 1 + look / LOOKS) * SAMPLE_SECONDS
                time.sleep(max(0, due - time.monotonic()))
                self.alive(service, consumer, writer)
                counts.append(service.descriptors())
            last = self.look(service, began, last)
            written = writer.counts()
            self.samples.append(
                last["sample"]
                | {
                    # What is open for good; files that were being read come on top of it.
                    "descriptors": min(counts),
                    "descriptors_most": max(counts),
                    "received": consumer.received,
                    "versions_written": written["versions"],
                    "files": written["files"],
                    "directories": written["directories"],
                }
            )
            if number % (60 // SAMPLE_SECONDS) == 0:
                self.write_down()
                now = self.samples[-1]
                say(
                    f"{now['seconds'] / 60:.0f} min: {in_bytes(now['rss_bytes'])}, {now['descriptors']} descriptors, "
                    f"{now['messages_per_second']:,.0f} messages/s, p50 {verdict.milliseconds(now['p50_seconds'])}, "
                    f"p99 {verdict.milliseconds(now['p99_seconds'])}"
                )

    def alive(self, service, consumer, writer):
        if not service.runs():
            raise Failure(f"the service has ended early: {service.said()[-1000:]}")
        if not consumer.runs():
            raise Failure(f"the consumer has ended early: {consumer.said()[-1000:]}")
        if not writer.process.is_alive():
            raise Failure("the writer has ended early; the lines above say why")

    def look(self, service, began, last):
        metrics, now = service.metrics(), time.monotonic()
        taken = {"when": now, "metrics": metrics}
        if last:
            messages = metrics["apollonia_messages_confirmed_total"]
            since = messages - last["metrics"]["apollonia_messages_confirmed_total"]
            half, most = observe.latencies(last["metrics"], metrics, 0.5, 0.99)
            taken["sample"] = {
                "seconds": round(now - began, 1),
                "rss_bytes": service.memory("VmRSS"),
                "threads": service.threads(),
                "messages": int(messages),
                "messages_per_second": since / (now - last["when"]),
                "p50_seconds": half,
                "p99_seconds": most,
                "pending_files": int(metrics["apollonia_pending_files"]),
                "oldest_pending_seconds": metrics["apollonia_oldest_pending_seconds"],
                "overflows": observe.overflows(metrics),
                "ledger_rows": int(metrics["apollonia_ledger_rows"]),
                "ledger_bytes": int(metrics["apollonia_ledger_bytes"]),
                "cpu_seconds": service.cpu(),
            }
        return taken

    def restart(self, service):
        """With the ledger: whatever it publishes now was lost before."""
        say("starting it again")
        service.ready()
        service.until("the end of the rescan", lambda: service.line("rescan finished"), 120)
        service.come_to_rest(REST_SECONDS, 600)
        if loaded := service.misloaded(self.files):
            self.failures.append(f"after the restart {loaded}; there are {self.files}")
        published = service.confirmed()
        if published:
            paths = [line["path"] for line in service.log_lines() if line["message"] == "confirmed"]
            self.failures.append(f"the restart published {published} files that had no message, {paths[0]} for one")
        self.restarted = published
        service.stop()

    def compare(self, one, first, other, second):
        if first != second:
            self.failures.append(f"{first} {one}, but {second} {other}")

    def complained(self, service):
        for kind, count in service.complaints().items():
            self.complaints[kind] = self.complaints.get(kind, 0) + count

    def write_down(self):
        with open(f"{self.results}/samples.csv.new", "w", newline="") as file:
            rows = csv.DictWriter(file, COLUMNS)
            rows.writeheader()
            rows.writerows(self.samples)
        os.rename(f"{self.results}/samples.csv.new", f"{self.results}/samples.csv")
        if not self.samples:
            return

        def line(name, factor=1):
            return [None if sample[name] is None else sample[name] * factor for sample in self.samples]

        plot.draw(
            f"{self.results}/endurance.svg",
            line("seconds", 1 / 60),
            [
                ("resident memory, MB", {"": line("rss_bytes", 1e-6)}, False),
                ("open descriptors", {"least": line("descriptors"), "most": line("descriptors_most")}, False),
                ("from event to confirm, ms", {"p50": line("p50_seconds", 1e3), "p99": line("p99_seconds", 1e3)}, True),
                ("messages a second", {"": line("messages_per_second")}, False),
            ],
        )


def arguments():
    parser = argparse.ArgumentParser(
        prog="scripts/endurance",
        usage="scripts/endurance [--minutes M] [--rate N] [--directories D] [--flat] [--faults] [--directory DIR]\n--help says more",
        allow_abbrev=False,
    )
    parser.add_argument("--minutes", type=positive, default=30)
    parser.add_argument("--rate", type=positive, default=500)
    parser.add_argument("--directories", type=positive, default=300)
    parser.add_argument("--flat", action="store_true")
    parser.add_argument("--faults", action="store_true")
    options = observe.parsed(parser)
    if options.directories < 10:
        parser.error("--directories must be at least 10")
    return options


def main():
    options = arguments()
    program = observe.binary()
    results = f"{observe.target()}/endurance"
    os.makedirs(results, exist_ok=True)
    with observe.private_broker("endurance", options.directory) as (work, broker):
        run = Run(options, program, broker, work, results)
        try:
            run.whole()
        except Failure as failure:
            run.failures.append(str(failure))
    if len(run.samples) >= verdict.SAMPLES_MIN:
        verdict.table(run.samples)
        run.failures += verdict.grown(run.samples)
    if run.restarted is not None:
        verdict.totals(run.written, run.end, run.peak, run.samples[-1]["cpu_seconds"])
        print(f"started again with the ledger of {run.files:,} files: {run.restarted} messages")
    for fault, count in run.faults.items():
        print(f"fault, {count} times: {fault}")
    for (level, kind), count in sorted(run.complaints.items()):
        print(f"{level}, {count} times: {kind}")
        if level == "ERROR":
            run.failures.append("the service logged an ERROR")
    if not run.complaints:
        print("no line of WARN or ERROR")
    print(f"{results}/samples.csv, {results}/endurance.svg")
    for failure in run.failures:
        print(f"FAILED: {failure}")
    sys.exit(1 if run.failures else 0)


if __name__ == "__main__":
    observe.run(main)
