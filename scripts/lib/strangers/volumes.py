"""File systems of a run's own, each mounted for as long as its context lasts."""

import contextlib
import subprocess

from measure import Skip
from tools import made

# Sparse: room for what all writers make. XFS takes no less than 300 MB.
IMAGE_BYTES = 4 << 30


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise Skip(f"{' '.join(command)}: {' '.join((done.stderr or done.stdout).split())[-200:]}")


@contextlib.contextmanager
def plain(work):
    """The file system of the temporary directory."""
    yield work


@contextlib.contextmanager
def mounted(at, *command):
    run("mount", *command, at)
    try:
        yield at
    finally:
        # Lazily: a writer that is just ending may still have a file open.
        subprocess.run(["umount", "--lazy", at], capture_output=True)


@contextlib.contextmanager
def tmpfs(work):
    with mounted(made(work, "mount"), "-t", "tmpfs", "-o", "size=4g", "tmpfs") as at:
        yield at


@contextlib.contextmanager
def overlay(work):
    """Its layers are on a tmpfs, because an overlay's upper layer may not be one itself."""
    with tmpfs(work) as ground:
        lower, upper, inner = (made(ground, name) for name in ("lower", "upper", "work"))
        options = f"lowerdir={lower},upperdir={upper},workdir={inner}"
        with mounted(made(work, "overlay"), "-t", "overlay", "-o", options, "overlay") as at:
            yield at


def on_loop(*make):
    """A file system in an image, made by this command."""

    @contextlib.contextmanager
    def volume(work):
        image = f"{work}/image"
        with open(image, "wb") as file:
            file.truncate(IMAGE_BYTES)
        run(*make, image)
        with mounted(made(work, "mount"), "-o", "loop", image) as at:
            yield at

    return volume


# Without room for nanoseconds in its inodes an ext4 has time stamps of whole seconds (ext4(5)).
VOLUMES = {
    "disk": plain,
    "tmpfs": tmpfs,
    "overlayfs": overlay,
    "xfs": on_loop("mkfs.xfs", "-q"),
    "btrfs": on_loop("mkfs.btrfs", "-q"),
    "ext4-whole-seconds": on_loop("mkfs.ext4", "-q", "-F", "-I", "128"),
}
