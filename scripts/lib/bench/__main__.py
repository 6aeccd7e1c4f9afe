"""scripts/bench: the rows in their order, and what they came to."""

import argparse
import contextlib
import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback

import corpus
import plots
import report
import rivals
from broker import Broker
from measure import CORES, Failure, Skip
from rows_hash import HashRows
from rows_paced import PacedRows
from rows_quorum import QuorumRows
from rows_watch import WatchRows


class Bench:
    """What the rows share."""

    def __init__(self, options, metadata, stack):
        self.quick = options.quick
        self.rounds = options.rounds or (2 if self.quick else 5)
        # For what takes minutes.
        self.long_rounds = min(self.rounds, 3)
        self.only = options.only
        self.results = f"{metadata['target_directory']}/bench"
        # Real, as it stands in the messages.
        self.corpus = os.path.realpath(options.corpus or f"{self.results}/corpus")
        self.binary = f"{metadata['target_directory']}/release/apollonia-ingestor"
        self.targets = [target for package in metadata["packages"] for target in package["targets"]]
        self.notes = []
        self._stack = stack
        self._broker = None

    def broker(self):
        if not self._broker:
            say("starting a private RabbitMQ")
            self._broker = self._stack.enter_context(Broker())
            self._broker.wait_until_it_serves()
        return self._broker

    def bench_target(self, name):
        """The executable of a bench target."""
        if not any(target["name"] == name and "bench" in target["kind"] for target in self.targets):
            raise Skip(f"there is no bench target `{name}`")
        built = cargo("bench", "--locked", "--bench", name, "--no-run", "--message-format=json")
        for line in built.splitlines():
            artifact = json.loads(line)
            if artifact.get("target", {}).get("name") == name and artifact.get("executable"):
                return artifact["executable"]
        raise Failure(f"cargo built no executable for the bench target `{name}`")

    def note(self, text):
        if text not in self.notes:
            self.notes.append(text)
            say(text)


def say(text):
    print(f"== {text}", file=sys.stderr, flush=True)


def cargo(*arguments):
    done = subprocess.run(["cargo", *arguments], cwd=corpus.ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"error: cargo {arguments[0]} failed; the lines above say why")
    return done.stdout


def arguments(rows):
    def row_list(text):
        chosen = text.split(",")
        for row in chosen:
            if row not in map(str, rows):
                raise argparse.ArgumentTypeError(f"{row!r} is no row")
        return {int(row) for row in chosen}

    def positive(text):
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
        return int(text)

    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        usage="scripts/bench [--quick] [--rounds N] [--only ROW,...] [--corpus DIR] [--rivals]\n--help says more",
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=positive)
    parser.add_argument("--only", type=row_list, default=set(rows))
    parser.add_argument("--corpus")
    parser.add_argument("--rivals", action="store_true")
    return parser.parse_args()


def main():
    options = arguments(range(1, 16))
    metadata = json.loads(cargo("metadata", "--locked", "--no-deps", "--format-version", "1"))
    # An orderly end for every process and directory, by whatever signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.ExitStack() as stack:
        bench = Bench(options, metadata, stack)
        os.makedirs(bench.corpus, exist_ok=True)
        for left_over in glob.glob(f"{glob.escape(bench.corpus)}/watched-*"):
            shutil.rmtree(left_over)
        about = corpus.machine(bench.corpus, CORES)
        about["rounds"] = f"{bench.rounds}, of rows 7 and 8 {bench.long_rounds}"
        if bench.quick:
            about["this is no measurement"] = "a quick run, with a small corpus"
        say("building")
        cargo("build", "--release", "--locked")
        if options.rivals:
            return sys.exit(1 if rivals.run(bench) else 0)
        lines, failed = measure(bench, options.only)
    report.write(bench.results, about, lines, bench.notes)
    plots.draw(bench.results, lines)
    say(f"{bench.results}/results.md")
    sys.exit(1 if failed else 0)


def measure(bench, chosen):
    every = HashRows(bench), WatchRows(bench), PacedRows(bench), QuorumRows(bench)
    lines, failed = [], False
    for number in sorted(chosen):
        rows = next(rows for rows in every if hasattr(rows, f"row_{number}"))
        row = getattr(rows, f"row_{number}")
        say(f"row {number}")
        began = time.monotonic()
        try:
            measured = row()
        except Skip as skip:
            bench.note(f"row {number} is left out: {skip}")
            continue
        # Whatever it is, it must not cost the rows that were measured before.
        except Exception as failure:
            if not isinstance(failure, Failure):
                traceback.print_exc()
            bench.note(f"row {number} failed: {failure!r}" if not str(failure) else f"row {number} failed: {failure}")
            failed = True
            continue
        lines += measured
        # The heading once: the rows grow into the table.
        print(report.table(measured, heading=len(lines) == len(measured)), end="", flush=True)
        say(f"row {number} took {time.monotonic() - began:.0f} s")
    return lines, failed


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
