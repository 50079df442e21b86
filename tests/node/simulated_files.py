"""A file system in memory that forgets at a crash what it was never told to keep, and fails when a test wants it to.

What is certain after a crash: bytes and names that were there at the last fsync of their file or directory. All else is
drawn from the test's random source, as badly as POSIX allows: each change of a name since the last fsync of its directory is
kept or lost on its own, and bytes written since the last fsync are there, or zeros, or cut off.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable

import attrs


class Crash(BaseException):
    """The machine is gone. Nothing in the code under test can catch it by accident."""


@attrs.define(eq=False)
class _File:
    data: bytearray = attrs.field(factory=bytearray)
    kept: bytes = b""


@attrs.define
class _Directory:
    names: dict[str, _File] = attrs.field(factory=dict)
    kept: dict[str, _File] = attrs.field(factory=dict)
    changes: list[tuple[str, _File | None]] = attrs.field(factory=list)
    """Since the last fsync, in order: the name, and what it stands for from then on."""

    def change(self, name: str, file: _File | None) -> None:
        self.changes.append((name, file))
        _set(self.names, name, file)


def _set(names: dict[str, _File], name: str, file: _File | None) -> None:
    if file is None:
        names.pop(name, None)
    else:
        names[name] = file


class SimulatedFiles:
    """See `Files`."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        """Every call that changes something, by name, in order."""
        self.before: Callable[[int, str], None] = lambda number, name: None
        """Called before each of them with its number from 0; may raise `OSError` or `Crash`."""
        self.syncs_begun: list[tuple[int, int]] = []
        """Offset and count of each `begin_sync`."""
        self.room = 2**40
        self._directories: dict[str, _Directory] = {}
        self._beneath: dict[str, set[str]] = {}
        self._made: set[str] = set()
        """Directories that an fsync of the parent has not made certain yet."""
        self._open: dict[int, _File] = {}
        self._next = 3
        self._crashed = False

    # --- what a test does ---

    def crash(self, chance: random.Random) -> None:
        """Everything that was not certain is decided; the machine starts anew."""
        for path in sorted(self._made):
            if chance.random() < 0.5:
                for lost in [name for name in self._directories if name == path or name.startswith(path + "/")]:
                    del self._directories[lost]
                    self._beneath[os.path.dirname(lost)].discard(os.path.basename(lost))
        self._made.clear()
        files: dict[int, _File] = {}
        for directory in self._directories.values():
            for name, file in directory.changes:
                if chance.random() < 0.5:
                    _set(directory.kept, name, file)
            directory.changes = []
            directory.names = dict(directory.kept)
            files.update((id(file), file) for file in directory.names.values())
        for file in files.values():
            file.data = bytearray(_after_crash(bytes(file.data), file.kept, chance))
            file.kept = bytes(file.data)
        self._open.clear()
        self._crashed = False
        self.before = lambda number, name: None

    def restart(self) -> None:
        """The process is gone, the machine is not: only open files are closed."""
        self._open.clear()

    @property
    def descriptors(self) -> int:
        """How many files are open."""
        return len(self._open)

    def tree(self) -> dict[str, bytes]:
        """Every file by its path."""
        return {
            os.path.join(path, name): bytes(f.data) for path, d in sorted(self._directories.items()) for name, f in sorted(d.names.items())
        }

    # --- what the store does ---

    def create(self, path: str) -> int:
        directory, name = self._at(path)
        self._step("create")
        if name in directory.names:
            raise FileExistsError(path)
        directory.change(name, _File())
        return self._opened(directory.names[name])

    def open(self, path: str, *, writing: bool = False) -> int:
        return self._opened(self._file(path))

    def write(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        self._step("write")
        file = self._open[descriptor]
        file.data.extend(bytes(max(0, offset - len(file.data))))
        file.data[offset : offset + len(data)] = data

    def read(self, descriptor: int, count: int, offset: int) -> bytes:
        return bytes(self._open[descriptor].data[offset : offset + count])

    def read_into(self, descriptor: int, memory: memoryview, offset: int) -> int:
        data = self.read(descriptor, len(memory), offset)
        memory[: len(data)] = data
        return len(data)

    def read_at_once(self, descriptor: int, count: int, offset: int) -> bytes | None:
        return self.read(descriptor, count, offset)

    def size(self, descriptor: int) -> int:
        return len(self._open[descriptor].data)

    def truncate(self, descriptor: int, length: int) -> None:
        self._step("truncate")
        del self._open[descriptor].data[length:]

    def begin_sync(self, descriptor: int, count: int, offset: int) -> None:
        # Nothing is certain by it.
        self.syncs_begun.append((offset, count))

    def sync(self, descriptor: int) -> None:
        self._step("sync")
        self._open[descriptor].kept = bytes(self._open[descriptor].data)

    def close(self, descriptor: int) -> None:
        del self._open[descriptor]

    def rename(self, source: str, target: str) -> None:
        self._step("rename")
        file = self._file(source)
        directory, name = self._at(target)
        if directory.names.get(name) is file:
            return  # as rename(2) does with two names of one file
        directory.change(name, file)
        directory, name = self._at(source)
        directory.change(name, None)

    def link(self, source: str, target: str) -> None:
        self._step("link")
        file = self._file(source)
        directory, name = self._at(target)
        if name in directory.names:
            raise FileExistsError(target)
        directory.change(name, file)

    def remove(self, path: str) -> None:
        self._step("remove")
        self._file(path)
        directory, name = self._at(path)
        directory.change(name, None)

    def length(self, path: str) -> int | None:
        directory, name = self._at(path)
        return len(directory.names[name].data) if name in directory.names else None

    def names(self, directory: str) -> list[str]:
        return sorted([*self._directories[directory].names, *self._beneath.get(directory, ())])

    def make_directory(self, path: str) -> None:
        self._step("make_directory")
        if path not in self._directories:
            self._directories[path] = _Directory()
            parent, name = os.path.split(path)
            self._beneath.setdefault(parent, set()).add(name)
            self._made.add(path)

    def sync_directory(self, path: str) -> None:
        self._step("sync_directory")
        self._made = {made for made in self._made if os.path.dirname(made) != path}
        if path in self._directories:
            directory = self._directories[path]
            directory.kept = dict(directory.names)
            directory.changes = []

    def available_bytes(self, directory: str) -> int:
        return self.room

    # --- how ---

    def _step(self, name: str) -> None:
        if self._crashed:
            raise Crash
        number = len(self.calls)
        self.calls.append(name)
        try:
            self.before(number, name)
        except Crash:
            self._crashed = True
            raise

    def _at(self, path: str) -> tuple[_Directory, str]:
        directory, name = os.path.split(path)
        if directory not in self._directories:
            raise FileNotFoundError(errno.ENOENT, "no such directory", directory)
        return self._directories[directory], name

    def _file(self, path: str) -> _File:
        directory, name = self._at(path)
        if name not in directory.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return directory.names[name]

    def _opened(self, file: _File) -> int:
        self._next += 1
        self._open[self._next] = file
        return self._next


def _after_crash(data: bytes, kept: bytes, chance: random.Random) -> bytes:
    """What a file may hold: what was kept with some later bytes over it, some as zeros, some cut off."""
    if data == kept:
        return data
    fate = chance.randrange(4)
    if fate == 0:
        return kept
    if fate == 1:
        return data
    cut = chance.randint(min(len(kept), len(data)), len(data))
    result = bytearray(data[:cut])
    if fate == 3:
        for place in range(len(kept), len(result)):  # length was kept, bytes were not
            result[place] = 0
    torn = chance.randint(0, len(kept))
    result[torn : len(kept)] = kept[torn:]
    return bytes(result)
