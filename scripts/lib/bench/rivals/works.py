"""What there is to do, and one contestant at it."""

import os
import random
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass

from broker import QUORUM, Inbox, Queue
from measure import Failure, environment, pinned, wait_until
from rivals.session import Session
from rows_paced import PacedRows, at_pace
from rows_watch import IDLE_PAUSE, SIZE, write

# Whoever has not finished by then is counted as it stands.
TIMEOUT = 120
READY_TIMEOUT = 60
# All is there, or nothing more comes: the count has not changed for so long.
QUIET, QUIET_AFTER_RESTART = 5, 30
# One file at a time, when all is done: so many, or for so long.
LATENCY_FILES, LATENCY_SECONDS = 20, 4


@dataclass
class Work:
    name: str
    files: int
    # Files a second, or as fast as one thread writes them.
    rate: int = None
    queues: int = 1
    arguments: dict = None
    # So many files are there before the start.
    present: int = 0
    restart: bool = False


WORKS = (
    Work("one queue", 20_000),
    Work("six queues", 10_000, queues=6),
    Work("a quorum queue", 10_000, arguments=QUORUM),
    Work("500 files a second", 2_000, rate=500),
    Work("2,000 files a second", 8_000, rate=2_000),
    Work("1,000 files where 100,000 are", 1_000, present=100_000),
    Work("the broker restarts", 6_000, rate=600, restart=True),
)


def play(bench, work, contestant):
    files = min(work.files // (10 if bench.quick else 1), contestant.at_most)
    present = work.present // (50 if bench.quick else 1)
    chance = random.Random(4)
    with ExitStack() as stack:
        directory = os.path.realpath(stack.enter_context(PacedRows(bench).directory()))
        state = stack.enter_context(tempfile.TemporaryDirectory(prefix="ingestor-bench-state-"))
        for number in range(present):
            write(f"{directory}/there-{number:06}.dat", chance.randbytes(SIZE))
        names = [f"bench{number}" for number in range(work.queues)]
        queues = [stack.enter_context(Queue(bench.broker(), name, work.arguments)) for name in names]
        command = contestant.command(directory, bench.broker().url, state)
        more = contestant.environment(state)
        began = time.monotonic()
        session = stack.enter_context(Session(pinned(2, command), environment(**more)))
        wait_until_it_sees(directory, queues[0], session)
        ready = time.monotonic() - began
        before = session.cpu()
        contents, outcome = write_all(bench, work, directory, files, chance, queues[0])
        outcome["ready"] = ready
        outcome["cpu"] = (session.cpu() - before) / files * 1e6
        outcome["memory"] = session.memory() / 1e6
        outcome["latency"] = latency(bench, directory, contestant)
        session.end()
        messages = taken(queues[0], contestant)
    judge(outcome, messages, contents, contestant)
    return outcome


def wait_until_it_sees(directory, queue, session):
    """Writes a file now and then until a message comes: whoever it is, now it watches."""
    written = 0

    def sees():
        nonlocal written
        write(f"{directory}/probe-{written}", b"probe")
        written += 1
        time.sleep(0.1)
        return queue.count()

    try:
        wait_until("the first message", sees, READY_TIMEOUT, session.runs, 0.1)
    except Failure as failure:
        raise Failure(f"{failure}: {session.said()}") from None
    time.sleep(1)  # for messages of the other probes


def write_all(bench, work, directory, files, chance, queue):
    contents = {f"{directory}/{number:06}.dat": chance.randbytes(SIZE) for number in range(files)}
    already = queue.count()
    restarting = None
    began = time.monotonic()
    for number, (path, content) in enumerate(at_pace(contents.items(), work.rate)):
        write(path, content)
        if work.restart and number == files // 3:
            restarting = threading.Thread(target=restart, args=(bench.broker(),))
            restarting.start()
    if restarting:
        restarting.join()
        queue.again()
    # The last moment at which another message was there.
    count, changed = already, time.monotonic()
    quiet = QUIET_AFTER_RESTART if work.restart else QUIET
    while count < already + files and (now := time.monotonic()) < began + TIMEOUT and now < changed + quiet:
        time.sleep(0.02)
        if (seen := queue.count()) != count:
            count, changed = seen, time.monotonic()
    return contents, {"files": files, "seconds": changed - began}


def latency(bench, directory, contestant):
    """Seconds from close(2) of a single file to its first message at a consumer, the median; None if one has not come."""
    seconds = []
    began = time.monotonic()
    with Inbox(bench.broker(), lambda body: (contestant.read(body) or (None,))[0]) as inbox:
        for number in range(LATENCY_FILES):
            time.sleep(IDLE_PAUSE)
            path = f"{directory}/latency-{number:02}.dat"
            closed, _ = write(path, b"%d" % number * SIZE)
            if not inbox.wait_for(path, LATENCY_SECONDS):
                return None
            seconds.append(time.monotonic() - closed)
            if time.monotonic() - began > LATENCY_SECONDS:
                break
    return statistics.median(seconds)


def restart(broker):
    broker.control("stop_app")
    time.sleep(1)
    broker.control("start_app")


def taken(queue, contestant):
    messages = {}
    for body in queue.bodies():
        if read := contestant.read(body):
            messages.setdefault(read[0], []).append(read[1])
    return messages


def judge(outcome, messages, contents, contestant):
    expected = {path: contestant.digest(content) for path, content in contents.items()}
    outcome["missing"] = sum(path not in messages for path in expected)
    outcome["wrong"] = sum(path in messages and messages[path][-1] != digest for path, digest in expected.items())
    outcome["repeated"] = sum(len(messages[path]) - 1 for path in expected if path in messages)
