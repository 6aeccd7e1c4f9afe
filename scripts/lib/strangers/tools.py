"""What writers have in common: commands, time, servers, and files to write."""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import time

from measure import Failure, Skip

# A command that takes longer hangs.
COMMAND_TIMEOUT = 120


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            raise Skip(f"{program} is not here")


def call(*command, status=(0,), **more):
    """Runs a command to its end."""
    more.setdefault("stdin", subprocess.DEVNULL)
    done = subprocess.run(command, capture_output=True, timeout=COMMAND_TIMEOUT, **more)
    if done.returncode not in status:
        said = (done.stderr or done.stdout).decode(errors="replace")
        name = " ".join(map(str, command))[:120]
        raise Failure(f"{name} ended with {done.returncode}: {' '.join(said.split())[-300:]}")
    return done.stdout.decode(errors="replace")


def rounds(seconds):
    """Numbers from 0 on until the time is over, at least two."""
    end, number = time.monotonic() + seconds, 0
    while number < 2 or time.monotonic() < end:
        yield number
        number += 1


@contextlib.contextmanager
def server(*command, port=None, **more):
    """A process that serves at this port while the context lasts."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # smbd ends its whole process group.
        start_new_session=True,
        **more,
    )
    try:
        if port:
            until(f"{command[0]} at port {port}", lambda: answers(port), process)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(what, enough, process=None, timeout=60):
    deadline = time.monotonic() + timeout
    while not enough():
        if process and process.poll() is not None:
            raise Failure(f"{what} did not come: the process has ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise Failure(f"{what} did not come within {timeout} s")
        time.sleep(0.05)


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def made(directory, name):
    path = f"{directory}/{name}"
    os.mkdir(path)
    return path


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Source:
    """A tree that changes from round to round, outside of what is watched."""

    SIZES = (0, 10, 4096, 100_000, 1_500_000)

    def __init__(self, directory, seed=1, count=30):
        self.directory, self.random, self.count = directory, random.Random(seed), count
        os.makedirs(directory, exist_ok=True)

    def path(self, number):
        sub = f"{self.directory}/d{number % 4}"
        os.makedirs(sub, exist_ok=True)
        return f"{sub}/file {number:02}.txt"

    def change(self):
        """Rewrites, lengthens, removes and adds some of its files."""
        for number in range(self.count):
            path, what = self.path(number), self.random.randrange(5)
            if not os.path.exists(path) or what == 0:
                self.write(path, "wb", self.SIZES[number % len(self.SIZES)])
            elif what == 1:
                self.write(path, "ab", 500)
            elif what == 2 and number % 3 == 0:
                os.remove(path)

    def write(self, path, how, size):
        with open(path, how) as file:
            file.write(self.random.randbytes(size))
