"""A large directory and a large tree: starts, a burst of new files, a rescan."""

import os
import statistics
import time

import observe
from measure import Failure
from files import Flat, Tree, write
from observe import in_bytes, say

ROUNDS = 3
BURST = 50_000
# Directories of the empty tree beside the large one.
BESIDE = 100
RESCAN_SECONDS = 5
# Between two files that are written while a rescan is under way.
LIVE_PAUSE = 0.05


class Large:
    def __init__(self, scale, corpus, options):
        self.scale, self.corpus, self.options = scale, corpus, options
        self.timeout = 120 + corpus.files / 500
        self.burst = min(BURST, corpus.files)
        self.rows = []

    def row(self, what, value):
        self.rows.append((what, value))

    def measure(self):
        began = time.monotonic()
        self.corpus.make()
        say(f"{self.corpus}: made in {time.monotonic() - began:.0f} s")
        for step in (self.plain_start, self.first_start, self.next_start, self.bursts, self.rescan):
            step()

    def service(self, *more, ledger="ledger", corpus=None):
        state = ["--state-dir", f"{self.scale.work}/{ledger}"] if ledger else []
        return self.scale.service((corpus or self.corpus).root, *self.options, *state, *more)

    def plain_start(self):
        say("start without a ledger")
        with self.service("--catch-up", "none", ledger=None) as service:
            self.row("no ledger, no catch-up: exec to `ready`", seconds(service.ready(self.timeout)))
            self.row("… resident memory then", in_bytes(service.memory("VmRSS")))
            watches = service.watches()
            self.row("… inotify watches", f"{watches:,}")
            self.scale.check("watches", watches, self.corpus.directories + 1)
            service.come_to_rest(1, 60)
            self.scale.check("messages of a start without catch-up", service.confirmed(), 0)
            self.scale.stop(service)

    def first_start(self):
        say("start with an empty ledger")
        files = self.corpus.files
        with self.service() as service:
            service.ready(self.timeout)
            service.until("the last confirm", lambda: service.confirmed() >= files, self.timeout)
            took = time.time() - service.exec_time
            service.come_to_rest(1, self.timeout)
            metrics = service.metrics()
            self.row("empty ledger: exec to the last confirm", seconds(took))
            self.row("… files/s", f"{files / took:,.0f}")
            self.row("… peak memory", in_bytes(service.memory("VmHWM")))
            self.row("… overflows", f"{observe.overflows(metrics)}")
            self.scale.check("messages of the first start", int(metrics["apollonia_messages_confirmed_total"]), files)
            self.scale.check("rows in the ledger", int(metrics["apollonia_ledger_rows"]), files)
            self.scale.stop(service)

    def next_start(self):
        say("start with the full ledger")
        with self.service("--log-level", "DEBUG") as service:
            self.row("full ledger: exec to `ready`", seconds(service.ready(self.timeout)))
            over = self.scale.rescanned(service, self.timeout)
            self.row("… exec to the end of the rescan", seconds(over - service.exec_time))
            service.come_to_rest(1, self.timeout)
            metrics = service.metrics()
            messages = int(metrics["apollonia_messages_confirmed_total"])
            self.row("… messages", f"{messages}")
            self.row("… resident memory", in_bytes(service.memory("VmRSS")))
            self.row("… peak memory", in_bytes(service.memory("VmHWM")))
            self.row("… size of the ledger", in_bytes(metrics["apollonia_ledger_bytes"]))
            self.scale.check("messages of the next start", messages, 0)
            self.scale.loaded(service, self.corpus.files)
            self.scale.stop(service)

    def bursts(self):
        """The same into the full one and into an empty one, in turns."""
        corpus, beside = self.corpus, self.beside()
        with self.service() as full, self.service(ledger="ledger-beside", corpus=beside) as empty:
            full.ready(self.timeout)
            empty.ready()
            for service in (full, empty):
                service.come_to_rest(2, self.timeout)
            ours, theirs = [], []
            for turn in range(1, ROUNDS + 1):
                say(f"{self.burst:,} new files, turn {turn} of {ROUNDS}")
                ours.append(self.one_burst(full, corpus, corpus.files))
                theirs.append(self.one_burst(empty, beside, 0))
            self.scale.stop(full)
            self.scale.stop(empty)
        for what, key, written in (
            ("files/s to the confirm", "rate", ",.0f"),
            ("written a second", "written", ",.0f"),
            ("processor time a message, µs", "cpu", ".1f"),
        ):
            medians = [statistics.median(one[key] for one in turns) for turns in (ours, theirs)]
            each = [" ".join(f"{one[key]:{written}}" for one in turns) for turns in (ours, theirs)]
            self.row(f"{self.burst:,} new files into it: {what}", f"{medians[0]:{written}} ({each[0]})")
            self.row("… into an empty one", f"{medians[1]:{written}} ({each[1]})")
            if key != "written":
                self.row("… ratio", f"{medians[0] / medians[1]:.2f}")
        lost = [" ".join(str(one["overflows"]) for one in turns) for turns in (ours, theirs)]
        self.row("… overflows, and into the empty one", f"{lost[0]}; {lost[1]}")

    def beside(self):
        """An empty one of the same kind, with a few directories where it has any."""
        root = f"{self.scale.work}/empty"
        corpus = Tree(root, 0, BESIDE) if self.corpus.directories else Flat(root, 0)
        corpus.make_directories()
        return corpus

    def one_burst(self, service, corpus, present):
        before, ticks = service.metrics(), service.cpu()
        rows = int(before["apollonia_ledger_rows"])
        numbers = range(present, present + self.burst)
        confirmed = int(before["apollonia_messages_confirmed_total"])
        began = time.monotonic()
        corpus.write(numbers)
        written = time.monotonic() - began
        service.until("the last confirm", lambda: service.confirmed() >= confirmed + self.burst, self.timeout)
        took, cpu = time.monotonic() - began, service.cpu() - ticks
        lost = observe.overflows(service.metrics()) - observe.overflows(before)
        self.scale.rest(service, lost, self.timeout)
        after = service.metrics()
        messages = int(after["apollonia_messages_confirmed_total"]) - confirmed
        self.scale.check("messages of a burst", messages, self.burst)
        self.scale.check("rows in the ledger after it", int(after["apollonia_ledger_rows"]) - rows, self.burst)
        say(f"{self.burst / took:,.0f} files/s ({self.burst / written:,.0f} written a second), {lost} overflows")
        self.scale.move_out(service, corpus, numbers, self.timeout)
        self.scale.check("rows in the ledger without it", int(service.metrics()["apollonia_ledger_rows"]), rows)
        return {"rate": self.burst / took, "written": self.burst / written, "cpu": cpu / self.burst * 1e6, "overflows": lost}

    def rescan(self):
        say("a rescan of all of it")
        with self.service("--log-level", "DEBUG", "--rescan-seconds", str(RESCAN_SECONDS)) as service:
            service.ready(self.timeout)
            first = self.scale.rescanned(service, self.timeout)

            def begun():
                return service.metrics()['apollonia_rescans_total{cause="timer"}'] >= 1

            service.until("the rescan", begun, self.timeout, 0.002)
            # One that is due while the first is under way begins after it.
            began = max(time.time(), first)
            closed = {}
            while (over := self.scale.rescan_times(service)) and len(over) < 2:
                if time.time() > began + self.timeout or not service.runs():
                    raise Failure(f"the rescan did not end: {service.said()[-1000:]}")
                path = self.corpus.path(self.corpus.files + len(closed))
                closed[path] = time.time()
                write(path, b"%d live\n" % len(closed))
                time.sleep(LIVE_PAUSE)
            service.until("the live files", lambda: service.confirmed() >= len(closed), self.timeout)
            confirms = {
                line["path"]: observe.moment(line["timestamp"])
                for line in service.log_lines()
                if line["message"] == "confirmed"
            }
            self.row("rescan of the whole, by the timer", seconds(over[1] - began))
            if not self.scale.check("paths of live files", set(confirms), set(closed)):
                return
            waited = [confirms[path] - when for path, when in closed.items()]
            self.row("… files written meanwhile", f"{len(waited):,}")
            self.row("… close(2) to confirm of these, median", milliseconds(statistics.median(waited)))
            self.row("… the longest", milliseconds(max(waited)))
            self.scale.stop(service)


def seconds(number):
    return f"{number:,.2f} s"


def milliseconds(number):
    return f"{number * 1e3:,.1f} ms"
