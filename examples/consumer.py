#!/usr/bin/python3
"""A consumer to begin with, in Python: prints one line for each file version that apollonia-ingestor publishes.

usage: examples/consumer.py [--queue NAME] [--quorum] [--count N] [AMQP_URL]

  AMQP_URL      the broker (AMQP_CONNECTION_STRING, else amqp://guest:guest@localhost:5672/)
  --queue NAME  its queue, declared and bound if it is not there (apollonia.example); consumers of one queue share the
                messages, each queue has them all
  --quorum      as a quorum queue, which a cluster keeps in several copies
  --count N     end after N lines

It needs pika (Debian: python3-pika) and nothing else of this project. What to take over:

- The queue is durable and bound before the ingestor publishes; what comes earlier goes past it. From then on nothing is lost
  while the consumer is away.
- A message is acknowledged when the work is done, not before: a consumer that dies is given it again.
- For that reason, and because an ingestor that died publishes its last messages again, a message can come twice. Its
  message id is the same each time; it stands for one version of one path. Here the last 100,000 ids are remembered, and
  forgotten at the end.

What must not be done twice even after a restart takes a unique key in the database that the work ends in. In one
transaction, and then the acknowledgement:

    INSERT INTO seen (message_id) VALUES (...) ON CONFLICT DO NOTHING    -- its primary key
    the work, if that has inserted a row
"""

import argparse
import collections
import json
import logging
import os
import signal
import sys

import pika

EXCHANGE = "apollonia"
# Messages here without an acknowledgement, at most: enough to keep the connection busy.
PREFETCH = 200
# Some 20 MB of ids: more than an ingestor with a ledger repeats after a crash. `--catch-up all` repeats everything.
REMEMBERED = 100_000


class Recent:
    """The last so many ids."""

    def __init__(self, limit):
        self.limit = limit
        self.ids = collections.OrderedDict()

    def __contains__(self, message_id):
        return message_id in self.ids

    def add(self, message_id):
        self.ids[message_id] = None
        if len(self.ids) > self.limit:
            self.ids.popitem(last=False)


def parse(body):
    """What the work needs of a message; an error for what the ingestor has not written."""
    message = json.loads(body)
    return message["event_type"], message["size"], message["sha256_hash"], json.dumps(message["file_path"])


def work(fields):
    """Yours. If it takes longer than a heartbeat, do it in a thread: pika answers the broker from this one."""
    try:
        print(*fields, flush=True)
    except OSError as error:
        # Else the interpreter tries once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(f"error: standard output: {error.strerror}; the message stays in the queue")


def consume(parameters, queue, arguments, count):
    connection = pika.BlockingConnection(parameters)
    channel = connection.channel()
    # As the ingestor declares it: whoever comes first makes it.
    channel.exchange_declare(EXCHANGE, exchange_type="fanout", durable=True)
    channel.queue_declare(queue, durable=True, arguments=arguments)
    channel.queue_bind(queue, EXCHANGE)
    channel.basic_qos(prefetch_count=PREFETCH)
    deliveries = channel.consume(queue)
    print(f"ready: {queue} is bound to {EXCHANGE}", file=sys.stderr)

    recent, done, repeats = Recent(REMEMBERED), 0, 0
    try:
        for method, properties, body in deliveries:
            if properties.message_id in recent:
                repeats += 1
            else:
                try:
                    fields = parse(body)
                except (ValueError, LookupError, TypeError) as error:
                    # Requeued it would come for ever. This sends it to the queue's dead-letter exchange, if there is one.
                    print(f"warning: a message that is not the ingestor's: {error}", file=sys.stderr)
                    channel.basic_reject(method.delivery_tag, requeue=False)
                    continue
                work(fields)
                done += 1
                if properties.message_id is not None:
                    recent.add(properties.message_id)
            channel.basic_ack(method.delivery_tag)
            if done == count:
                break
        else:
            raise pika.exceptions.AMQPError(f"the queue {queue} was deleted")
    except KeyboardInterrupt:
        pass
    # What is here and not acknowledged goes back to the queue.
    connection.close()
    print(f"end: {done} files, {repeats} repeats dropped", file=sys.stderr)


def cause(error):
    """The innermost of pika's nested exceptions, as one line."""
    while inner := getattr(error, "exception", None) or next((a for a in error.args if isinstance(a, Exception)), None):
        error = inner
    return " ".join(str(error).split()) or type(error).__name__


def main():
    parser = argparse.ArgumentParser(add_help=False)
    # One line, like every other failure.
    parser.error = lambda message: parser.exit(2, f"error: {message}; see --help\n")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--queue", default="apollonia.example")
    parser.add_argument("--quorum", action="store_true")
    parser.add_argument("--count", type=int, default=sys.maxsize)
    parser.add_argument("url", nargs="?")
    options = parser.parse_args()
    if options.help:
        print(__doc__.strip())
        return
    if options.count < 1:
        parser.error("--count must be at least 1")
    url = options.url or os.environ.get("AMQP_CONNECTION_STRING") or "amqp://guest:guest@localhost:5672/"
    try:
        if not url.startswith(("amqp://", "amqps://")):
            raise ValueError
        parameters = pika.URLParameters(url)
    except ValueError:
        # What it says can hold the password.
        parser.error("AMQP_URL cannot be used: write amqp://USER:PASSWORD@HOST:PORT/VHOST")

    # pika reports each failure over many lines.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        consume(parameters, options.queue, {"x-queue-type": "quorum"} if options.quorum else None, options.count)
    except KeyboardInterrupt:
        pass
    except (OSError, pika.exceptions.AMQPError) as error:
        # Without user and password.
        broker = url.rpartition("@")[2]
        sys.exit(f"error: {broker}: {cause(error)}; check the broker and AMQP_CONNECTION_STRING, then start again")


if __name__ == "__main__":
    main()
