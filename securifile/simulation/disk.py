"""The disk of a machine: files in memory that forget at a power cut what they were never told to keep, and a worker that takes time.

What is certain after a power cut: bytes and names that were there at the last fsync of their file or directory. All else is
drawn, as badly as POSIX allows: each change of a name since the last fsync of its directory is kept or lost on its own, and bytes
written since the last fsync are there, or zeros, or cut off. When only the process dies, the kernel keeps everything.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from securifile.model.interfaces import IWorker

T = TypeVar("T")

Below = Callable[[int], int]
"""Draws an integer from 0 to its argument - 1."""


class Crash(BaseException):
    """The machine is gone. Nothing in the code that runs on it can catch this by accident."""


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
    """A file system; see `node.files.Files`.

    Attributes:
        room: bytes that may still be written; what is written takes them, what is removed gives them back.
        obeys_fsync: a disk that lies says that bytes are certain when they are not.
    """

    def __init__(self, *, room: int = 2**40, obeys_fsync: bool = True) -> None:
        self.room = room
        self.obeys_fsync = obeys_fsync
        self.steps = 0
        """Calls that change something, so far."""
        self.before: Callable[[str], None] = lambda call: None
        """Called before each of them with its name; may raise `OSError` or `Crash`."""
        self._directories: dict[str, _Directory] = {}
        self._beneath: dict[str, set[str]] = {}
        self._made: set[str] = set()
        """Directories that an fsync of the parent has not made certain yet."""
        self._open: dict[int, _File] = {}
        self._next = 3
        self._crashed = False

    # --- what befalls it ---

    def crash(self, below: Below) -> None:
        """Everything that was not certain is decided; the machine starts anew."""
        for path in sorted(self._made):
            if below(2):
                for lost in [name for name in self._directories if name == path or name.startswith(path + "/")]:
                    del self._directories[lost]
                    self._beneath[os.path.dirname(lost)].discard(os.path.basename(lost))
        self._made.clear()
        files: dict[int, _File] = {}
        for directory in self._directories.values():
            for name, file in directory.changes:
                if below(2):
                    _set(directory.kept, name, file)
            directory.changes = []
            directory.names = dict(directory.kept)
            files.update((id(file), file) for file in directory.names.values())
        for file in files.values():
            file.data = bytearray(_after_crash(bytes(file.data), file.kept, below))
            file.kept = bytes(file.data)
        self.restart()

    def restart(self) -> None:
        """The process is gone, the machine is not: only open files are closed."""
        self._open.clear()
        self.restart_steps()

    def restart_steps(self) -> None:
        """After a `Crash` in one thread, others may go on."""
        self._crashed = False
        self.before = lambda call: None

    def rot(self, path: str, offset: int) -> None:
        """One byte is not what was written any more."""
        file = self._file(path)
        file.data[offset] ^= 0xFF
        file.kept = bytes(file.data)

    def tree(self) -> dict[str, bytes]:
        """Every file by its path."""
        return {
            os.path.join(path, name): bytes(f.data) for path, d in sorted(self._directories.items()) for name, f in sorted(d.names.items())
        }

    # --- what programs do ---

    def create(self, path: str) -> int:
        """See `Files`."""
        directory, name = self._at(path)
        self._step("create")
        if name in directory.names:
            raise FileExistsError(path)
        directory.change(name, _File())
        return self._opened(directory.names[name])

    def open(self, path: str, *, writing: bool = False) -> int:
        """See `Files`."""
        return self._opened(self._file(path))

    def write(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        """See `Files`."""
        self._step("write")
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, "no room")
        self.room -= len(data)
        file = self._open[descriptor]
        file.data.extend(bytes(max(0, offset - len(file.data))))
        file.data[offset : offset + len(data)] = data

    def read(self, descriptor: int, count: int, offset: int) -> bytes:
        """See `Files`."""
        return bytes(self._open[descriptor].data[offset : offset + count])

    def read_into(self, descriptor: int, memory: memoryview, offset: int) -> int:
        """See `Files`."""
        data = self.read(descriptor, len(memory), offset)
        memory[: len(data)] = data
        return len(data)

    def read_at_once(self, descriptor: int, count: int, offset: int) -> bytes | None:
        """See `Files`."""
        return self.read(descriptor, count, offset)

    def size(self, descriptor: int) -> int:
        """See `Files`."""
        return len(self._open[descriptor].data)

    def truncate(self, descriptor: int, length: int) -> None:
        """See `Files`."""
        self._step("truncate")
        data = self._open[descriptor].data
        self.room += max(0, len(data) - length)
        del data[length:]

    def begin_sync(self, descriptor: int, count: int, offset: int) -> None:
        """See `Files`. Nothing is certain by it."""

    def sync(self, descriptor: int) -> None:
        """See `Files`."""
        self._step("sync")
        if self.obeys_fsync:
            self._open[descriptor].kept = bytes(self._open[descriptor].data)

    def close(self, descriptor: int) -> None:
        """See `Files`."""
        self._open.pop(descriptor, None)

    def rename(self, source: str, target: str) -> None:
        """See `Files`."""
        self._step("rename")
        file = self._file(source)
        directory, name = self._at(target)
        directory.change(name, file)
        directory, name = self._at(source)
        directory.change(name, None)

    def link(self, source: str, target: str) -> None:
        """See `Files`."""
        self._step("link")
        file = self._file(source)
        directory, name = self._at(target)
        if name in directory.names:
            raise FileExistsError(target)
        directory.change(name, file)

    def remove(self, path: str) -> None:
        """See `Files`."""
        self._step("remove")
        self.room += len(self._file(path).data)
        directory, name = self._at(path)
        directory.change(name, None)

    def length(self, path: str) -> int | None:
        """See `Files`."""
        directory, name = self._at(path)
        return len(directory.names[name].data) if name in directory.names else None

    def names(self, directory: str) -> list[str]:
        """See `Files`."""
        return sorted([*self._directories[directory].names, *self._beneath.get(directory, ())])

    def make_directory(self, path: str) -> None:
        """See `Files`."""
        self._step("make_directory")
        if path not in self._directories:
            self._directories[path] = _Directory()
            parent, name = os.path.split(path)
            self._beneath.setdefault(parent, set()).add(name)
            self._made.add(path)

    def sync_directory(self, path: str) -> None:
        """See `Files`."""
        self._step("sync_directory")
        self._made = {made for made in self._made if os.path.dirname(made) != path}
        if path in self._directories and self.obeys_fsync:
            directory = self._directories[path]
            directory.kept = dict(directory.names)
            directory.changes = []

    def available_bytes(self, directory: str) -> int:
        """See `Files`."""
        return self.room

    # --- how ---

    def _step(self, call: str) -> None:
        if self._crashed:
            raise Crash
        self.steps += 1
        try:
            self.before(call)
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


def _after_crash(data: bytes, kept: bytes, below: Below) -> bytes:
    """What a file may hold: what was kept with some later bytes over it, some as zeros, some cut off."""
    if data == kept:
        return data
    fate = below(4)
    if fate == 0:
        return kept
    if fate == 1:
        return data
    cut = min(len(kept), len(data)) + below(len(data) - min(len(kept), len(data)) + 1)
    result = bytearray(data[:cut])
    if fate == 3:
        for place in range(len(kept), len(result)):  # length was kept, bytes were not
            result[place] = 0
    torn = below(len(kept) + 1)
    result[torn : len(kept)] = kept[torn:]
    return bytes(result)


@implementer(IWorker)
class SimulatedWorker:
    """Does each piece of work at one instant, after the time that it takes; only while its process lives.

    Args:
        clock: of the process.
        takes_s: draws how long the next piece takes.
    """

    def __init__(self, clock: IReactorTime, takes_s: Callable[[], float]) -> None:
        self._clock = clock
        self._takes_s = takes_s
        self._waiting: dict[int, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
        self._number = 0

    def do(self, work: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """See `IWorker`."""
        result: Deferred[T] = Deferred(lambda _: None)
        self._number += 1
        self._waiting[self._number] = (work, arguments)
        self._clock.callLater(self._takes_s(), self._work, self._number, result)
        return result

    def _work(self, number: int, result: Deferred[Any]) -> None:
        work, arguments = self._waiting.pop(number)
        try:
            value: Any = work(*arguments)
        except Crash:
            return
        except Exception:
            value = Failure()
        if not result.called:
            result.callback(value)

    def die_working(self, files: SimulatedFiles, below: Below) -> None:
        """The process dies: what its threads were at has been done, or not, or up to some step."""
        for work, arguments in list(self._waiting.values()):
            left = below(8)

            def step(call: str) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Crash

            files.before = step
            try:
                work(*arguments)
            except Crash:
                pass
            except Exception:
                continue
            finally:
                files.restart_steps()
