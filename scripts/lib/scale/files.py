"""The files of the directories that are measured: their names, and making, renaming and removing them."""

import itertools
import math
import os
import string

# A name begins with one of so many combinations of three letters: neighbors by their first three characters.
PREFIXES = ["".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=3)][::17]
# And neighbors of the same stem.
KINDS = ("flac", "cue", "log")


def name(number, mark=""):
    group, kind = divmod(number, len(KINDS))
    return f"{PREFIXES[group % len(PREFIXES)]}-{group:07}{mark}.{KINDS[kind]}"


class Flat:
    """Files side by side."""

    # Below the root.
    directories = 0

    def __init__(self, root, files):
        self.root, self.files = root, files

    def __str__(self):
        return f"{self.files:,} files in one directory"

    def make_directories(self):
        os.mkdir(self.root)

    def place(self, _group):
        return self.root

    def path(self, number, mark=""):
        return f"{self.place(number // len(KINDS))}/{name(number, mark)}"

    def make(self):
        self.make_directories()
        self.write(range(self.files))
        # Or this would still be written while the clock runs.
        os.sync()

    def write(self, numbers):
        for number in numbers:
            write(self.path(number), b"%d\n" % number)

    def move_out(self, numbers, to):
        """To the service they are gone. Not removed: a file system without a journal keeps the inodes of removed files
        for some minutes, and looks at all of these for every new file."""
        for number in numbers:
            os.rename(self.path(number), f"{to}/{number}")


class Tree(Flat):
    """Files in directories that are below others; those of one stem in the same."""

    def __init__(self, root, files, directories):
        super().__init__(root, files)
        tops = math.isqrt(directories)
        self.tops = [f"{root}/top-{number:05}" for number in range(tops)]
        self.places = [f"{self.tops[number % tops]}/sub-{number:06}" for number in range(directories)]

    def __str__(self):
        return f"{self.files:,} files in {len(self.places):,} directories, below {len(self.tops):,} others"

    @property
    def directories(self):
        return len(self.tops) + len(self.places)

    def make_directories(self):
        super().make_directories()
        for place in self.tops + self.places:
            os.mkdir(place)

    def place(self, group):
        return self.places[group % len(self.places)]


def write(path, content):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    os.write(file, content)
    os.close(file)
