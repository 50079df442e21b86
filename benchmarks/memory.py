"""How much memory the nodes take while large files come and go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks import clients
from benchmarks.cluster import SecuriFile
from benchmarks.figures import MIB, Goal, Measure
from benchmarks.processes import forget_peaks, peak_bytes
from benchmarks.work import Files, Sizes

ONE = Goal(measure=Measure.PEAK, must=80, aim=80)
MANY = Goal(measure=Measure.PEAK, must=200, aim=200)
REST_S = 6.0
"""A node that rests for so long after work has given back what it took for it (`securifile/memory.py`)."""


def peaks(us: SecuriFile, files: Files, sizes: Sizes) -> Iterator[tuple[str, dict[str, object]]]:
    """Lines for people and for the history: the largest node, during one transfer and during many both ways."""
    file = files.of(sizes.large)
    upload = partial(clients.upload, [us.url("large")], us.ca, us.headers, file)
    download = partial(clients.download, [us.url("large")], us.ca, us.headers, sizes.large)
    time.sleep(REST_S)
    yield _peak(us, "during one upload", ONE, [upload])
    yield _peak(us, "during one download", ONE, [download])
    names = [f"part-{number}" for number in range(sizes.parts)]
    part = files.of(sizes.part)
    there = [us.url(f"down-{name}") for name in names]
    clients.upload(there, us.ca, us.headers, part)
    coming = [us.url(f"up-{name}") for name in names]
    yield _peak(
        us,
        f"during {sizes.parts} each way",
        MANY,
        [
            lambda: clients.upload(coming, us.ca, us.headers, part),
            lambda: clients.download(there, us.ca, us.headers, sizes.part),
        ],
    )
    time.sleep(REST_S)
    yield _peak(us, "during one upload after that", ONE, [upload])
    yield _peak(us, "during one download after that", ONE, [download])


def _peak(us: SecuriFile, when: str, goal: Goal, work: list[Callable[[], None]]) -> tuple[str, dict[str, object]]:
    forget_peaks(us.nodes().values())
    running = [threading.Thread(target=one) for one in work]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    most = max(peak_bytes(process) for process in us.nodes().values()) / MIB
    line = f"resident memory of a node {when}: {most:.0f} MiB; at most {goal.must:g}: {goal.reached(most)}"
    return line, {"row": f"memory {when}", "mib": round(most, 1), "must": goal.must}
