#!/usr/bin/python3
"""Watchman as the watcher, as a rival: its subscription through pywatchman, hashlib, pika with a window of confirms.

usage: watchman.py DIR AMQP_URL STATE_DIR
"""

import os
import subprocess
import sys
import time

import pywatchman
from window import Pipeline, ready


def main():
    directory, url, state = os.path.realpath(sys.argv[1]), sys.argv[2], sys.argv[3]
    socket = f"{state}/watchman.sock"
    subprocess.Popen(
        ["watchman", "--foreground", f"--sockname={socket}", f"--statefile={state}/state", f"--logfile={state}/log",
         f"--pidfile={state}/pid"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not os.path.exists(socket):
        time.sleep(0.05)
    client, pipeline = pywatchman.client(sockpath=socket, timeout=3600), Pipeline(url)
    client.query("watch", directory)
    clock = client.query("clock", directory, {"sync_timeout": 60_000})["clock"]
    client.query(
        "subscribe", directory, "files", {"expression": ["type", "f"], "fields": ["name", "exists"], "since": clock}
    )
    ready()
    while True:
        client.receive()
        for answer in client.getSubscription("files") or ():
            for file in answer.get("files", ()):
                if file["exists"]:
                    pipeline.add(f"{directory}/{file['name']}")


main()
