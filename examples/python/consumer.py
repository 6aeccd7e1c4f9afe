#!/usr/bin/python3
"""A consumer to begin with, in Python: prints one line for each file version that apollonia-ingestor publishes.

usage: examples/python/consumer.py [--queue NAME] [--quorum] [--count N] [AMQP_URL]

  AMQP_URL      the broker (AMQP_CONNECTION_STRING, else amqp://guest:guest@localhost:5672/)
  --queue NAME  its queue, declared and bound if it is not there (apollonia.example); consumers of one queue share the
                messages, each queue has them all
  --quorum      as a quorum queue, which a cluster keeps in several copies
  --count N     end after N lines

It needs pika (Debian: python3-pika) and common.py beside it. What to take over:

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

import common


def consume(channel, options, files):
    arguments = {"x-queue-type": "quorum"} if options.quorum else None
    channel.queue_declare(options.queue, durable=True, arguments=arguments)
    channel.queue_bind(options.queue, common.EXCHANGE)
    deliveries = channel.consume(options.queue)
    common.say(f"ready: {options.queue} is bound to {common.EXCHANGE}")
    common.take_from_queue(channel, options.queue, deliveries, options, files)


def main():
    command_line = common.CommandLine(__doc__)
    command_line.add_argument("--queue", default="apollonia.example")
    command_line.add_argument("--quorum", action="store_true")
    common.run(command_line, command_line.parse_args(), consume)


if __name__ == "__main__":
    main()
