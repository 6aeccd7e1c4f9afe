"""The messages of a run, and whether the last one of each file is right."""

import hashlib
import json
import os
import stat

from broker import Queue

# After so long without a message the queue counts as read.
SILENCE = 0.2
# How a time stamp of whole seconds ends.
WHOLE_SECOND = ".000000+00:00"
SHOWN = 3


class Messages(Queue):
    """A durable queue at the exchange, and what it has got for each path."""

    def __init__(self, broker, name):
        super().__init__(broker, name)
        self.last, self.ids, self.repeats, self.count = {}, set(), [], 0
        # Repeats where time stamps are whole seconds: a file that is deleted and made again can be the same version.
        self.alike = 0

    def __exit__(self, *why):
        self.channel.cancel()
        super().__exit__(*why)

    def read(self):
        """All that have come."""
        for method, properties, body in self.channel.consume(self.name, auto_ack=True, inactivity_timeout=SILENCE):
            if method is None:
                return
            message = json.loads(body)
            # A name that is not UTF-8 stands in a header as it is.
            path = (properties.headers or {}).get("x-file-path-bytes")
            path = os.fsencode(message["file_path"]) if path is None else bytes(path)
            self.last[path] = message["sha256_hash"], message["size"]
            self.count += 1
            key = path, properties.message_id
            if key in self.ids and message["changed_time"].endswith(WHOLE_SECOND):
                self.alike += 1
            elif key in self.ids:
                self.repeats.append(path)
            self.ids.add(key)


class Verdict:
    """Of the files below one directory."""

    def __init__(self, directory, messages):
        self.files, self.faults = 0, []
        for path in files(os.fsencode(directory)):
            self.files += 1
            truth, found = content(path), messages.last.get(path)
            if found is None:
                self.faults.append(f"{os.fsdecode(path)}: no message")
            elif found != truth:
                says = f"{found[1]} bytes, {found[0][:12]}; it is {truth[1]}, {truth[0][:12]}"
                self.faults.append(f"{os.fsdecode(path)}: {says}")

    def shown(self):
        more = [f"and {len(self.faults) - SHOWN} more"] if len(self.faults) > SHOWN else []
        return self.faults[:SHOWN] + more


def files(top):
    """Regular files, and links to one below the same directory."""
    for directory, _, names in os.walk(top):
        for name in names:
            path = os.path.join(directory, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode) or (stat.S_ISLNK(mode) and leads_to_file(path, top)):
                yield path


def leads_to_file(link, top):
    target = os.path.realpath(link)
    return target.startswith(os.path.realpath(top) + b"/") and os.path.isfile(target)


def content(path):
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            size += len(piece)
    return digest.hexdigest(), size
