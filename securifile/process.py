"""What both kinds of server do as processes: their clock, their data folder, and saying that they are ready, or cannot be."""

from __future__ import annotations

import atexit
import errno
import fcntl
import gc
import json
import os
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.error import CannotListenError
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.failure import Failure

from securifile.memory import give_back

READY = "ready.json"

REBUILD = "rebuild-catalogue"
"""In an admin server's data folder: its operator wants the catalogue made anew from the nodes if the database is empty."""

GARBAGE_THRESHOLDS = (10_000, 20, 20)
"""More objects made than ended before the youngest are looked at; how often they are before the older ones, and those before all.
Python's own is 700, 10, 10."""


class CannotStart(Exception):
    """A server cannot start as things are. The message says why, and what to do."""


class FolderTaken(CannotStart):
    """Another process uses this data folder. Stop it first, or give this server a folder of its own (--data)."""


def run_on_monotonic_time(reactor: Any) -> None:
    """Make the reactor's timers follow the monotonic clock; before anything is scheduled.

    Twisted 26.10 schedules on `time.time()`: a wall clock that is set back would stop heartbeats and leases for as long.
    """
    reactor.seconds = monotonic


def monotonic() -> float:
    """Seconds that nobody sets, and that a suspended machine spends too.

    On Linux `CLOCK_MONOTONIC` stands still meanwhile: a server that wakes up would take its old standing and leases for fresh.
    """
    return _CLOCK()


def _clock_that_counts_sleep() -> Callable[[], float]:
    number: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic if number is None else partial(time.clock_gettime, number)


_CLOCK = _clock_that_counts_sleep()


def check_public(host: str) -> None:
    """Check what others are to reach a server by. Raises `usage.UsageError` if it can be neither a DNS name nor an IP address."""
    if not isIPAddress(host) and not isIPv6Address(host) and not _DNS_NAME.fullmatch(host):
        raise usage.UsageError(f"--public: {host!r} is neither a host name nor an IP address (without a port)")


_DNS_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")


def take_folder(folder: Path) -> int:
    """Make the data folder, for its owner only, and lock it; the lock lives as long as the process.

    Returns:
        The lock's file descriptor, to be kept open.

    Raises:
        FolderTaken: another process has it.
        CannotStart: it cannot be made or written to.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotStart(
            f"the data folder {folder} cannot be used: {error.strerror} ({error.filename})."
            f" It has to be a folder that user {os.geteuid()} may write to."
        ) from error
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


def settle() -> None:
    """Have the garbage collector pass over what a started server has in memory, and look at the rest less often.

    Modules, classes and routes stay as long as the process. And under load a few thousand objects live for some milliseconds each: whoever
    looks for circles among them finds next to none, and takes a seventh of a small upload's time.
    """
    give_back()
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


def say_ready(folder: Path, **what: str) -> None:
    """Write `ready.json`: this process serves now."""
    write_json(folder / READY, {"pid": os.getpid(), **what})


def say_gone(folder: Path) -> None:
    """Remove `ready.json`: a clean end."""
    (folder / READY).unlink(missing_ok=True)


def stop_unstarted(reactor: Any, log: Logger, what: str, failure: Failure) -> None:
    """A server's start has failed: say why in one sentence, stop the reactor, and let the process end with status 1.

    What the world did is a sentence; only what must be an error of ours has a traceback.

    Args:
        what: the server, for the sentence.
    """
    problem = why_not(failure)
    if problem is None:
        log.failure("{what} cannot start, by an error in SecuriFile: {problem}", failure, what=what, problem=failure.getErrorMessage())
    else:
        log.critical("{what} cannot start: {problem}", what=what, problem=problem)
    # twistd has no way to be told a status. At exit all has been stopped in order, and nothing is left to lose but what is in
    # the buffers.
    atexit.register(_end_with_status_1)
    # `stop` raises on a reactor that does not run yet, and the services are started before it does.
    reactor.callWhenRunning(reactor.stop)


def why_not(failure: Failure) -> str | None:
    """Why a server could not start, as a sentence; None if nobody but a programmer can do anything about it."""
    error = failure.value
    if isinstance(error, CannotStart):
        return str(error)
    if isinstance(error, CannotListenError):
        where = f"port {error.port} of {error.interface or 'any address'}"
        number = getattr(error.socketError, "errno", None)
        advice = _LISTENING.get(number, f"{error.socketError}.") if number is not None else f"{error.socketError}."
        return f"{where} cannot be listened on: {advice}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    return None


_LISTENING = {
    errno.EADDRINUSE: "another process listens there. Stop that one, or choose another port.",
    errno.EACCES: "ports below 1024 need the capability CAP_NET_BIND_SERVICE. Choose a higher one, or grant it.",
    errno.EADDRNOTAVAIL: "this machine has no such address. Say with --listen one that it has, or 0.0.0.0 for all.",
}


def _end_with_status_1() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
