"""Memory is constant whatever the size of a file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from securifile.local.cluster import LocalCluster
from securifile.local.processes import ServerProcess, eventually
from tests.processes.actions import MIB, blocks, files, get, noise, put

SIZE = int(os.environ.get("SECURIFILE_BIG_MIB", "2048")) * MIB
GROWTH_MAX = 32 * MIB
RESIDENT_MAX = 80 * MIB
"""Of a node's process during one transfer."""
AT_ONCE = 16


def forget_peak(server: ServerProcess) -> None:
    """Let the peak be what it is now (proc(5): 5 to clear_refs)."""
    for pid in (server.pid, *server.fronts):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


@pytest.mark.timeout(300)
def test_a_big_file_needs_no_more_memory_than_a_small_one(cluster_of: Callable[..., LocalCluster]) -> None:
    """No node's resident memory grows by 32 MiB while 2 GiB go up to three of them, and down again from each."""
    cluster = cluster_of(nodes=3, replicas=2)
    for node in cluster.nodes:  # what is allocated once: connections, threads, buffers
        put(cluster.http(node, "alice"), f"alice/warm-{node}", noise(16 * MIB)).must(201)
        for other in cluster.nodes:
            cluster.http(other, "alice").request("GET", files(f"alice/warm-{node}?relay=1"), into=len).must(200)
    before = {name: server.resident_bytes() for name, server in cluster.nodes.items()}
    for server in cluster.nodes.values():
        forget_peak(server)
    sent, received = hashlib.sha256(), hashlib.sha256()

    def body() -> Iterator[bytes]:
        for block in blocks(SIZE):
            sent.update(block)
            yield block

    uploaded = cluster.http("node1", "alice", timeout_s=120).request("PUT", files("alice/big.bin"), body(), length=SIZE).must(201).json()
    assert uploaded["digest"] == sent.hexdigest()
    assert uploaded["copies"]["durable"] == 3
    cluster.http("node2", "alice", timeout_s=60).request("GET", files("alice/big.bin?relay=1"), into=received.update).must(200)
    assert received.hexdigest() == sent.hexdigest()
    growth = {name: server.resident_bytes("VmHWM") - before[name] for name, server in cluster.nodes.items()}
    print({name: f"{bytes_ / MIB:.1f} MiB" for name, bytes_ in growth.items()})
    assert max(growth.values()) < GROWTH_MAX, growth


@pytest.mark.timeout(300)
def test_what_much_work_has_taken_is_given_back(cluster_of: Callable[..., LocalCluster]) -> None:
    """After 16 uploads and 16 downloads at once a node comes to rest, and then one transfer finds it with at most 80 MiB all the time."""
    cluster = cluster_of(nodes=3, replicas=2)
    data = noise(16 * MIB)
    node = cluster.nodes["node1"]
    resident_max = RESIDENT_MAX * (1 + len(node.fronts))

    def upload(name: str) -> None:
        put(cluster.http("node1", "alice", timeout_s=120), f"alice/{name}", data).must(201)

    def download(name: str) -> None:
        assert get(cluster.http("node1", "alice", timeout_s=120), f"alice/{name}").must(200).body == data

    first, second = ([f"{which}-{number}" for number in range(AT_ONCE)] for which in ("first", "second"))
    with ThreadPoolExecutor(2 * AT_ONCE) as people:
        list(people.map(upload, first))
        both = [*(people.submit(upload, name) for name in second), *(people.submit(download, name) for name in first)]
        for one in both:
            one.result()
    taken = node.resident_bytes("VmHWM")
    eventually(lambda: node.resident_bytes() < resident_max - 4 * MIB, 30, "node1 has given back what it had taken")
    forget_peak(node)
    length = 256 * MIB
    cluster.http("node1", "alice", timeout_s=120).request("PUT", files("alice/large"), blocks(length), length=length).must(201)
    cluster.http("node1", "alice", timeout_s=60).request("GET", files("alice/large"), into=len).must(200)
    print(f"{taken / MIB:.1f} MiB were taken, then it was {node.resident_bytes('VmHWM') / MIB:.1f}")
    assert node.resident_bytes("VmHWM") <= resident_max
