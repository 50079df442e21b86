"""What both kinds of server do as processes: their clock, their data folder, and saying that they are ready."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

READY = "ready.json"


class FolderTaken(Exception):
    """Another process uses this data folder. Stop it first, or give this server a folder of its own (--data)."""


def run_on_monotonic_time(reactor: Any) -> None:
    """Make the reactor's timers follow the monotonic clock; before anything is scheduled.

    Twisted 26.10 schedules on `time.time()`: a wall clock that is set back would stop heartbeats and leases for as long.
    """
    reactor.seconds = time.monotonic


def take_folder(folder: Path) -> int:
    """Make the data folder, for its owner only, and lock it; the lock lives as long as the process.

    Returns:
        The lock's file descriptor, to be kept open.

    Raises:
        FolderTaken: another process has it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise FolderTaken(f"{folder} is used by another process. Stop it, or choose another folder with --data.") from error
    return descriptor


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a small file that only its owner may read, whole or not at all, also across a power cut."""
    draft = path.with_name(path.name + ".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def say_ready(folder: Path, **what: str) -> None:
    """Write `ready.json`: this process serves now."""
    write_json(folder / READY, {"pid": os.getpid(), **what})


def say_gone(folder: Path) -> None:
    """Remove `ready.json`: a clean end."""
    (folder / READY).unlink(missing_ok=True)
