"""What an operation costs while the catalogue and the index grow: it should stay as it is, or grow with the logarithm.

python -m benchmarks scale                       1,000, 100,000 and 1,000,000 files: some minutes
python -m benchmarks scale --quick               1,000 and 10,000
python -m benchmarks scale --plot docs/scale.svg
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs

from benchmarks import clients
from benchmarks.cluster import PERSON, SecuriFile
from benchmarks.processes import cpu_seconds
from benchmarks.synthetic import SIZE_BYTES, Synthetic, name_of, path_of
from benchmarks.trips import buckets, within
from benchmarks.work import Files
from securifile.local.cluster import ADMIN
from securifile.model.settings import ClusterSettings

COUNTS = (1_000, 100_000, 1_000_000)
COUNTS_QUICK = (1_000, 10_000)
TIMES = 60
"""How often each operation is done at each size; the median counts."""
FEW = 10
PAGE = 100
HEARTBEATS_S = 10.0
INTERVAL_S = 0.1
MISSED_MAX = 600
FLAT = 2.0
"""What costs no more than so many times as much at the largest size as at the smallest counts as flat: figures vary by as much."""


@attrs.frozen(kw_only=True)
class Cost:
    """What one operation cost at one size."""

    operation: str
    files: int
    millis: float


class Scale:
    """The measurements at one size after another, on one cluster."""

    def __init__(self, us: SecuriFile, files: Files) -> None:
        self._us = us
        self._small = files.of(SIZE_BYTES)
        self._turn = 0
        self._put = 0
        # There are no blobs: nobody is to look for them.
        us.set(scrub_bytes_s=0.0)
        # While rows are put into its index, the node may be slow to answer.
        us.set(heartbeats_missed_max=MISSED_MAX)
        us.set_replicas(2)
        self.synthetic = Synthetic(us)
        clients.upload([us.url(f"few/{name_of(number)}") for number in range(FEW)], us.ca, us.headers, self._small)

    def at(self, count: int) -> Iterator[Cost]:
        """Grow to so many files, and measure everything."""
        self.synthetic.grow(count)
        self._us.cluster.wait_running(self._us.node)
        for operation, measure in self._operations(count).items():
            yield Cost(operation=operation, files=count, millis=1000 * measure())

    def _operations(self, count: int) -> Mapping[str, Callable[[], float]]:
        return {
            "list a folder of 10": lambda: self._get([f"few/?limit={PAGE}&n={number}" for number in range(TIMES)]),
            "list 100 of a large folder": lambda: self._get(
                [f"many/?limit={PAGE}&after={name_of(self._some(count))}" for _ in range(TIMES)]
            ),
            "look a path up": lambda: self._get([self._some_path(count) for _ in range(TIMES)], "details"),
            "look a path up, admin server": lambda: self._get([self._some_path(count) for _ in range(TIMES)], "details", ADMIN),
            "put a new file": lambda: self._upload([f"many/new-{self._next()}" for _ in range(TIMES)]),
            "put a file's next version": lambda: self._upload([f"few/{name_of(0)}"] * TIMES),
            "heartbeat and answer": lambda: self._heartbeats()[0],
            "CPU for a heartbeat": lambda: self._heartbeats()[1],
            "explain a node": lambda: self._explain(),
        }

    def _next(self) -> int:
        self._put += 1
        return self._put

    def _some(self, count: int) -> int:
        """One of so many, far from the one before (the multiplier is Knuth's, near the golden ratio)."""
        self._turn += 1
        return self._turn * 2_654_435_761 % count

    def _some_path(self, count: int) -> str:
        return path_of(self._some(count))

    def _get(self, paths: Sequence[str], kind: str = "files", server: str | None = None) -> float:
        url = self._us.cluster.plan.url(server or self._us.node)
        urls = [f"{url}/api/v1/{kind}/{PERSON}/bench/{path}" for path in paths]
        return statistics.median(clients.one_by_one(urls, self._us.ca, self._us.headers))

    def _upload(self, paths: Sequence[str]) -> float:
        urls = [self._us.url(path) for path in paths]
        return statistics.median(clients.one_by_one(urls, self._us.ca, self._us.headers, self._small))

    def _explain(self) -> float:
        operator = self._us.cluster.operator()
        return statistics.median(operator.request("GET", f"/api/v1/servers/{self._us.node}/explain").must(200).seconds for _ in range(3))

    def _heartbeats(self) -> tuple[float, float]:
        """Half of the heartbeats that the node sends are answered within so many seconds; and its CPU seconds for one, sent or answered."""
        us, usual = self._us, ClusterSettings()
        us.set(heartbeat_interval_s=INTERVAL_S)
        time.sleep(2 * usual.heartbeat_interval_s)
        try:
            others = list(us.cluster.servers)
            before, cpu_before = buckets(us.metrics(us.node), others), cpu_seconds([us.nodes()[us.node]])
            time.sleep(HEARTBEATS_S)
            cpu_s = cpu_seconds([us.nodes()[us.node]]) - cpu_before
            trips = buckets(us.metrics(us.node), others)
            trips.subtract(before)
        finally:
            us.set(heartbeat_interval_s=usual.heartbeat_interval_s)
        # As many come in as go out, from nodes and admin servers alike.
        return within(trips, 0.5), cpu_s / (2 * trips.total())


def table(costs: Sequence[Cost]) -> list[str]:
    """A table in Markdown: a line for each operation, a column for each size."""
    sizes = sorted({cost.files for cost in costs})
    shown = ["| ms | " + " | ".join(f"{size:,} files" for size in sizes) + " | most / least files |", "|---" * (len(sizes) + 2) + "|"]
    for operation in dict.fromkeys(cost.operation for cost in costs):
        found = {cost.files: cost.millis for cost in costs if cost.operation == operation}
        growth = found[sizes[-1]] / found[sizes[0]] if found[sizes[0]] else 1.0
        verdict = "" if growth <= FLAT else ": **grows**"
        shown.append(f"| {operation} | " + " | ".join(f"{found[size]:.2f}" for size in sizes) + f" | {growth:.2f}{verdict} |")
    return shown
