"""scripts/strangers: other people's writers below a watched directory, on each file system, and one oracle."""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import time

import files
import load
import network
import observe
from judge import Messages, Verdict
from measure import Failure, Skip
from observe import RESCAN_PAUSE, Observed, positive, say
from tools import made
from volumes import VOLUMES

WRITERS = files.WRITERS | network.WRITERS | load.WRITERS
# A service that has confirmed nothing for so long is at rest.
REST_SECONDS = 1
# A rescan may be put off, and takes its time.
RIGHT_WITHIN = RESCAN_PAUSE + 15


class Volume:
    """One file system with the service on it."""

    def __init__(self, name, at, work, broker, program, options):
        self.name, self.options, self.broker, self.program = name, options, broker, program
        self.work, self.data = work, made(at, "data")
        # Writers behind a server may be other users.
        os.chmod(self.data, 0o755)
        self.failed = []

    def play(self, writers):
        state = ["--state-dir", f"{self.work}/state", "--recursive", "--ignore-partial=false"]
        with (
            Messages(self.broker, f"strangers-{self.name}") as messages,
            Observed(self.program, self.data, self.broker.url, self.work, *state) as service,
        ):
            service.ready()
            for name in writers:
                self.one(name, service, messages)
            self.stop(service, messages)

    def one(self, name, service, messages):
        place, work = made(self.data, name), made(self.work, f"of-{name}")
        before, repeats, alike, began = messages.count, len(messages.repeats), messages.alike, time.monotonic()
        try:
            WRITERS[name](place, work, self.options.seconds)
            why = None
        except (Skip, Failure, OSError, subprocess.TimeoutExpired) as end:
            why = end
        if isinstance(why, Skip):
            print(f"{name:10} {self.name:18} SKIPPED: {why}", flush=True)
            return
        wrote = time.monotonic() - began
        verdict = self.settle(place, service, messages)
        came, again = messages.count - before, len(messages.repeats) - repeats
        right = not (verdict.faults or again or why)
        print(
            f"{name:10} {self.name:18} files={verdict.files} messages={came} repeats={again} "
            f"alike={messages.alike - alike} "
            f"wrong={len(verdict.faults)} seconds={wrote:.1f} {'right' if right else 'FAILED'}",
            flush=True,
        )
        said = verdict.shown() + [f"repeated: {os.fsdecode(path)}" for path in messages.repeats[repeats:][:3]]
        for line in said + ([f"the writer: {why}"] if why else []):
            print(f"    {line}", flush=True)
        if not right:
            self.failed.append(f"{name} on {self.name}")
        shutil.rmtree(work, ignore_errors=True)

    def settle(self, place, service, messages):
        """The verdict once all is right, or once time is up."""
        service.come_to_rest(REST_SECONDS, 120)
        deadline = time.monotonic() + RIGHT_WITHIN
        while True:
            messages.read()
            verdict = Verdict(place, messages)
            if not verdict.faults or time.monotonic() > deadline:
                return verdict

    def stop(self, service, messages):
        service.stop()
        messages.read()
        errors = [kind for level, kind in service.complaints() if level == "ERROR"]
        for kind in errors:
            print(f"{self.name}: the service logged an ERROR: {kind}", flush=True)
        if errors:
            self.failed.append(f"errors on {self.name}")


def arguments():
    parser = argparse.ArgumentParser(
        prog="scripts/strangers",
        usage="scripts/strangers [--only WRITER] [--fs NAME] [--seconds N] [--directory DIR]\n--help says more",
        allow_abbrev=False,
    )
    parser.add_argument("--only", action="append", choices=WRITERS)
    parser.add_argument("--fs", action="append", choices=VOLUMES)
    parser.add_argument("--seconds", type=positive, default=8)
    return observe.parsed(parser)


def main():
    options = arguments()
    program = observe.binary()
    failed = []
    with observe.private_broker("strangers", options.directory) as (work, broker):
        # Servers of other users have to reach what is in it.
        os.chmod(work, 0o755)
        for name in options.fs or VOLUMES:
            try:
                failed += on_volume(name, made(work, name), broker, program, options)
            except Skip as why:
                print(f"{name}: SKIPPED: {why}", flush=True)
            except Failure as failure:
                print(f"{name}: FAILED: {failure}", flush=True)
                failed.append(name)
    for what in failed:
        print(f"FAILED: {what}")
    sys.exit(1 if failed else 0)


def on_volume(name, work, broker, program, options):
    with contextlib.ExitStack() as stack:
        ground = made(work, "ground")
        at = stack.enter_context(VOLUMES[name](ground))
        say(f"{name}")
        volume = Volume(name, at, work, broker, program, options)
        volume.play(options.only or WRITERS)
        return volume.failed


if __name__ == "__main__":
    observe.run(main)
