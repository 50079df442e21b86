"""Round trips on the control connections while bulk runs between the same nodes: the heartbeats' own, as the nodes measure them."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from benchmarks import clients
from benchmarks.cluster import SecuriFile
from benchmarks.figures import Sample
from benchmarks.processes import cpu_seconds
from benchmarks.targets import CannotMeasure
from benchmarks.work import Files
from securifile.model.settings import ClusterSettings

INTERVAL_S = 0.2
"""Of heartbeats meanwhile: five a second each way, so that there is something to count."""
MISSED_MAX = 10
"""Nobody is to be held for down sooner because more of them are sent."""
USUAL = ClusterSettings()

_BUCKET = re.compile(r'^securifile_heartbeat_trip_seconds_bucket\{server="([^"]+)",le="([^"]+)"\} (\d+)', re.MULTILINE)


@attrs.frozen(kw_only=True)
class BulkAndHeartbeats:
    """Put `count` files at once, with replicas, and count how long heartbeats between the node that takes them and the others take."""

    files: Files
    size: int
    count: int

    def prepare(self, target: Any) -> None:
        """See `Work`."""

    def run(self, target: SecuriFile, number: int) -> Sample:
        """See `Work`. The amount is the bytes that went up."""
        file = self.files.of(self.size)
        urls = [target.url(f"up-{number}-{one}") for one in range(self.count)]
        target.set(heartbeats_missed_max=MISSED_MAX)
        target.set(heartbeat_interval_s=INTERVAL_S)
        # The next round still comes after the usual interval, and until then nobody is heard of often enough to serve.
        time.sleep(2 * USUAL.heartbeat_interval_s)
        try:
            before, cpu_before = self._trips(target), cpu_seconds(target.roots())
            began = time.monotonic()
            clients.upload(urls, target.ca, target.headers, file)
            seconds = time.monotonic() - began
            cpu_s = cpu_seconds(target.roots()) - cpu_before
            trips = self._trips(target)
            trips.subtract(before)
        finally:
            target.set(heartbeat_interval_s=USUAL.heartbeat_interval_s)
            target.set(heartbeats_missed_max=USUAL.heartbeats_missed_max)
            target.clear()
        if not trips.total():
            raise CannotMeasure("its nodes do not tell how long heartbeats take")
        return Sample(seconds=seconds, amount=self.size * self.count, cpu_s=cpu_s, p50_s=within(trips, 0.50), p99_s=within(trips, 0.99))

    def _trips(self, target: SecuriFile) -> Counter[float]:
        """How many trips took so long at most and longer than the bound below, between the node that is asked and each other one."""
        found: Counter[float] = Counter()
        for name in target.nodes():
            others = [target.node] if name != target.node else [other for other in target.nodes() if other != name]
            found.update(buckets(target.metrics(name), others))
        return found


def buckets(metrics: str, servers: Sequence[str]) -> Counter[float]:
    """Of the text that `/metrics` gives: how many trips to these servers took so long at most, and longer than the bound below."""
    found: Counter[float] = Counter()
    below = dict.fromkeys(servers, 0)
    for server, bound, count in _BUCKET.findall(metrics):
        if server in below:
            found[float(bound)] += int(count) - below[server]
            below[server] = int(count)
    return found


def within(trips: Mapping[float, int], share: float) -> float:
    """So long at most that share of the trips took, in seconds; between two bounds it is reckoned as if trips were spread evenly."""
    wanted = share * sum(trips.values())
    lower, counted = 0.0, 0
    for bound, count in sorted(trips.items()):
        if count and counted + count >= wanted:
            return lower if bound == float("inf") else lower + (bound - lower) * (wanted - counted) / count
        lower, counted = bound, counted + count
    return lower
