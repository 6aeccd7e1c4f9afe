#!/usr/bin/python3
"""One of N consumers that share the messages of apollonia-ingestor: a queue each, behind a consistent-hash exchange.

usage: examples/python/sharded.py --shard K --of N [--count LINES] [AMQP_URL]

    rabbitmq-plugins enable rabbitmq_consistent_hash_exchange
    examples/python/sharded.py --shard 1 --of 2
    examples/python/sharded.py --shard 2 --of 2

Whichever starts first declares everything: the exchange apollonia.shards, the quorum queues apollonia.shard.1 to N bound to
it with the same weight, and last its binding to apollonia. A second process for a shard waits and takes over when the
first ends (single active consumer). --count ends it after so many lines.

The routing key is `file.created` for every message, so the exchange hashes the message id (hash-property). Ids spread
evenly, and a repeat goes to the queue that has had the message, where it is dropped without asking the other shards. Not
for ever: RabbitMQ makes the ring anew when a node starts and when N changes, and a repeat may then come to another shard.
What must not be done twice takes the unique key that consumer.py describes.

Two versions of one path have two ids, and with that perhaps two queues: the older one can be done last. No property or
header names the path, so no exchange can keep its versions together. Let the newer one win where the result is kept;
`timestamp` is when the ingestor saw the version:

    INSERT INTO files (path, seen, sha256) VALUES (...)
        ON CONFLICT (path) DO UPDATE SET seen = excluded.seen, sha256 = excluded.sha256 WHERE excluded.seen > files.seen

Work that needs each version in its turn takes one queue, or the stream (stream.py).

For a larger N start all consumers again. For a smaller one unbind the queues that nobody will read, and empty them.
"""

import sys

import pika

import common

EXCHANGE = "apollonia.shards"
# AMQP's "command invalid": what RabbitMQ says to an exchange of a type that it does not know.
UNKNOWN_TYPE = 503


def consume(channel, options, files):
    try:
        channel.exchange_declare(
            EXCHANGE, exchange_type="x-consistent-hash", durable=True, arguments={"hash-property": "message_id"}
        )
    except pika.exceptions.ConnectionClosedByBroker as error:
        if error.reply_code == UNKNOWN_TYPE:
            sys.exit("error: the broker has no x-consistent-hash: rabbitmq-plugins enable rabbitmq_consistent_hash_exchange")
        raise
    names = [f"apollonia.shard.{number}" for number in range(1, options.of + 1)]
    for name in names:
        channel.queue_declare(name, durable=True, arguments={"x-queue-type": "quorum", "x-single-active-consumer": True})
        # The key of such a binding is its weight.
        channel.queue_bind(name, EXCHANGE, routing_key="1")
    # Behind the queues: the first message finds them all.
    channel.exchange_bind(EXCHANGE, common.EXCHANGE)

    queue = names[options.shard - 1]
    deliveries = channel.consume(queue)
    common.say(f"ready: {queue}, one of {options.of} behind {EXCHANGE}")
    common.take_from_queue(channel, queue, deliveries, options, files)


def main():
    command_line = common.CommandLine(__doc__)
    command_line.add_argument("--shard", type=int, required=True)
    command_line.add_argument("--of", type=int, required=True)
    options = command_line.parse_args()
    if not 1 <= options.shard <= options.of:
        command_line.error("--shard must be 1 to N")
    common.run(command_line, options, consume)


if __name__ == "__main__":
    main()
