"""A node returns: what was missed is caught up, every copy is proved, and one rotten byte makes it failed until it is repaired."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from securifile.local.cluster import LocalCluster
from securifile.local.processes import eventually
from tests.processes.actions import get, noise, put

FILES = 200
CHANGED = 20
SETTLED_S = 20.0


@pytest.fixture(scope="module")
def names(cluster: LocalCluster) -> list[str]:
    """Many small files of alice's."""
    found = [f"alice/file-{number:03}" for number in range(FILES)]
    for number, name in enumerate(found):
        put(cluster.http(f"node{number % 5 + 1}", "alice"), name, noise(3000 + number, name)).must(201)
    return found


def flip_a_byte(cluster: LocalCluster, node: str, names: list[str], chance: random.Random) -> str:
    """Spoil one byte of one blob on the disk of a node, of a file that was never changed; the attempt it belongs to.

    Superseded blobs lie there for a while, too, and nobody looks at those.
    """
    current = {noise(3000 + number, name) for number, name in enumerate(names) if number >= CHANGED}
    every = sorted(path for path in Path(cluster.nodes[node].data, "blobs").rglob("*") if path.is_file() and not path.suffix)
    blobs = [path for path in every if path.read_bytes() in current]
    blob = chance.choice(blobs)
    data = bytearray(blob.read_bytes())
    data[chance.randrange(len(data))] ^= 0x10
    blob.write_bytes(data)
    return blob.name


def changes_of(cluster: LocalCluster, names: list[str], down: str) -> None:
    """Upload a new version of some files through the nodes that run."""
    others = [name for name in cluster.nodes if name != down]
    for number, name in enumerate(names[:CHANGED]):
        put(cluster.http(others[number % len(others)], "alice"), name, noise(2000, f"{name} again")).must(200)


def test_an_honest_node_returns(cluster: LocalCluster, names: list[str]) -> None:
    """Killed, files changed meanwhile, started again: it is running again by itself, and gives what is current."""
    cluster.nodes["node2"].kill()
    cluster.wait_status("down", "node2")
    changes_of(cluster, names, "node2")
    cluster.nodes["node2"].start()
    cluster.wait_status("running", "node2", timeout_s=SETTLED_S)
    for name in names[:CHANGED]:
        assert get(cluster.http("node2", "alice"), name).must(200).body == noise(2000, f"{name} again")


def test_one_rotten_byte_fails_a_node_until_it_is_repaired(cluster: LocalCluster, names: list[str]) -> None:
    """The node is failed and serves nobody; the file is named in the audit trail; repair and online make it running again."""
    victim = cluster.nodes["node3"]
    victim.kill()
    cluster.wait_status("down", "node3")
    attempt = flip_a_byte(cluster, "node3", names, random.Random(7))
    victim.start()
    cluster.wait_status("failed", "node3", timeout_s=SETTLED_S)
    refused = get(cluster.http("node3"), names[0])
    assert (refused.status, refused.code) == (503, "not-running")

    def named() -> bool:
        trail = b"".join(path.read_bytes() for path in Path(cluster.admin.data, "audit").glob("*.log"))
        return any(b" bad-copy " in line and attempt.encode() in line for line in trail.splitlines())

    # It is on the disk a tenth of a second after the status was changed.
    eventually(named, SETTLED_S, "the audit trail names the bad copy")

    operator = cluster.operator()
    operator.request("POST", "/api/v1/servers/node3/offline", body=b"").must(200)
    cluster.wait_status("down", "node3")
    repaired = operator.request("POST", "/api/v1/servers/node3/repair", body=b"").must(200).json()
    assert (repaired["fetched"], repaired["lost"]) == (1, [])
    operator.request("POST", "/api/v1/servers/node3/online", body=b"").must(200)
    cluster.wait_status("running", "node3", timeout_s=SETTLED_S)


def test_a_power_cut_of_all_servers(cluster: LocalCluster, names: list[str]) -> None:
    """All are killed at once and started again: they verify each other and are running without help."""
    for server in cluster.servers.values():
        server.kill()
    for server in cluster.servers.values():
        server.start()
    for server in cluster.servers.values():
        server.wait_ready()
    cluster.wait_status("running", *cluster.nodes, timeout_s=2 * SETTLED_S)

    def readable() -> bool:
        return get(cluster.http("node4", "alice"), names[-1]).status == 200

    eventually(readable, SETTLED_S, "files can be read again")


def test_a_challenger_whose_own_copy_is_rotten_fails_nobody_else(cluster: LocalCluster, names: list[str]) -> None:
    """A byte rots on a running node; another one returns and is running; the rotten copy is made anew."""
    attempt = flip_a_byte(cluster, "node5", names, random.Random(11))
    for name in ("node1", "node2", "node3", "node4"):
        cluster.nodes[name].restart()
        cluster.wait_status("running", name, timeout_s=SETTLED_S)
    quarantine = Path(cluster.nodes["node5"].data, "quarantine")

    def replaced() -> bool:
        aside = any(attempt in path.name for path in quarantine.rglob("*"))
        blob = Path(cluster.nodes["node5"].data, "blobs", attempt[:2], attempt)
        return aside and blob.exists()

    eventually(replaced, SETTLED_S, "the rotten copy is put aside and fetched again")
    assert cluster.statuses()["node5"] == "running"
