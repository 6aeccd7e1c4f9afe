#!/usr/bin/python3
"""What this service replaces, written for scripts/bench: a Python script that does one thing after the other.

usage: scripts/predecessor.py DIR AMQP_URL

For each file that appears in DIR: two hashes, each by a read of its own, stat, a listing of the directory for the
neighbors, and one persistent message to the fanout exchange `apollonia`, confirmed before the next. Like the program
that ran in production it handles an event at once, and takes those that follow on the same path within half a second
for the same; unlike it, it waits for confirms, as the guarantee it stands beside demands. It needs Debian's
python3-inotify, python3-pika and python3-xxhash.
"""

import hashlib
import json
import os
import sys
import time
from datetime import datetime, timezone

import inotify.adapters
import inotify.constants
import pika
import xxhash

EXCHANGE = "apollonia"
EVENTS = ("IN_CREATE", "IN_CLOSE_WRITE", "IN_MOVED_TO")
CHUNK = 64 * 1024
NEIGHBORS = 10
COMPANIONS = ("tracklist", "tracks", "info", "readme")
# Seconds: the creation of a file and the close that follows are one change.
DEBOUNCE = 0.5


def digest(path, hasher):
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def neighbors(directory, name):
    stem = os.path.splitext(name)[0]
    same, companions, alike = [], [], []
    for other in os.listdir(directory):
        path = os.path.join(directory, other)
        if other == name or not os.path.isfile(path):
            continue
        other_stem = os.path.splitext(other)[0]
        if other_stem == stem:
            same.append(path)
        elif other_stem.lower() in COMPANIONS:
            companions.append(path)
        elif len(stem) >= 3 and other.startswith(stem[:3]):
            alike.append(path)
    return (sorted(same) + sorted(companions) + sorted(alike))[:NEIGHBORS]


def moment(seconds):
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="microseconds")


def message(directory, name, event):
    path = os.path.join(directory, name)
    stat = os.stat(path)
    return {
        "file_path": path,
        "event_type": event,
        "sha256_hash": digest(path, hashlib.sha256()),
        "xxh128_hash": digest(path, xxhash.xxh128()),
        "size": stat.st_size,
        "modified_time": moment(stat.st_mtime),
        "accessed_time": moment(stat.st_atime),
        "changed_time": moment(stat.st_ctime),
        "timestamp": moment(time.time()),
        "neighbors": neighbors(directory, name),
    }


def main():
    asked = {"-h", "--help"} & set(sys.argv)
    if asked or len(sys.argv) != 3:
        print(__doc__.strip())
        sys.exit(0 if asked else 2)
    directory = os.path.realpath(sys.argv[1])
    connection = pika.BlockingConnection(pika.URLParameters(sys.argv[2]))
    channel = connection.channel()
    channel.exchange_declare(EXCHANGE, exchange_type="fanout", durable=True)
    channel.confirm_delivery()
    persistent = pika.BasicProperties(content_type="application/json", delivery_mode=2)

    watch = inotify.adapters.Inotify()
    mask = inotify.constants.IN_CREATE | inotify.constants.IN_CLOSE_WRITE | inotify.constants.IN_MOVED_TO
    watch.add_watch(directory, mask=mask)
    print("ready", file=sys.stderr, flush=True)

    handled = {}
    for _, kinds, _, name in watch.event_gen(yield_nones=False):
        event = next((kind for kind in kinds if kind in EVENTS), None)
        now = time.monotonic()
        if event is None or now - handled.get(name, -DEBOUNCE) < DEBOUNCE:
            continue
        handled[name] = now
        try:
            body = json.dumps(message(directory, name, event)).encode()
        except OSError as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            continue
        channel.basic_publish(EXCHANGE, "file.created", body, persistent)


if __name__ == "__main__":
    main()
