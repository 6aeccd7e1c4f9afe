"""scripts/scale: what the size of a directory, of a tree and of a burst of renames costs, as tables in Markdown."""

import argparse
import contextlib
import sys
import tempfile
import time

import observe
from broker import Queue
from corpus import machine
from files import Flat, Tree
from large import Large
from measure import CORES, Failure
from moves import Levels, Renames, rename_directories, rename_files
from observe import RESCAN_PAUSE, Observed, positive, say

PARTS = ("flat", "tree", "renames", "levels")
# The queue keeps no more than these, the newest.
QUEUE_LENGTH = 20_000
# For the rescan itself, after that pause.
RESCAN_TIMEOUT = 15
RENAMED_DIRECTORIES = 5_000
# Files moved out before the service is waited for: their events must not fill the kernel's queue.
MOVED_AT_ONCE = 4_000
# Deeper ones Python does not remove.
LEVELS_MAX = 400


class Scale:
    """What the parts share."""

    def __init__(self, program, url, queue, work):
        self.program, self.url, self.queue, self.whole = program, url, queue, work
        self.work = None
        self.failures = []

    @contextlib.contextmanager
    def part(self, name):
        """With a directory of its own. One that fails must not cost the others."""
        self.work = tempfile.mkdtemp(prefix=f"{name}-", dir=self.whole)
        began = time.monotonic()
        try:
            yield
        except Failure as failure:
            self.fail(f"{name}: {failure}")
        say(f"{name} took {time.monotonic() - began:.0f} s")

    def service(self, directory, *more):
        # A socket for each: two may run side by side.
        own = tempfile.mkdtemp(dir=self.work)
        return Observed(self.program, directory, self.url, own, *more)

    def stop(self, service):
        returned = int(service.metrics()["apollonia_messages_returned_total"])
        self.check("messages that reached no queue", returned, 0)
        service.stop()
        for (level, kind), count in service.complaints().items():
            say(f"the service says {level}, {count} times: {kind}")
            if level == "ERROR":
                self.fail(f"the service logged an ERROR: {kind}")

    def fail(self, text):
        self.failures.append(text)
        print(f"FAILED: {text}", flush=True)

    def check(self, what, seen, expected):
        """Whether it is as it must be."""
        if seen == expected:
            return True
        if isinstance(seen, set):
            extra, missing = sorted(seen - expected)[:3], sorted(expected - seen)[:3]
            self.fail(f"{what}: {len(seen)} instead of {len(expected)}; missing {missing}, not expected {extra}")
        else:
            self.fail(f"{what}: {seen:,} instead of {expected:,}")
        return False

    def rest(self, service, lost, timeout):
        """Nothing is left to do, the rescan after lost events included."""
        service.come_to_rest(RESCAN_PAUSE + RESCAN_TIMEOUT if lost else 2, timeout)

    def move_out(self, service, corpus, numbers, timeout):
        def removed():
            return service.metrics()['apollonia_events_total{kind="removed"}']

        to = tempfile.mkdtemp(prefix="out-", dir=self.work)
        gone = removed()
        for begin in range(0, len(numbers), MOVED_AT_ONCE):
            some = numbers[begin : begin + MOVED_AT_ONCE]
            corpus.move_out(some, to)
            gone += len(some)
            service.until("the events of files moved out", lambda gone=gone: removed() >= gone, timeout)
        service.come_to_rest(2, timeout)

    def rescan_times(self, service):
        """When each rescan of the whole has ended; to be seen at DEBUG."""
        began = "rescan finished"
        return [
            observe.moment(line["timestamp"]) for line in service.log_lines() if line["message"].startswith(began)
        ]

    def rescanned(self, service, timeout):
        service.until("the end of the rescan", lambda: self.rescan_times(service), timeout)
        return self.rescan_times(service)[0]

    def loaded(self, service, files):
        if said := service.misloaded(files):
            self.fail(f"after the start {said}; there are {files}")


def table(heading, rows):
    print(f"\n| {' | '.join(heading)} |\n| --- |{' --: |' * (len(heading) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    sys.stdout.flush()


def side_by_side(columns):
    """Columns of title and rows; what one did not come to stands for the other alone."""
    longest = max((rows for _, rows in columns), key=len)
    values = [[value for _, value in rows] + ["not seen"] * (len(longest) - len(rows)) for _, rows in columns]
    return [(name, *row) for (name, _), row in zip(longest, zip(*values))]


def large(scale, options):
    columns = []
    for part in ("flat", "tree"):
        if part not in options.only:
            continue
        with scale.part(part):
            if part == "flat":
                measured = Large(scale, Flat(f"{scale.work}/data", options.files), [])
            else:
                tree = Tree(f"{scale.work}/data", options.files, options.directories)
                measured = Large(scale, tree, ["--recursive"])
            columns.append((str(measured.corpus), measured.rows))
            measured.measure()
    if columns:
        table(["", *(title for title, _ in columns)], side_by_side(columns))


def renames(scale, options):
    if "renames" not in options.only:
        return
    in_one, in_many = [], []
    with scale.part("renames-flat"):
        in_one += Renames(scale, Flat(f"{scale.work}/data", options.renames), []).measure(rename_files)
    with scale.part("renames-tree"):
        tree = Tree(f"{scale.work}/data", options.renames, min(RENAMED_DIRECTORIES, max(options.renames // 10, 2)))
        in_many += Renames(scale, tree, ["--recursive"]).measure(rename_directories)
    columns = [("of files in one directory", in_one), ("of directories", in_many)]
    table(["renames", *(title for title, _ in columns)], side_by_side(columns))


def levels(scale, options):
    if "levels" not in options.only:
        return
    with scale.part("levels"):
        measured = Levels(scale, options.levels)
        measured.measure()
    table([f"{options.levels} levels", "messages", "to the last confirm", "watches", "ledger rows"], measured.rows)


def arguments():
    def part_list(text):
        chosen = text.split(",")
        for part in chosen:
            if part not in PARTS:
                raise argparse.ArgumentTypeError(f"{part!r} is none of {', '.join(PARTS)}")
        return chosen

    parser = argparse.ArgumentParser(
        prog="scripts/scale",
        usage="scripts/scale [--files N] [--directories D] [--renames R] [--levels L] [--only PART,...] [--directory DIR]\n"
        "--help says more",
        allow_abbrev=False,
    )
    parser.add_argument("--files", type=positive, default=1_000_000)
    parser.add_argument("--directories", type=positive, default=20_000)
    parser.add_argument("--renames", type=positive, default=500_000)
    parser.add_argument("--levels", type=positive, default=100)
    parser.add_argument("--only", type=part_list, default=PARTS)
    options = observe.parsed(parser)
    if options.levels > LEVELS_MAX:
        parser.error(f"--levels must be at most {LEVELS_MAX}")
    return options


def main():
    options = arguments()
    program = observe.binary()
    bound = {"x-max-length": QUEUE_LENGTH, "x-overflow": "drop-head"}
    with observe.private_broker("scale", options.directory) as (work, broker), Queue(broker, "scale", bound) as queue:
        scale = Scale(program, broker.url, queue, work)
        about = machine(work, CORES)
        print(f"{about['processor']}, {about['memory']}, {about['kernel']}, {about['file system of the corpus']}")
        large(scale, options)
        renames(scale, options)
        levels(scale, options)
    for failure in scale.failures:
        say(f"FAILED: {failure}")
    sys.exit(1 if scale.failures else 0)


if __name__ == "__main__":
    observe.run(main)
