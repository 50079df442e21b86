"""What is left of a PostgreSQL whose admin server was killed: its processes, by their user and their command line.

Each is signalled through a descriptor, which cannot lead to a process that has got the number since (a pidfd).
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path


def cluster_name(data: Path) -> str:
    """A name that no other data directory on this machine has, and a copy of this one neither."""
    identity = data.stat()
    return f"securifile-{identity.st_dev:x}-{identity.st_ino:x}"


def _processes_of(name: str, uid: int) -> Iterator[int]:
    """The processes of user `uid` that have `name` in their command line or title."""
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            if entry.stat().st_uid == uid and _is_ours(int(entry.name), name):
                yield int(entry.name)
        except OSError:  # it has gone
            continue


def _is_ours(pid: int, name: str) -> bool:
    words = Path(f"/proc/{pid}/cmdline").read_bytes()
    # The postmaster has it as a setting, its children in their title: `postgres: NAME: checkpointer`.
    return f"--cluster_name={name}\0".encode() in words or words.startswith(f"postgres: {name}:".encode())


def _has_ended(pidfd: int) -> bool:
    # Not select(2), which knows no descriptor above 1023: a server may have as many.
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def signal_leftovers(name: str, uid: int, number: signal.Signals, told: frozenset[int]) -> set[int]:
    """Signal every process of that database that was not told yet; those that are there."""
    found = set()
    for pid in _processes_of(name, uid):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            # From here on the number may be given to another: ask again whose it is, and speak to the descriptor.
            if not _is_ours(pid, name) or _has_ended(descriptor):
                continue
            if pid not in told:
                signal.pidfd_send_signal(descriptor, number)
            found.add(pid)
        except (ProcessLookupError, FileNotFoundError):
            continue
        finally:
            os.close(descriptor)
    return found


def has_postmaster(data: Path, processes: set[int]) -> bool:
    """Whether one of these processes is the one that works on that data directory."""
    try:
        first = (data / "postmaster.pid").read_text().split("\n", 1)[0]
    except FileNotFoundError:
        return False
    return first.isdigit() and int(first) in processes
