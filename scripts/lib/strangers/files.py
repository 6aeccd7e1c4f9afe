"""Writers that need no server: rsync, git, archives, SQLite, editors."""

import os
import pty
import select
import shutil
import sqlite3
import subprocess
import time

from measure import Failure
from tools import COMMAND_TIMEOUT, Source, call, need, rounds

RSYNC_MODES = {
    "plain": [],
    "inplace": ["--inplace", "--no-whole-file"],
    "append-verify": ["--append-verify"],
    "delay-updates": ["--delay-updates"],
    "partial-dir": ["--partial", "--partial-dir=.rsync-partial"],
    "backup": ["--backup", "--suffix=~"],
    "delete": ["--delete", "--delete-after"],
    "sparse": ["--sparse"],
    "preallocate": ["--preallocate"],
    "checksum-no-times": ["--checksum", "--no-times"],
}


def rsync(place, work, seconds):
    """In ten modes, each into a directory of its own."""
    need("rsync")
    source = Source(f"{work}/source")
    for _ in rounds(seconds):
        source.change()
        for mode, options in RSYNC_MODES.items():
            call("rsync", "-a", *options, f"{source.directory}/", f"{place}/{mode}/")


def git(place, work, seconds):
    """Commits, branches, checkouts, a clone and a repack."""
    need("git")
    repository = f"{place}/repository"
    who = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org", "-c", "gc.auto=0"]

    def do(*arguments, **more):
        return call("git", *who, *arguments, cwd=repository, **more)

    call("git", "init", "-q", "-b", "main", repository)
    source = Source(repository, count=12)
    for number in rounds(seconds):
        source.change()
        do("add", "-A")
        do("commit", "-q", "--allow-empty", "-m", f"commit {number}")
        if number % 3 == 1:
            do("checkout", "-q", "-b", f"branch-{number}", "HEAD~1")
            do("checkout", "-q", "main")
        if number % 4 == 3:
            do("gc", "-q")
    call("git", "clone", "-q", repository, f"{place}/clone")
    do("reset", "-q", "--hard", "HEAD~1")


def archives(place, work, seconds):
    """tar, unzip and 7z, each over what it unpacked before."""
    need("tar", "zip", "unzip", "7z")
    source = Source(f"{work}/source")
    for name in ("tar", "zip", "7z"):
        os.mkdir(f"{place}/{name}")
    for number in rounds(seconds):
        source.change()
        made = [f"{work}/{number}.{kind}" for kind in ("tar.gz", "zip", "7z")]
        call("tar", "czf", made[0], "-C", source.directory, ".")
        call("zip", "-qr", made[1], ".", cwd=source.directory)
        call("7z", "a", "-mx=1", made[2], ".", cwd=source.directory)
        call("tar", "xzf", made[0], "-C", f"{place}/tar")
        call("unzip", "-qo", made[1], "-d", f"{place}/zip")
        call("7z", "x", "-y", f"-o{place}/7z", made[2])


def sqlite(place, work, seconds):
    """A database with a write-ahead log, and one with a journal."""
    bases = {}
    for mode in ("WAL", "DELETE", "TRUNCATE", "PERSIST"):
        bases[mode] = sqlite3.connect(f"{place}/{mode.lower()}.db", isolation_level=None)
        bases[mode].execute(f"PRAGMA journal_mode = {mode}")
        bases[mode].execute("CREATE TABLE t (id INTEGER PRIMARY KEY, text BLOB)")
    for number in rounds(seconds):
        for base in bases.values():
            base.execute("BEGIN")
            base.executemany("INSERT INTO t (text) VALUES (randomblob(?))", [(300,)] * 20)
            base.execute("COMMIT")
            if number % 20 == 19:
                base.execute("DELETE FROM t WHERE id % 3 = 0")
                base.execute("VACUUM")
        bases["WAL"].execute("PRAGMA wal_checkpoint(PASSIVE)")
    for base in bases.values():
        base.close()


def vim(place, work, seconds):
    """Saves in each of its ways, with and without backups and swap files."""
    need("vim")
    for number in rounds(seconds):
        for copy in ("yes", "no", "auto"):
            for backup in ("backup", "nobackup", "nowritebackup"):
                path = f"{place}/{copy}-{backup}.txt"
                edit = f"normal! oline {number}"
                commands = [f"set bkc={copy} {backup}", edit, "wq"]
                spelled = (word for command in commands for word in ("-c", command))
                call("vim", "-es", "-u", "NONE", "-i", "NONE", path, *spelled)


def nano(place, work, seconds):
    """At a terminal, because it has no other way."""
    need("nano")
    for number in rounds(seconds):
        for options in ([], ["--backup"], ["--locking"]):
            path = f"{place}/{''.join(options) or 'plain'}.txt"
            # Writes it out under its own name, and leaves.
            keys = [f"line {number}\r".encode(), b"\x0f", b"\r", b"\x18"]
            at_terminal(["nano", "--ignorercfiles", *options, path], keys)


def at_terminal(command, keys):
    """Presses keys, each once the program has drawn what the last one did."""
    ours, its = pty.openpty()
    environment = os.environ | {"TERM": "xterm"}
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment, start_new_session=True)
    os.close(its)
    deadline = time.monotonic() + COMMAND_TIMEOUT
    try:
        for key in [b"", *keys]:
            os.write(ours, key)
            while select.select([ours], [], [], 0.1)[0]:
                try:
                    os.read(ours, 1 << 16)
                except OSError:
                    break  # it has closed its end
        process.wait(max(1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise Failure(f"{command[0]} did not end") from None
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def install(place, work, seconds):
    """cp, install, ln, mv and sed -i, as scripts use them."""
    source = Source(f"{work}/source")
    for _ in rounds(seconds):
        source.change()
        call("cp", "-a", "--reflink=auto", "--backup=numbered", f"{source.directory}/.", place)
        call("cp", "-r", "--remove-destination", source.directory, f"{place}/copy")
        for number in range(0, source.count, 5):
            path = source.path(number)
            if os.path.exists(path):
                call("install", "-D", path, f"{place}/installed/{number}")
                call("sed", "-i", "1s/^/x/", f"{place}/installed/{number}")
        shutil.rmtree(f"{place}/copy")


WRITERS = {
    "rsync": rsync,
    "git": git,
    "archives": archives,
    "sqlite": sqlite,
    "vim": vim,
    "nano": nano,
    "coreutils": install,
}
