"""Renames by the thousand, and a directory many levels deep."""

import os
import shutil
import time

import observe
from files import write
from observe import say


class Renames:
    def __init__(self, scale, corpus, options):
        self.scale, self.corpus, self.options = scale, corpus, options
        self.timeout = 120 + corpus.files / 500

    def service(self, *more):
        state = ["--state-dir", f"{self.scale.work}/ledger"]
        return self.scale.service(self.corpus.root, *self.options, *state, *more)

    def measure(self, rename):
        """Figures of what `rename` does once every file has its first message."""
        files, scale = self.corpus.files, self.scale
        self.corpus.make()
        say(f"{self.corpus}: made")
        with self.service() as service:
            service.ready(self.timeout)
            service.until("the first messages", lambda: service.confirmed() >= files, self.timeout)
            scale.rest(service, observe.overflows(service.metrics()), self.timeout)
            before = service.metrics()
            scale.check("messages before the renames", int(before["apollonia_messages_confirmed_total"]), files)
            began = time.monotonic()
            renamed = rename(self.corpus)
            renaming = time.monotonic() - began
            say(f"{renamed} in {renaming:.1f} s")
            service.until("the last confirm", lambda: service.confirmed() >= 2 * files, self.timeout)
            took = time.monotonic() - began
            lost = observe.overflows(service.metrics()) - observe.overflows(before)
            scale.rest(service, lost, self.timeout)
            after = service.metrics()
            messages = int(after["apollonia_messages_confirmed_total"] - before["apollonia_messages_confirmed_total"])
            rows = int(after["apollonia_ledger_rows"])
            scale.check("messages of the renames", messages, files)
            scale.check("rows in the ledger after the renames", rows, files)
            peak = service.memory("VmHWM")
            scale.stop(service)
        with self.service("--log-level", "DEBUG") as service:
            service.ready(self.timeout)
            scale.rescanned(service, self.timeout)
            service.come_to_rest(1, self.timeout)
            again = service.confirmed()
            scale.check("messages of the start after the renames", again, 0)
            scale.loaded(service, files)
            scale.stop(service)
        return [
            ("renamed", renamed),
            ("… in", f"{renaming:.2f} s"),
            ("messages with the new paths", f"{messages:,}"),
            ("first rename to the last confirm", f"{took:.2f} s"),
            ("messages/s", f"{files / took:,.0f}"),
            ("overflows", f"{lost}"),
            ("rows in the ledger", f"{rows:,}"),
            ("peak memory", observe.in_bytes(peak)),
            ("messages of the next start", f"{again}"),
        ]


def rename_files(corpus):
    for number in range(corpus.files):
        os.rename(corpus.path(number), corpus.path(number, "-renamed"))
    return f"{corpus.files:,} files"


def rename_directories(corpus):
    for place in corpus.places:
        os.rename(place, f"{place}-renamed")
    return f"{len(corpus.places):,} directories with {corpus.files:,} files"


class Levels:
    """Files at every level; `d` for a name, so that a path holds many."""

    def __init__(self, scale, levels):
        self.scale, self.levels = scale, levels
        self.root = f"{scale.work}/levels"
        self.rows = []

    def paths(self, top):
        place = f"{self.root}/{top}"
        for level in range(self.levels):
            yield f"{place}/file"
            place += "/d"

    def measure(self):
        scale = self.scale
        os.mkdir(self.root)
        state = f"{scale.work}/ledger"
        with scale.service(self.root, "--recursive", "--state-dir", state) as service:
            service.ready()
            service.come_to_rest(1, 60)
            scale.queue.drain()
            self.step(service, "made", self.make, list(self.paths("top")), self.levels + 1)
            self.step(service, "topmost renamed", self.rename, list(self.paths("moved")), self.levels + 1)
            self.step(service, "removed", lambda: shutil.rmtree(f"{self.root}/moved"), [], 1)
            scale.stop(service)

    def make(self):
        for level, path in enumerate(self.paths("top")):
            os.mkdir(os.path.dirname(path))
            write(path, b"level %d\n" % level)

    def rename(self):
        os.rename(f"{self.root}/top", f"{self.root}/moved")

    def step(self, service, what, work, paths, watches):
        say(f"{self.levels} levels: {what}")
        confirmed = service.confirmed() + len(paths)
        began = time.monotonic()
        work()
        service.until("the last confirm", lambda: service.confirmed() >= confirmed, 120, 0.002)
        took = f"{time.monotonic() - began:.3f} s" if paths else ""
        if not paths:
            service.until("the end of the watches", lambda: service.watches() <= watches, 60)
        service.come_to_rest(2, 60)
        messages = self.scale.queue.drain()
        seen = service.watches()
        rows = int(service.metrics()["apollonia_ledger_rows"])
        self.scale.check(f"paths of messages, {what}", set(messages), set(paths))
        count = sum(len(hashes) for hashes in messages.values())
        self.scale.check(f"messages, {what}", count, len(paths))
        self.scale.check(f"watches, {what}", seen, watches)
        self.scale.check(f"rows in the ledger, {what}", rows, len(paths))
        self.rows.append((what, f"{count}", took, f"{seen}", f"{rows}"))
