"""Who takes part: each as its own documentation recommends, with what it has to be installed."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass

from corpus import ROOT
from rows_watch import sha256

PROGRAMS = os.path.join(os.path.dirname(__file__), "programs")
# Their own guide calls a tenth of a second reasonable for the pause between two looks.
SR3_CONFIGURATION = """\
post_broker {url}
post_exchange apollonia
exchangeDeclare False
post_baseUrl file:/
path {directory}
sleep 0.1
identity sha512
fileEvents create,modify
logLevel error
"""


@dataclass
class Contestant:
    name: str
    # (directory, url, a directory for its own state) -> the command
    command: object
    # A message's body -> path and digest, or None for a message of another kind
    read: object
    # What the digest of a file's content is
    digest: object
    ours: bool = False
    # Files that it is given at most: it takes seconds for each hundred.
    at_most: int = 1 << 30
    environment: object = lambda state: {}


def contestants(bench):
    """Those that can be had here; who is missing is named."""
    made = [ours(bench)]
    for make in (careful, watchman, sr3, pipe, predecessor):
        try:
            made.append(make(bench))
        except (OSError, subprocess.CalledProcessError) as error:
            bench.note(f"left out, because it cannot be installed here: {make.__name__}: {error}")
    return made


def of_ours(body):
    message = json.loads(body)
    return message["file_path"], message["sha256_hash"]


def ours(bench):
    def command(directory, url, state):
        where = ["--data-dir", directory, "--amqp-url", url, "--state-dir", state, "--control-socket", f"{state}.sock"]
        # Nobody else publishes what was there before.
        return [bench.binary, "watch", *where, "--reconnect-seconds", "60", "--catch-up", "baseline"]

    return Contestant("ours", command, of_ours, sha256, ours=True)


def careful(bench):
    python = with_packages(bench, "inotify_simple")
    return Contestant(
        "careful Python",
        lambda directory, url, _: [python, "-B", f"{PROGRAMS}/careful.py", directory, url],
        of_ours,
        sha256,
    )


def watchman(bench):
    needed("watchman", "watchman", "python3-pywatchman")
    program = f"{PROGRAMS}/watchman.py"
    return Contestant(
        "Watchman + pika",
        lambda directory, url, state: ["/usr/bin/python3", "-B", program, directory, url, state],
        of_ours,
        sha256,
    )


def sr3(bench):
    with_packages(bench, "metpx-sr3", "amqp", "watchdog")

    def command(directory, url, state):
        home = f"{state}/.config/sr3"
        os.makedirs(f"{home}/watch", exist_ok=True)
        with open(f"{home}/watch/bench.conf", "w") as file:
            file.write(SR3_CONFIGURATION.format(url=url, directory=directory))
        with open(f"{home}/credentials.conf", "w") as file:
            file.write(f"{url}\n")
        return [f"{venv(bench)}/bin/sr3", "foreground", "watch/bench"]

    def read(body):
        message = json.loads(body)
        if "identity" not in message or "fileOp" in message:
            return None
        return "/" + message["relPath"].lstrip("/"), message["identity"]["value"]

    def digest(content):
        return base64.b64encode(hashlib.sha512(content).digest()).decode()

    return Contestant("Sarracenia", command, read, digest, environment=lambda state: {"HOME": state})


def pipe(_bench):
    needed("amqp-publish", "amqp-tools")
    needed("inotifywait", "inotify-tools")
    program = f"{PROGRAMS}/pipe.sh"
    return Contestant(
        "inotifywait, openssl, amqp-publish", lambda directory, url, _: [program, directory, url], of_ours, sha256, at_most=500
    )


def predecessor(_bench):
    script = f"{ROOT}/scripts/predecessor.py"
    return Contestant(
        "predecessor",
        lambda directory, url, _: ["/usr/bin/python3", "-B", script, directory, url],
        of_ours,
        sha256,
        at_most=60,
    )


def needed(program, *packages):
    if not shutil.which(program):
        subprocess.run([f"{ROOT}/scripts/lib/need", *packages], check=True, stdout=sys.stderr)


def venv(bench):
    return f"{bench.results}/rivals-venv"


def with_packages(bench, *packages):
    """The interpreter of an environment that has them beside Debian's own."""
    python = f"{venv(bench)}/bin/python"
    if not os.path.exists(python):
        needed("pip3", "python3-venv", "python3-pip")
        subprocess.run(["/usr/bin/python3", "-m", "venv", "--system-site-packages", venv(bench)], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True, stdout=sys.stderr)
    return python
