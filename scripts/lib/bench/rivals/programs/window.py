"""What both Python rivals share: two threads that hash, and a publisher with a window of unconfirmed messages (pika)."""

import collections
import hashlib
import json
import os
import queue
import sys
import threading
import time

import pika

EXCHANGE = "apollonia"
CHUNK = 64 * 1024
WINDOW = 1_000
HASHING_THREADS = 2
RECONNECT_PAUSE = 0.5


class Pipeline:
    """Takes paths, hashes files, publishes messages, and publishes again after a lost connection what had no confirm."""

    def __init__(self, url):
        self.url = url
        self.paths = queue.Queue(10_000)
        self.room = threading.BoundedSemaphore(WINDOW)
        self.waiting = collections.deque()
        self.unconfirmed = collections.OrderedDict()
        self.channel = self.connection = None
        self.tag = 0
        for target in [self._hash] * HASHING_THREADS + [self._connect]:
            threading.Thread(target=target, daemon=True).start()

    def add(self, path):
        self.paths.put(path)

    def _hash(self):
        while True:
            path = self.paths.get()
            try:
                before = os.stat(path)
                digest = hashlib.sha256()
                with open(path, "rb") as file:
                    while chunk := file.read(CHUNK):
                        digest.update(chunk)
                after = os.stat(path)
            except FileNotFoundError:
                continue
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                continue  # its close will bring it
            body = {"file_path": path, "sha256_hash": digest.hexdigest(), "size": after.st_size, "mtime": after.st_mtime}
            self.room.acquire()
            self.waiting.append(json.dumps(body))
            connection = self.connection
            # One wake-up of the publisher serves all that wait.
            if connection and len(self.waiting) == 1:
                connection.ioloop.add_callback_threadsafe(self._publish)

    def _connect(self):
        while True:
            self.connection = pika.SelectConnection(
                pika.URLParameters(self.url),
                on_open_callback=lambda it: it.channel(on_open_callback=self._ready),
                on_open_error_callback=lambda it, _: it.ioloop.stop(),
                on_close_callback=lambda it, _: it.ioloop.stop(),
            )
            self.connection.ioloop.start()
            self.channel = None
            self.waiting.extendleft(reversed(self.unconfirmed.values()))
            self.unconfirmed.clear()
            time.sleep(RECONNECT_PAUSE)

    def _ready(self, channel):
        channel.add_on_close_callback(lambda *_: channel.connection.is_open and channel.connection.close())
        channel.confirm_delivery(self._confirmed)
        self.channel, self.tag = channel, 0
        self._publish()

    def _publish(self):
        persistent = pika.BasicProperties(delivery_mode=2, content_type="application/json")
        while self.waiting and self.channel and self.channel.is_open:
            body = self.waiting.popleft()
            self.tag += 1
            self.unconfirmed[self.tag] = body
            self.channel.basic_publish(EXCHANGE, "file.created", body, persistent)

    def _confirmed(self, frame):
        answer = frame.method
        tags = [answer.delivery_tag]
        if answer.multiple:
            tags = [tag for tag in self.unconfirmed if tag <= answer.delivery_tag]
        for tag in tags:
            body = self.unconfirmed.pop(tag)
            if isinstance(answer, pika.spec.Basic.Nack):
                self.waiting.append(body)
            else:
                self.room.release()
        self._publish()


def ready():
    print("ready", file=sys.stderr, flush=True)
