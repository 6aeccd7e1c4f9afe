"""The files that are measured, and the machine they are on."""

import os
import platform
import subprocess
from dataclasses import dataclass

ROOT = os.path.realpath(f"{os.path.dirname(__file__)}/../../..")


@dataclass
class Corpus:
    path: str
    files: int
    size: int

    @property
    def total(self):
        return self.files * self.size

    @property
    def paths(self):
        return [f"{self.path}/{name}" for name in sorted(os.listdir(self.path))]

    def __str__(self):
        return f"{self.files:,} files of {in_bytes(self.size)}"


def make(directory, files, size, seed=1):
    """The same files every time, written once."""
    path = f"{directory}/{files}x{size}-{seed}"
    if not os.path.isdir(path):
        os.makedirs(directory, exist_ok=True)
        script = f"{ROOT}/scripts/make-corpus"
        arguments = ["small", path, f"--files={files}", f"--bytes={size}", f"--seed={seed}"]
        subprocess.run([script, *arguments], check=True)
    return Corpus(path, files, size)


def in_bytes(size):
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} bytes"


def machine(directory, cores):
    """What a reader needs to know to place the figures."""

    def said(*command):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    cpu = dict(line.split(":", 1) for line in said("lscpu").splitlines() if ":" in line)
    flags = [name for name in ("sha_ni", "avx2", "avx512f") if name in cpu.get("Flags", "").split()]
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) / (1 << 20)
    mount = said("findmnt", "-n", "-o", "FSTYPE,SOURCE", "--target", directory)
    load = os.getloadavg()[0]
    return {
        "processor": f"{cpu['Model name'].strip()} ({', '.join(flags)}), {os.cpu_count()} cores, {len(cores)} usable",
        "memory": f"{memory:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "file system of the corpus": " on ".join(mount.split(None, 1)),
        "openssl": said("openssl", "version").removeprefix("OpenSSL ").split(" (")[0],
        "load at the start": f"{load:.2f}",
    }
