"""What consumer.py, sharded.py and stream.py have in common: command line, connection, the work, and the dropping of repeats."""

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
# Some 20 MB of ids: more than an ingestor with a ledger repeats after a crash. `--catch-up all` repeats everything. They are
# forgotten at the end: consumer.py says what remembers longer.
REMEMBERED = 100_000


class CommandLine(argparse.ArgumentParser):
    """With the script's own text for its help, and one line for an error, as for every other failure."""

    def __init__(self, text):
        super().__init__()
        self.text = text
        self.add_argument("--count", type=int, default=sys.maxsize)
        self.add_argument("url", nargs="?")

    def format_help(self):
        return self.text.strip() + "\n"

    def error(self, message):
        self.exit(2, f"error: {message}; see --help\n")


class Files:
    """Does the work for each message, but not for those whose ids are remembered."""

    def __init__(self):
        self.done = self.repeats = self.bytes = 0
        self.recent = collections.OrderedDict()

    def take(self, properties, body):
        """False for what is not the ingestor's. Else it is done, and can be acknowledged."""
        self.bytes += len(body)
        if properties.message_id in self.recent:
            self.repeats += 1
            return True
        try:
            message = json.loads(body)
            fields = message["event_type"], message["size"], message["sha256_hash"], json.dumps(message["file_path"])
        except (ValueError, LookupError, TypeError) as error:
            say(f"warning: a message that is not the ingestor's: {error}")
            return False
        work(fields)
        self.done += 1
        if properties.message_id is not None:
            self.recent[properties.message_id] = None
            if len(self.recent) > REMEMBERED:
                self.recent.popitem(last=False)
        return True


def take_from_queue(channel, queue, deliveries, options, files):
    """Does the work for what a queue delivers, and acknowledges it, until that is enough."""
    for method, properties, body in deliveries:
        if files.take(properties, body):
            channel.basic_ack(method.delivery_tag)
        else:
            # Requeued it would come for ever. This sends it to the queue's dead-letter exchange, if there is one.
            channel.basic_reject(method.delivery_tag, requeue=False)
        if files.done == options.count:
            return
    raise pika.exceptions.AMQPError(f"the queue {queue} was deleted")


def work(fields):
    """Yours. If it takes longer than a heartbeat, do it in a thread: pika answers the broker from this one."""
    try:
        print(*fields, flush=True)
    except OSError as error:
        # Else the interpreter tries once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(f"error: standard output: {error.strerror}; the message stays where it is")


def say(line):
    print(line, file=sys.stderr)


def run(command_line, options, consume):
    """Connects, and calls consume(channel, options, files) until it returns or a signal asks for the end."""
    if options.count < 1:
        command_line.error("--count must be at least 1")
    url = options.url or os.environ.get("AMQP_CONNECTION_STRING") or "amqp://guest:guest@localhost:5672/"
    try:
        if not url.startswith(("amqp://", "amqps://")):
            raise ValueError
        parameters = pika.URLParameters(url)
    except ValueError:
        # What it says can hold the password.
        command_line.error("AMQP_URL cannot be used: write amqp://USER:PASSWORD@HOST:PORT/VHOST")

    # pika reports each failure over many lines.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        connection = pika.BlockingConnection(parameters)
        channel = connection.channel()
        # As the ingestor declares it: whoever comes first makes it.
        channel.exchange_declare(EXCHANGE, exchange_type="fanout", durable=True)
        channel.basic_qos(prefetch_count=PREFETCH)
        files = Files()
        try:
            consume(channel, options, files)
        except KeyboardInterrupt:
            pass
        close(connection)
        say(f"end: {files.done} files, {files.repeats} repeats dropped, {files.bytes} bytes")
    except KeyboardInterrupt:
        pass
    except (OSError, pika.exceptions.AMQPError) as error:
        # Without user and password.
        broker = url.rpartition("@")[2]
        sys.exit(f"error: {broker}: {cause(error)}; check the broker and AMQP_CONNECTION_STRING, then start again")


def close(connection):
    try:
        connection.close()
    except pika.exceptions.AMQPError:
        # pika requeues what it still holds. A stream takes nothing back, and the broker hangs up.
        pass


def cause(error):
    """The innermost of pika's nested exceptions, as one line."""
    while inner := getattr(error, "exception", None) or next((a for a in error.args if isinstance(a, Exception)), None):
        error = inner
    return " ".join(str(error).split()) or type(error).__name__
