#!/usr/bin/python3
"""Reads every message of apollonia-ingestor from a stream: at its own pace, from any point, as often as is wanted.

usage: examples/python/stream.py [--state FILE] [--from first|next|OFFSET] [--count LINES] [AMQP_URL]

  --state FILE  keep in FILE how far it has come, and go on from there
  --from WHERE  where to begin when there is no such FILE: the oldest message (first), the next to come, an offset
  --count LINES end after so many lines

The stream, apollonia.stream, is declared and bound to apollonia. It is one log on disk for any number of consumers: reading
takes nothing out. It keeps 7 days or 20 GB, whichever is less, and drops whole segments of 100 MB. A consumer must set a
prefetch and acknowledge, but only for the flow: the broker does not remember where an AMQP 0-9-1 consumer is. So the
offset of the next message is stored here, behind the work: a consumer that dies does at most the last 100 messages again.
Work that ends in a database keeps the offset there, in the transaction of the work, and does nothing twice.

All messages are in one order, the versions of a path too. Repeats of the ingestor are in the stream like everything else.
"""

import json
import os
import sys

import pika

import common

STREAM = "apollonia.stream"
LIMITS = {
    "x-max-age": "7D",
    "x-max-length-bytes": 20_000_000_000,
    "x-stream-max-segment-size-bytes": 100_000_000,
}
# Messages between two times that the offset is stored, and seconds of silence after which it is.
STORE_EVERY = 100
SILENCE = 1
# Seconds for the message that was read last to come again.
TIMEOUT = 10


class Place:
    """How far the work has come: the offset of the next message, and the id of the one before it."""

    def __init__(self, file):
        self.file = file
        self.next = self.message_id = None
        self.stored = True
        if file and os.path.exists(file):
            with open(file) as opened:
                state = json.load(opened)
            self.next, self.message_id = state["next"], state["message_id"]

    def reached(self, offset, message_id):
        self.next, self.message_id, self.stored = offset + 1, message_id, False

    def store(self):
        if self.file and not self.stored:
            # By a rename: the file is the old one or the new one, never half of it.
            with open(f"{self.file}.new", "w") as opened:
                json.dump({"next": self.next, "message_id": self.message_id}, opened)
            os.replace(f"{self.file}.new", self.file)
        self.stored = True

    def refuse(self):
        sys.exit(
            f"error: {STREAM} is not the stream that {self.file} is about: its message {self.next - 1} is another or none; "
            "remove the file to read the stream from its beginning"
        )


def consume(channel, options, files):
    channel.queue_declare(STREAM, durable=True, arguments={"x-queue-type": "stream", **LIMITS})
    channel.queue_bind(STREAM, common.EXCHANGE)
    place = options.place
    # Once more the last message that was read. If it is not there, the offset belongs to another stream, and the broker
    # would hand over nothing until this one has grown as long.
    proven, silence = place.next is None, 0
    begin = options.begin if proven else place.next - 1
    deliveries = channel.consume(STREAM, arguments={"x-stream-offset": begin}, inactivity_timeout=SILENCE)
    common.say(f"ready: {STREAM} from {options.begin if proven else place.next}")
    try:
        for method, properties, body in deliveries:
            if method is None:
                place.store()
                silence += SILENCE
                if not proven and silence >= TIMEOUT:
                    place.refuse()
                continue
            offset = properties.headers["x-stream-offset"]
            if not proven:
                proven = True
                if offset > place.next:
                    common.say(f"warning: messages {place.next} to {offset - 1} were gone before they were read")
                elif offset < place.next:
                    if properties.message_id != place.message_id:
                        place.refuse()
                    channel.basic_ack(method.delivery_tag)
                    continue
            # What is not the ingestor's is passed over: a stream takes nothing back.
            files.take(properties, body)
            place.reached(offset, properties.message_id)
            channel.basic_ack(method.delivery_tag)
            if offset % STORE_EVERY == 0:
                place.store()
            if files.done == options.count:
                return
    finally:
        place.store()
        if place.next is not None:
            common.say(f"offset: {place.next} is next")
    raise pika.exceptions.AMQPError(f"{STREAM} was deleted")


def main():
    command_line = common.CommandLine(__doc__)
    command_line.add_argument("--state")
    command_line.add_argument("--from", dest="begin", default="first")
    options = command_line.parse_args()
    if options.begin not in ("first", "next"):
        if not options.begin.isdigit():
            command_line.error("--from must be first, next or an offset")
        options.begin = int(options.begin)
    try:
        options.place = Place(options.state)
    except (OSError, ValueError, LookupError, TypeError):
        command_line.error(f"--state: {options.state} is none of this program's; remove it to begin anew")
    common.run(command_line, options, consume)


if __name__ == "__main__":
    main()
