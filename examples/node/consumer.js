#!/usr/bin/env node
// A consumer to begin with, in JavaScript with amqplib: prints one line for each file version that apollonia-ingestor publishes.
//
// What to take over:
//
// - The queue is durable and bound before the ingestor publishes; what comes earlier goes past it. From then on nothing is lost
//   while the consumer is away.
// - A message is acknowledged when the work is done, not before: a consumer that dies is given it again.
// - For that reason, and because an ingestor that died publishes its last messages again, a message can come twice. Its
//   message id is the same each time; it stands for one version of one path. Here the last 100,000 ids are remembered, and
//   forgotten at the end.
//
// What must not be done twice even after a restart takes a unique key in the database that the work ends in. In one
// transaction, and then the acknowledgement:
//
//     INSERT INTO seen (message_id) VALUES (...) ON CONFLICT DO NOTHING    -- its primary key
//     the work, if that has inserted a row

import { writeSync } from "node:fs";
import { parseArgs } from "node:util";

const HELP = `usage: npm install && node consumer.js [--queue NAME] [--quorum] [--count N] [AMQP_URL]

  AMQP_URL      the broker (AMQP_CONNECTION_STRING, else amqp://guest:guest@localhost:5672/)
  --queue NAME  its queue, declared and bound if it is not there (apollonia.example); consumers of one queue share the
                messages, each queue has them all
  --quorum      as a quorum queue, which a cluster keeps in several copies
  --count N     end after N lines`;
const EXCHANGE = "apollonia";
// Messages here without an acknowledgement, at most: enough to keep the connection busy.
const PREFETCH = 200;
// Some 20 MB of ids: more than an ingestor with a ledger repeats after a crash. `--catch-up all` repeats everything.
const REMEMBERED = 100_000;

const say = (line) => writeSync(2, `${line}\n`);

function end(line, status) {
  say(line);
  process.exit(status);
}

const refuse = (what) => end(`error: ${what}; see --help`, 2);

function options() {
  const known = {
    help: { type: "boolean", short: "h" },
    queue: { type: "string", default: "apollonia.example" },
    quorum: { type: "boolean", default: false },
    count: { type: "string", default: "Infinity" },
  };
  let given;
  try {
    given = parseArgs({ options: known, allowPositionals: true });
  } catch (error) {
    refuse(error.message.split(". ")[0]);
  }
  const { values, positionals } = given;
  if (values.help) {
    console.log(HELP);
    process.exit(0);
  }
  const count = Number(values.count);
  if (!(count >= 1)) refuse("--count must be at least 1");
  const url = positionals[0] || process.env.AMQP_CONNECTION_STRING || "amqp://guest:guest@localhost:5672/";
  // What the parser says can hold the password.
  if (!/^amqps?:$/.test(protocol(url))) {
    refuse("AMQP_URL cannot be used: write amqp://USER:PASSWORD@HOST:PORT/VHOST");
  }
  return { ...values, count, url };
}

function protocol(url) {
  try {
    return new URL(url).protocol;
  } catch {
    return "";
  }
}

/** Yours. It is called for one message after the other. */
function work({ event_type, size, sha256_hash, file_path }) {
  // A name can hold the end of a line.
  const line = `${event_type} ${size} ${sha256_hash} ${JSON.stringify(file_path)}\n`;
  try {
    writeSync(1, line);
  } catch (error) {
    end(`error: standard output: ${error.message}; the message stays in the queue`, 1);
  }
}

/** What the work needs of a message; an error for what the ingestor has not written. */
function parse(content) {
  const message = JSON.parse(content.toString());
  if (typeof message?.file_path !== "string" || typeof message.sha256_hash !== "string") {
    throw new Error("it has no file_path or no sha256_hash");
  }
  return message;
}

async function consume(amqp, { url, queue, quorum, count }) {
  const connection = await amqp.connect(url);
  const channel = await connection.createChannel();
  // As the ingestor declares it: whoever comes first makes it.
  await channel.assertExchange(EXCHANGE, "fanout", { durable: true });
  const type = quorum ? { "x-queue-type": "quorum" } : {};
  await channel.assertQueue(queue, { durable: true, arguments: type });
  await channel.bindQueue(queue, EXCHANGE, "");
  await channel.prefetch(PREFETCH);

  const recent = new Set();
  let [done, repeats] = [0, 0];
  await new Promise((finish, fail) => {
    for (const emitter of [connection, channel]) emitter.on("error", fail);
    connection.on("close", () => fail(new Error("the connection was closed")));
    for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, finish);
    const take = (message) => {
      if (message === null) return fail(new Error(`the queue ${queue} was deleted`));
      if (done === count) return;
      const id = message.properties.messageId;
      if (recent.has(id)) {
        repeats += 1;
      } else {
        let fields;
        try {
          fields = parse(message.content);
        } catch (error) {
          say(`warning: a message that is not the ingestor's: ${error.message.replace(/\s+/g, " ")}`);
          // Requeued it would come for ever. This sends it to the queue's dead-letter exchange, if there is one.
          return channel.reject(message, false);
        }
        work(fields);
        done += 1;
        if (id !== undefined) recent.add(id);
        // A set keeps the order of its entries: the first is the oldest.
        if (recent.size > REMEMBERED) recent.delete(recent.values().next().value);
      }
      channel.ack(message);
      if (done === count) finish();
    };
    channel.consume(queue, take).then(() => say(`ready: ${queue} is bound to ${EXCHANGE}`), fail);
  });
  // What is here and not acknowledged goes back to the queue.
  connection.removeAllListeners("close");
  await connection.close();
  say(`end: ${done} files, ${repeats} repeats dropped`);
}

const given = options();
try {
  const amqp = await import("amqplib");
  await consume(amqp.default ?? amqp, given);
  process.exit(0);
} catch (error) {
  // Without user and password.
  const broker = given.url.split("@").at(-1);
  const cause = String(error.message || error.code || error).replace(/\s+/g, " ");
  end(`error: ${broker}: ${cause}; check the broker and AMQP_CONNECTION_STRING, then start again`, 1);
}
