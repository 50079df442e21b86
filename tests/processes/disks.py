"""Small disks for servers: an ext4 file system in an image file, mounted where a server keeps its data.

What a program has written and not fsynced is in the memory of the kernel, not in the image; so a copy of the image, made while it is
mounted, is what a power cut leaves. Mounting the copy replays its journal, as after a power cut.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from securifile.local.cluster import LocalCluster
from securifile.local.processes import eventually

MIB = 1024 * 1024
PROGRAMS = ("mkfs.ext4", "mount", "umount")


def run(*command: object) -> None:
    """Run a program that must succeed; what it says is in the error."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}"


class Disk:
    """One of them, from `make` until `unmount`.

    Attributes:
        folder: where it is mounted.
        image: what it is kept in.
    """

    def __init__(self, folder: Path, image: Path) -> None:
        self.folder = folder
        self.image = image

    def make(self, size_bytes: int) -> None:
        """An empty file system, mounted."""
        self.image.parent.mkdir(exist_ok=True, parents=True)
        with self.image.open("wb") as file:
            file.truncate(size_bytes)
        run("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.image)
        self.mount()
        (self.folder / "lost+found").rmdir()
        self.folder.chmod(0o700)

    def mount(self) -> None:
        """Put it where it belongs; what its journal holds is replayed."""
        self.folder.mkdir(exist_ok=True, parents=True)
        run("mount", "-o", "loop,noatime", self.image, self.folder)

    def unmount(self) -> None:
        """Take it away: as soon as the last process that has something open there has gone."""

        def is_gone() -> bool:
            return not os.path.ismount(self.folder) or subprocess.run(["umount", self.folder], capture_output=True).returncode == 0

        eventually(is_gone, 20, f"{self.folder} can be unmounted")

    def sync(self) -> None:
        """Let everything that was written so far be on the disk."""
        run("sync", "-f", self.folder)

    def copied(self, copy: Path) -> Path:
        """A copy of the image as it is now: what is on the disk."""
        run("cp", "--sparse=always", self.image, copy)
        return copy


@cache
def missing() -> str | None:
    """Why no such disk can be made here; None if it can."""
    if os.geteuid() != 0:
        return "only root may mount a disk"
    for program in PROGRAMS:
        if shutil.which(program) is None:
            return f"there is no {program} here"
    with tempfile.TemporaryDirectory(prefix="securifile-disk-") as name:
        disk = Disk(Path(name, "folder"), Path(name, "image"))
        try:
            disk.make(16 * MIB)
        except AssertionError as error:
            return f"no disk can be mounted here: {error}"
        disk.unmount()
    return None


def disks_for(names: Sequence[str], size_bytes: int, disks: dict[str, Disk]) -> Callable[[LocalCluster], AbstractContextManager[None]]:
    """What prepares a cluster: a disk for the data of each of these servers, put into `disks` by its name."""

    @contextmanager
    def prepare(cluster: LocalCluster) -> Iterator[None]:
        with ExitStack() as made:
            for name in names:
                disk = disks[name] = Disk(cluster.servers[name].data, cluster.directory / "disks" / f"{name}.image")
                made.callback(disk.unmount)
                disk.make(size_bytes)
            yield

    return prepare


def children_of(pid: int) -> list[int]:
    """The processes that a process has started, as far as they are there."""
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    return []
