"""A private RabbitMQ with its own ports, name, cookie and directory: never the node of this machine."""

import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time

import pika

from measure import Failure, wait_until

EXCHANGE = "apollonia"
QUORUM = {"x-queue-type": "quorum"}
# Where Debian keeps the scripts that do not insist on being run by root.
SCRIPTS = "/usr/lib/rabbitmq/bin"
BOOT_TIMEOUT = 120

# Lives exactly as long as its standard input: at end of file, which comes even when the benchmark is killed
# with SIGKILL, it kills the node and removes the directory.
SUPERVISOR = """
cd "$HOME"
epmd -port "$ERL_EPMD_PORT" -address 127.0.0.1 </dev/null >epmd.log 2>&1 &
epmd=$!
setsid $AS_USER "$SERVER" </dev/null >server.log 2>&1 &
server=$!
read -r _
kill -KILL "-$server" "$epmd"
wait
rm -rf "$HOME"
"""


class Broker:
    def __init__(self):
        self.home = tempfile.mkdtemp(prefix="ingestor-bench-rabbitmq-")
        self.port, dist_port, epmd_port = free_ports(3)
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
        self.environment = os.environ | {
            "HOME": self.home,
            "RABBITMQ_NODENAME": f"bench{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(dist_port),
            "ERL_EPMD_PORT": str(epmd_port),
            "RABBITMQ_MNESIA_BASE": f"{self.home}/mnesia",
            "RABBITMQ_LOG_BASE": f"{self.home}/log",
            "RABBITMQ_PID_FILE": f"{self.home}/pid",
            "RABBITMQ_CONFIG_FILE": f"{self.home}/rabbitmq",
            "RABBITMQ_CONF_ENV_FILE": f"{self.home}/rabbitmq-env.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{self.home}/enabled_plugins",
            # Idle schedulers that spin would take the cores from what is measured.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
        }
        self._write("rabbitmq.conf", "log.console = false\ndisk_free_limit.absolute = 1MB\n")
        self._write("enabled_plugins", "[].\n")
        self._write("rabbitmq-env.conf", "")
        self.supervisor = subprocess.Popen(
            ["sh", "-c", SUPERVISOR],
            env=self.environment | {"SERVER": script("rabbitmq-server"), "AS_USER": self._hand_over()},
            # Its own group: an interrupt at the terminal must not end it before it has cleaned up.
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.supervisor.stdin.close()
        self.supervisor.wait()

    def _write(self, name, text):
        with open(f"{self.home}/{name}", "w") as file:
            file.write(text)

    def _hand_over(self):
        """Gives the directory to the user `rabbitmq`; returns the command prefix that becomes that user."""
        try:
            owner = pwd.getpwnam("rabbitmq")
        except KeyError:
            return ""
        if os.geteuid() != 0:
            return ""
        for name in [self.home, *(f"{self.home}/{name}" for name in os.listdir(self.home))]:
            os.chown(name, owner.pw_uid, owner.pw_gid)
        return "setpriv --reuid rabbitmq --regid rabbitmq --clear-groups"

    def wait_until_it_serves(self):
        def serves():
            try:
                self.connect().close()
            except pika.exceptions.AMQPError:
                return False
            return True

        try:
            wait_until("RabbitMQ", serves, BOOT_TIMEOUT, lambda: self.supervisor.poll() is None, 0.2)
        except Failure as failure:
            with open(f"{self.home}/server.log", errors="replace") as log:
                raise Failure(f"{failure}: {log.read()[-500:]}") from None

    def connect(self):
        # No heartbeats: the benchmark does not read this connection while it waits elsewhere.
        return pika.BlockingConnection(pika.URLParameters(f"{self.url}?heartbeat=0"))

    def control(self, *arguments):
        done = subprocess.run(
            [script("rabbitmqctl"), *arguments], env=self.environment, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise Failure(f"rabbitmqctl {' '.join(arguments)}: {done.stdout}{done.stderr}")


class Queue:
    """A durable queue at the exchange, as a consumer that may be away has it."""

    def __init__(self, broker, name="bench", arguments=None):
        self.broker = broker
        self.connection = broker.connect()
        self.channel = self.connection.channel()
        self.name = name
        self.channel.exchange_declare(EXCHANGE, exchange_type="fanout", durable=True)
        self.channel.queue_declare(name, durable=True, arguments=arguments)
        self.channel.queue_bind(name, EXCHANGE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.queue_delete(self.name)
        self.connection.close()

    def count(self):
        return self.channel.queue_declare(self.name, passive=True).method.message_count

    def drain(self):
        """Takes the messages out: path -> list of hashes."""
        taken = {}
        for body in self.bodies():
            message = json.loads(body)
            taken.setdefault(message["file_path"], []).append(message["sha256_hash"])
        return taken

    def bodies(self):
        """Takes the messages out."""
        left = self.count()
        consumer = self.channel.consume(self.name, auto_ack=True) if left else ()
        for _, _, body in consumer:
            yield body
            left -= 1
            if left == 0:
                break
        self.channel.cancel()

    def again(self):
        """Connects again, after the broker was away."""
        self.connection = self.broker.connect()
        self.channel = self.connection.channel()


class Inbox:
    """A consumer that is there, and the paths of the messages that it was sent."""

    def __init__(self, broker, path_of=lambda body: json.loads(body)["file_path"]):
        self.path_of = path_of
        self.connection = broker.connect()
        channel = self.connection.channel()
        channel.exchange_declare(EXCHANGE, exchange_type="fanout", durable=True)
        name = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(name, EXCHANGE)
        self.seen = set()
        channel.basic_consume(name, self._take, auto_ack=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def _take(self, _channel, _method, _properties, body):
        self.seen.add(self.path_of(body))

    def wait_for(self, path, timeout=10):
        """Whether a message for this path has come by then."""
        deadline = time.monotonic() + timeout
        while path not in self.seen and (left := deadline - time.monotonic()) > 0:
            self.connection.process_data_events(time_limit=left)
        return path in self.seen


def script(name):
    behind_the_wrapper = f"{SCRIPTS}/{name}"
    return behind_the_wrapper if os.path.exists(behind_the_wrapper) else shutil.which(name) or name


def free_ports(count):
    """Below the range that the kernel gives to outgoing connections."""
    held = []
    port = 10_000 + os.getpid() * 31 % 20_000
    while len(held) < count:
        port += 1
        listener = socket.socket()
        try:
            listener.bind(("127.0.0.1", port))
            held.append(listener)
        except OSError:
            listener.close()
    ports = [listener.getsockname()[1] for listener in held]
    for listener in held:
        listener.close()
    return ports
