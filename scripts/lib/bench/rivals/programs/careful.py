#!/usr/bin/python3
"""What a careful engineer writes in an afternoon, as a rival: inotify, hashlib, pika with a window of confirms.

usage: careful.py DIR AMQP_URL
"""

import os
import sys

from inotify_simple import INotify, flags
from window import Pipeline, ready


def main():
    directory, url = os.path.realpath(sys.argv[1]), sys.argv[2]
    pipeline, inotify = Pipeline(url), INotify()
    inotify.add_watch(directory, flags.CLOSE_WRITE | flags.MOVED_TO)
    ready()
    while True:
        for event in inotify.read():
            if event.mask & flags.Q_OVERFLOW:
                for entry in os.scandir(directory):
                    if entry.is_file(follow_symlinks=False):
                        pipeline.add(entry.path)
            elif event.name:
                pipeline.add(f"{directory}/{event.name}")


main()
