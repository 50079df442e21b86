"""A node that was away and is verified: how fast, beside the digest alone, computed by one thread over the same bytes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks import clients
from benchmarks.cluster import SecuriFile
from benchmarks.figures import MIB, Sample
from benchmarks.processes import cpu_seconds
from benchmarks.work import Files
from securifile.local.asking import Http
from securifile.local.cluster import LocalCluster
from securifile.local.processes import eventually

FILE_BYTES = MIB
READ_BYTES = 256 * 1024
LOOK_S = 0.5
"""How often the admin server is asked whether the node runs: asking as often as tests do took a third of a core from what is measured."""
RETURN_S = 600.0
TRAIL_S = 10.0
"""How long after a node is running the record of it may take to the audit trail."""


class OneThread:
    """The digest's own speed on one core: it reads the blobs and computes SHA-256, and that is all."""

    name = "one thread"
    ca = Path()
    headers: Mapping[str, str] = {}

    def __init__(self, folder: Path) -> None:
        """Nothing has to be started."""

    def url(self, path: str) -> str:
        """See `Target`: it is asked for nothing."""
        raise NotImplementedError

    def roots(self) -> list[int]:
        """See `Target`: it is this process."""
        return []

    def clear(self) -> None:
        """See `Target`."""

    def stop(self) -> None:
        """See `Target`."""

    def read(self, blobs: Sequence[Path]) -> Sample:
        """Read all of these."""
        buffer = memoryview(bytearray(READ_BYTES))
        size, began, cpu_before = 0, time.monotonic(), time.process_time()
        for blob in blobs:
            hasher = hashlib.sha256()
            with blob.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    hasher.update(buffer[:count])
                    size += count
            hasher.digest()
        return Sample(seconds=time.monotonic() - began, amount=size, cpu_s=time.process_time() - cpu_before)


class Returning:
    """`count` files of a mebibyte; then the node that holds them all is stopped, started again, and verified by the others."""

    def __init__(self, files: Files, count: int) -> None:
        self._files = files
        self._count = count
        self._blobs: list[Path] = []

    def prepare(self, target: Any) -> None:
        """See `Work`."""
        if isinstance(target, SecuriFile):
            urls = [target.url(f"verified-{number}") for number in range(self._count)]
            clients.upload_in_turn(urls, target.ca, target.headers, self._files.of(FILE_BYTES))
            blobs = target.cluster.directory / target.node / "blobs"
            self._blobs = sorted(blob for blob in blobs.glob("*/*") if not blob.suffix)

    def run(self, target: Any, number: int) -> Sample:
        """See `Work`: from the beginning of the challenge until the node is running, by the audit trail."""
        if isinstance(target, OneThread):
            return target.read(self._blobs)
        cluster, name = target.cluster, target.node
        node = cluster.nodes[name]
        node.stop()
        cluster.wait_status("down", name)
        node.start()
        node.wait_ready()
        cpu_before = cpu_seconds(target.roots())
        eventually(lambda: _is_running(cluster, name), RETURN_S, f"{name} is running")
        cpu_s = cpu_seconds(target.roots()) - cpu_before
        operator = cluster.operator()
        began, ended = eventually(lambda: verified(_trail(operator, name)), TRAIL_S, f"the trail tells how {name} was verified")
        return Sample(seconds=(ended - began).total_seconds(), amount=self._count * FILE_BYTES, cpu_s=cpu_s)


def _is_running(cluster: LocalCluster, name: str) -> bool:
    time.sleep(LOOK_S)
    return cluster.statuses()[name] == "running"


def _trail(operator: Http, name: str) -> Sequence[Mapping[str, str]]:
    trail: Sequence[Mapping[str, str]] = operator.request("GET", f"/api/v1/servers/{name}/explain").must(200).json()["trail"]
    return trail


def verified(trail: Sequence[Mapping[str, str]]) -> tuple[datetime, datetime] | None:
    """When the last verification in a trail began and when the node was running; None when that has not come yet."""
    began = [number for number, one in enumerate(trail) if one["event"] == "verification"]
    ended = [one for one in trail[began[-1] :] if one["event"] == "status" and one["detail"].endswith("-> running")] if began else []
    return (datetime.fromisoformat(trail[began[-1]]["at"]), datetime.fromisoformat(ended[-1]["at"])) if ended else None
