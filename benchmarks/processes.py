"""CPU time and memory of a server with all its processes, from /proc; and the memory of the machine."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

TICKS_S = os.sysconf("SC_CLK_TCK")


def tree(roots: Iterable[int]) -> list[int]:
    """These processes and all below them that are there now."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    waiting = list(roots)
    while waiting:
        process = waiting.pop()
        found.append(process)
        waiting += parents.get(process, [])
    return found


def cpu_seconds(roots: Iterable[int]) -> float:
    """User and system time of the tree, with what children that have ended left to their parents."""
    return sum(sum(map(int, fields[11:15])) for process in tree(roots) if (fields := _stat(process))) / TICKS_S


def forget_peaks(roots: Iterable[int]) -> None:
    """Let the peaks of resident memory begin anew from what is resident now."""
    for process in tree(roots):
        Path(f"/proc/{process}/clear_refs").write_text("5", encoding="ascii")


def peak_bytes(process: int) -> int:
    """The most that was resident in one process since it started, or since `forget_peaks`."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def give_back_page_cache() -> None:
    """Have the system forget what it has read and written, if we are root on Linux.

    A virtual machine is given most of its memory when it first touches it. Whoever then writes into pages that have never been used
    measures its host: 2 CPU seconds a GiB in place of a quarter. Pages that are given back have been used.
    """
    os.sync()
    with suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("1", encoding="ascii")


def _stat(process: int) -> list[str]:
    """The fields of `/proc/PID/stat` behind the name, which may hold anything: state, parent, ...; empty when it has ended."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
