"""Files and directories that come, change, move and go at an even rate; the size of the tree stays the same."""

import multiprocessing
import os
import random
import signal
import time

# Bytes: most files are between the first two, evenly by their logarithm; one in so many is up to the third.
SMALL, MEDIUM, LARGE = 1 << 10, 64 << 10, 8 << 20
ONE_IS_LARGE = 500
# Every file's content is a head that no other has, then a slice of this.
BLOCK = 16 << 20
FILES_PER_DIRECTORY = 20
# In turns.
DIRECTORY_WORK = ("rename", "make", "rename", "remove")
DIRECTORY_WORK_PAUSE = 0.25
# Late by more than this, it drops what it owes: a machine that stood still is no reason for a burst.
TIMEOUT = 2.0

COUNTS = (
    "versions",
    "files_made",
    "files_rewritten",
    "files_renamed",
    "files_deleted",
    "directories_made",
    "directories_renamed",
    "directories_removed",
    "files",
    "directories",
    "seconds_dropped",
)


class Writer:
    """The process that writes, and its counts as they are now."""

    def __init__(self, directory, rate, directories, flat):
        self._numbers = multiprocessing.Array("d", len(COUNTS), lock=False)
        self._stop = multiprocessing.Event()
        self.full = multiprocessing.Event()
        arguments = (directory, rate, 0 if flat else directories, directories, self)
        self.process = multiprocessing.Process(target=write, args=arguments, daemon=True)
        self.process.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.join()

    def counts(self):
        return {name: int(number) for name, number in zip(COUNTS, self._numbers)}

    def publish(self, counts):
        for place, name in enumerate(COUNTS):
            self._numbers[place] = counts[name]

    def stopped(self):
        return self._stop.is_set()

    def stop(self):
        """Lets it finish what it is at; whether it ended in order."""
        self._stop.set()
        self.process.join(60)
        return self.process.exitcode == 0


class Directory:
    def __init__(self, parent, name):
        self.parent, self.name = parent, name
        self.children = []
        self.files = []

    @property
    def path(self):
        return f"{self.parent.path}/{self.name}" if self.parent else self.name

    def below(self):
        """Files in it and in what is below it."""
        return len(self.files) + sum(child.below() for child in self.children)


class Tree:
    def __init__(self, root, directories, files):
        self.root = Directory(None, root)
        self.wanted_directories, self.wanted_files = directories, files
        self.directories = []
        # Each in its directory, for a choice at random.
        self.files = []
        self.counts = dict.fromkeys(COUNTS, 0)
        self.chance = random.Random(1)
        self.block = memoryview(self.chance.randbytes(BLOCK))
        self.number = 0
        self.deleted = []
        self.turn = 0

    def fill(self):
        while len(self.directories) < self.wanted_directories:
            self.make_directory()
        while len(self.files) < self.wanted_files:
            self.make_file()

    def file_work(self):
        """One version, or more."""
        if len(self.files) > self.wanted_files:
            self.delete(self.chance.randrange(len(self.files)))
        if len(self.files) < self.wanted_files:
            return self.make_file()
        work = self.chance.random()
        if work < 0.4:
            return self.rewrite()
        if work < 0.7:
            return self.rename()
        self.delete(self.chance.randrange(len(self.files)))
        return self.make_file()

    def directory_work(self):
        work = DIRECTORY_WORK[self.turn % len(DIRECTORY_WORK)]
        self.turn += 1
        if work == "make" and len(self.directories) < self.wanted_directories:
            directory = self.make_directory()
            # At once: whoever watches must not miss what came before the watch.
            for _ in range(FILES_PER_DIRECTORY):
                self.make_file(directory)
        elif work == "rename":
            self.rename_directory()
        elif work == "remove":
            self.remove_directory()

    def somewhere(self):
        return self.chance.choice(self.directories) if self.directories else self.root

    def fresh(self, kind):
        self.number += 1
        return f"{self.chance.choice(('album', 'track', 'scan', 'note'))}-{self.number}.{kind}"

    def size(self):
        if self.chance.randrange(ONE_IS_LARGE) == 0:
            return self.chance.randint(MEDIUM, LARGE)
        return int(SMALL * (MEDIUM / SMALL) ** self.chance.random())

    def write(self, path, flags):
        size = self.size()
        head = b"%d %d\n" % (self.number, self.counts["versions"])
        at = self.chance.randrange(BLOCK - LARGE)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o644)
        try:
            os.writev(file, [head, self.block[at : at + size - len(head)]])
        finally:
            os.close(file)
        self.counts["versions"] += 1

    def make_file(self, directory=None):
        directory = directory or self.somewhere()
        # Now and then the name of one that was deleted.
        if self.deleted and self.chance.randrange(2):
            name = self.deleted.pop(self.chance.randrange(len(self.deleted)))
        else:
            name = self.fresh(self.chance.choice(("flac", "cue", "txt", "jpg")))
        self.write(f"{directory.path}/{name}", os.O_EXCL)
        self.add(directory, name)
        self.counts["files_made"] += 1

    def add(self, directory, name):
        directory.files.append(name)
        self.files.append((directory, name))

    def take(self, place):
        """Not expected any more."""
        directory, name = self.files[place]
        self.files[place] = self.files[-1]
        self.files.pop()
        directory.files.remove(name)
        return directory, name

    def rewrite(self):
        directory, name = self.chance.choice(self.files)
        path = f"{directory.path}/{name}"
        way = self.chance.randrange(3)
        if way == 0:
            self.write(path, os.O_TRUNC)
        elif way == 1:
            # Over what is there, the end of a longer one stays.
            self.write(path, 0)
        else:
            self.write(f"{path}.part", os.O_EXCL)
            os.rename(f"{path}.part", path)
        self.counts["files_rewritten"] += 1

    def rename(self):
        before, old = self.take(self.chance.randrange(len(self.files)))
        after = before if self.chance.randrange(2) else self.somewhere()
        name = self.fresh(old.rsplit(".", 1)[-1])
        os.rename(f"{before.path}/{old}", f"{after.path}/{name}")
        self.add(after, name)
        self.counts["versions"] += 1
        self.counts["files_renamed"] += 1

    def delete(self, place):
        directory, name = self.take(place)
        os.unlink(f"{directory.path}/{name}")
        self.forget(name)

    def forget(self, name):
        if len(self.deleted) < 1000:
            self.deleted.append(name)
        self.counts["files_deleted"] += 1

    def parent_for(self, directory=None):
        """The root, or one below it: two levels are enough. One that has children stays below the root."""
        tops = [one for one in self.directories if one.parent is self.root and one is not directory]
        if not tops or (directory and directory.children) or self.chance.randrange(4) == 0:
            return self.root
        return self.chance.choice(tops)

    def make_directory(self):
        directory = Directory(self.parent_for(), self.fresh("d"))
        os.mkdir(directory.path)
        directory.parent.children.append(directory)
        self.directories.append(directory)
        self.counts["directories_made"] += 1
        return directory

    def rename_directory(self):
        directory = self.somewhere()
        parent, name = self.parent_for(directory), self.fresh("d")
        os.rename(directory.path, f"{parent.path}/{name}")
        directory.parent.children.remove(directory)
        directory.parent, directory.name = parent, name
        parent.children.append(directory)
        self.counts["versions"] += directory.below()
        self.counts["directories_renamed"] += 1

    def remove_directory(self):
        leaves = [one for one in self.directories if not one.children]
        directory = self.chance.choice(leaves)
        for name in directory.files:
            os.unlink(f"{directory.path}/{name}")
            self.forget(name)
        os.rmdir(directory.path)
        directory.parent.children.remove(directory)
        self.directories.remove(directory)
        self.files = [(where, name) for where, name in self.files if where is not directory]
        self.counts["directories_removed"] += 1


def write(root, rate, directories, equivalent, writer):
    # Ctrl-C is for the parent, who ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    tree = Tree(root, directories, equivalent * FILES_PER_DIRECTORY)
    tree.fill()
    writer.full.set()
    tree.counts = dict.fromkeys(COUNTS, 0)
    began = time.monotonic()
    directory_work_at = began
    # A parent that was killed cannot say stop.
    while not writer.stopped() and os.getppid() == parent:
        now = time.monotonic()
        late = now - began - tree.counts["versions"] / rate
        if late > TIMEOUT:
            began += late
            tree.counts["seconds_dropped"] += late
        if directories and now >= directory_work_at:
            tree.directory_work()
            directory_work_at = max(directory_work_at + DIRECTORY_WORK_PAUSE, now)
        while tree.counts["versions"] < (time.monotonic() - began) * rate and not writer.stopped():
            tree.file_work()
            # The rest of the loop has its turn, even when it cannot keep up.
            if time.monotonic() - now > DIRECTORY_WORK_PAUSE / 2:
                break
        tree.counts["files"], tree.counts["directories"] = len(tree.files), len(tree.directories)
        writer.publish(tree.counts)
        time.sleep(0.004)
