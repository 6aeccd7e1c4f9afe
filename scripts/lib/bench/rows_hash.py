"""Rows 1 to 7, 12 and 13: files that are there, through `scan` and through other programs."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import tempfile

import corpus
from measure import Failure, Job, Skip, in_turns, output_of
from report import Comparison

HASH = re.compile(r"\b[0-9a-f]{64}\b")
DONE = re.compile(r"done: (\d+) files and (\d+) bytes")
DROP_CACHES = "/proc/sys/vm/drop_caches"
IN_MEMORY = "/dev/shm"


class HashRows:
    def __init__(self, bench):
        self.bench = bench
        large = 16 << 20 if bench.quick else 256 << 20
        small = 5_000 if bench.quick else 100_000
        self.large = lambda: corpus.make(bench.corpus, 8, large)
        self.small = lambda: corpus.make(bench.corpus, small, 1024)
        self.checked = {}

    def ours(self, files, cores, engine=None, name="ours"):
        def all_of_them(said):
            done = DONE.search(said)
            if not done or (int(done[1]), int(done[2])) != (files.files, files.total):
                raise Failure(f"{name} did not read every byte: {said[-300:]}")

        command = [self.bench.binary, "scan", files.path, "--output", "none", "--workers", str(cores)]
        return Job(name, command + (["--read-engine", engine] if engine else []), cores, check=all_of_them)

    def hashes(self, files):
        """What is right, by the service itself; each rival has to agree with it."""
        if files.path not in self.checked:
            command = [self.bench.binary, "scan", files.path, "--output", "stdout"]
            said = output_of(Job("ours", command, 1))
            self.checked[files.path] = {json.loads(line)["sha256_hash"] for line in said.splitlines()}
            if len(self.checked[files.path]) != files.files:
                raise Failure(f"{len(self.checked[files.path])} different hashes of {files}")
        return self.checked[files.path]

    def in_turns(self, files, jobs, rounds=None):
        """One run of each that is not timed warms the caches and shows that all compute the same."""
        for job in jobs:
            if job.name.startswith("ours"):
                output_of(job)
            elif job.name.startswith("floor"):
                said = output_of(job)
                if f"files={files.files} bytes={files.total} " not in said:
                    raise Failure(f"the {job.name} did not read every byte: {said}")
            elif set(HASH.findall(output_of(job))) != self.hashes(files):
                raise Failure(f"{job.name} computed other hashes than the service")
        return in_turns(jobs, rounds or self.bench.rounds)

    def compare(self, row, files, cores, jobs, unit, bar=None, rounds=None):
        runs = self.in_turns(files, jobs, rounds)
        amount = files.files if unit == "files/s" else files.total / 1e6
        work = f"{files}, {'1 core' if cores == 1 else f'{cores} cores'}"
        ours = jobs[0].name
        return [Comparison.of(row, work, job.name, unit, amount, runs[ours], runs[job.name], bar) for job in jobs[1:]]

    def row_1(self):
        files = self.large()
        rival = Job("openssl", ["openssl", "dgst", "-sha256", *files.paths], 1)
        return self.compare(1, files, 1, [self.ours(files, 1), rival], "MB/s", 1.7)

    def row_2(self):
        files = self.large()
        rival = xargs("openssl", "openssl dgst -sha256", files, 2)
        return self.compare(2, files, 2, [self.ours(files, 2), rival], "MB/s", 1.6)

    def row_3(self):
        files = self.small()
        rival = xargs("openssl", "openssl dgst -sha256", files, 2)
        return self.compare(3, files, 2, [self.ours(files, 2), rival], "files/s", 3)

    def row_4(self):
        files = self.small()
        bare = [self.bench.bench_target("floor"), files.path, "2"]
        floors = [Job("floor", bare, 2), Job("floor with checks and hashes", [*bare, "hashed"], 2)]
        runs = self.in_turns(files, [self.ours(files, 2), *floors])
        return [
            Comparison.of(4, f"{files}, 2 cores", floor.name, "files/s", files.files, runs["ours"], runs[floor.name], bar)
            for floor, bar in zip(floors, (0.6, None))
        ]

    def engines(self, files):
        return [self.ours(files, 2, "io_uring", "ours, io_uring"), self.ours(files, 2, "blocking", "ours, blocking")]

    def row_5(self):
        files = self.small()
        return self.compare(5, files, 2, self.engines(files), "files/s", 1.0)

    def row_6(self):
        files = self.large()
        dd = 'for file; do dd if="$file" of=/dev/null bs=1M status=none; done'
        jobs = [*self.engines(files), Job("dd bs=1M", ["sh", "-c", dd, "dd", *files.paths], 2)]
        runs = in_turns(jobs, self.bench.rounds, lambda: self.make_cold(6, files))
        uring = runs[jobs[0].name]
        work, amount = f"{files}, cold, 2 cores", files.total / 1e6
        return [
            Comparison.of(6, work, jobs[1].name, "MB/s", amount, uring, runs[jobs[1].name], 1.2),
            Comparison.of(6, work, jobs[2].name, "MB/s", amount, uring, runs[jobs[2].name]),
        ]

    def row_12(self):
        files = self.small()
        jobs = [self.ours(files, 2), xargs("openssl", "openssl dgst -sha256", files, 2)]
        jobs.append(self.ours(files, 2, "blocking", "ours, blocking"))
        runs = in_turns(jobs, self.bench.long_rounds, lambda: self.make_cold(12, files, names_too=True))
        work, ours = f"{files}, cold, 2 cores", runs["ours"]
        return [
            Comparison.of(12, work, job.name, "files/s", files.files, ours, runs[job.name], bar)
            for job, bar in zip(jobs[1:], (5, None))
        ]

    def row_13(self):
        """A file system that a ring cannot read inline."""
        if file_system(IN_MEMORY) != "tmpfs":
            raise Skip(f"{IN_MEMORY} is no tmpfs")
        files = self.small()
        with tempfile.TemporaryDirectory(dir=IN_MEMORY) as copy:
            there = dataclasses.replace(files, path=shutil.copytree(files.path, f"{copy}/files"))
            jobs = [self.ours(there, 2), self.ours(there, 2, "blocking", "ours, blocking")]
            jobs.append(self.ours(there, 2, "io_uring", "ours, io_uring"))
            runs = self.in_turns(there, jobs)
        work = f"{files} on a tmpfs, 2 cores"
        return [
            Comparison.of(13, work, job.name, "files/s", files.files, runs["ours"], runs[job.name], 0.98)
            for job in jobs[1:]
        ]

    def make_cold(self, row, files, names_too=False):
        # A quick run leaves the machine's caches to those who use it.
        everything = not self.bench.quick and drop_caches()
        if names_too and not everything:
            raise Skip("names and inodes stay in the kernel's caches: not root, or a quick run")
        if not everything:
            for path in files.paths:
                file = os.open(path, os.O_RDONLY)
                os.fsync(file)
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(file)
        if names_too:
            return  # to look would bring the inodes back
        look = ["fincore", "-b", "-n", "-r", "-o", "RES", *files.paths]
        cached = subprocess.run(look, capture_output=True, text=True, check=True)
        left = sum(map(int, cached.stdout.split()))
        if left > files.total / 100:
            raise Skip(f"{left} bytes of the files cannot be taken out of the page cache")
        self.bench.note(
            f"row {row}: before each run all caches of this machine were dropped; a host's below it were not"
            if everything
            else f"row {row}: before each run the files alone were taken out of the page cache"
        )

    def row_7(self):
        lines = []
        for files, cores, unit in ((self.large(), 1, "MB/s"), (self.large(), 2, "MB/s"), (self.small(), 2, "files/s")):
            rclone = ["rclone", "hashsum", "sha256", files.path, "--checkers", str(cores), "--config", "/dev/null"]
            hashdeep = ["hashdeep", "-r", "-c", "sha256", "-j", str(cores), files.path]
            jobs = [
                self.ours(files, cores),
                # Again, so that all of them can stand in one plot.
                xargs("openssl", "openssl dgst -sha256", files, cores),
                xargs("sha256sum", "sha256sum", files, cores),
                Job("rclone", rclone, cores, env={"GOMAXPROCS": str(cores)}),
                Job("hashdeep", hashdeep, cores),
                xargs("rhash", "rhash --sha256", files, cores),
            ]
            lines += self.compare(7, files, cores, jobs, unit, rounds=self.bench.long_rounds)
        return lines


def file_system(path):
    look = ["stat", "--file-system", "--format=%T", path]
    return subprocess.run(look, capture_output=True, text=True, check=True).stdout.strip()


def drop_caches():
    os.sync()
    try:
        with open(DROP_CACHES, "w") as file:
            file.write("3\n")
    except OSError:
        return False
    return True


def xargs(name, command, files, processes):
    """As many processes as we have workers, each with its share of a few files or 1,000 of many."""
    share = min(1000, -(-files.files // processes))
    side_by_side, one_by_one = (["sh", "-c", f"ls | xargs -P{p} -n{share} {command}"] for p in (processes, 1))
    return Job(name, side_by_side, processes, files.path, one_by_one=one_by_one)
