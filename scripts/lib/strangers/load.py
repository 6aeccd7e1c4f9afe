"""Programs that test file systems: fio, dbench, stress-ng."""

import os
import signal
import subprocess

from measure import Failure, Skip
from tools import call, need

DBENCH_LOAD = ("/usr/share/dbench/client.txt", "/usr/share/dbench/client.txt.gz")
# What changes files below a directory and leaves the rest of the machine alone.
STRESSORS = (
    "access chmod copy-file dentry dir fallocate fiemap filename fpunch hdd link "
    "open readahead rename seek symlink sync-file touch utime xattr"
).split()
# No more than it allows to ask for; its own sizes are a share of the disk.
STRESS_BYTES = {"copy-file": "128m"} | dict.fromkeys(("fallocate", "fiemap", "hdd", "readahead", "sync-file"), "4m")


def fio(place, work, seconds):
    """Writes what it verifies itself, by each way to write."""
    need("fio")
    for engine in ("psync", "mmap", "libaio", "io_uring"):
        call(
            "fio", f"--directory={place}", f"--ioengine={engine}", f"--name={engine}", "--rw=randwrite", "--bs=4k",
            "--size=4m", "--numjobs=3", "--verify=crc32c", "--do_verify=1", f"--loops={max(1, seconds // 2)}",
            f"--runtime={max(1, seconds // 4)}", "--fallocate=none", "--group_reporting",
            cwd=work,
        )  # fmt: skip


def dbench(place, work, seconds):
    """Killed in the end, because it would delete its files."""
    need("dbench")
    load = next((path for path in DBENCH_LOAD if os.path.exists(path)), None)
    if not load:
        raise Skip("dbench has brought no load")
    command = ["dbench", "-D", place, "-t", "3600", "-c", load, "3"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        process.wait(seconds)
        raise Failure(f"dbench ended with {process.returncode}")
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stress(place, work, seconds):
    """Its stressors of file systems, one after the other; what they make stays."""
    need("stress-ng")
    each = max(1, seconds // 4)
    for name in STRESSORS:
        small = [f"--{name}-bytes", STRESS_BYTES[name]] if name in STRESS_BYTES else []
        # 3 and 4: this kernel or file system does not have what it needs.
        call(
            "stress-ng", f"--{name}", "1", *small, "-t", str(each), "--temp-path", place, "--keep-files", "-q",
            status=(0, 2, 3, 4), cwd=work,
        )  # fmt: skip


WRITERS = {"fio": fio, "dbench": dbench, "stress-ng": stress}
