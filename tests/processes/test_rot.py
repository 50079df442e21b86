"""A byte rots on the disk of a running node: nobody gets it, it is found without being asked for, named, and made anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from securifile.local.cluster import LocalCluster
from securifile.local.processes import eventually
from tests.processes.actions import MIB, get, noise, put, sha256

BIG = "alice/big"
SMALL = [f"alice/small-{number}" for number in range(12)]
MENDED_S = 20.0


def blob_of(cluster: LocalCluster, node: str, data: bytes) -> Path:
    """Where a node keeps these bytes."""
    blobs = Path(cluster.nodes[node].data, "blobs")
    (found,) = (path for path in blobs.rglob("*") if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data)
    return found


def rot(blob: Path, offset: int) -> None:
    """Change one byte in place, as a disk would: same file, same size."""
    with blob.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x04]))


def is_mended(cluster: LocalCluster, node: str, blob: Path, data: bytes) -> bool:
    """Whether the bad blob lies aside and a sound one is in its place, known to be."""
    aside = Path(cluster.nodes[node].data, "quarantine", blob.name)
    return aside.exists() and aside.read_bytes() != data and blob.exists() and blob.read_bytes() == data


def trail(cluster: LocalCluster) -> list[bytes]:
    """The audit trail, line by line."""
    return b"".join(path.read_bytes() for path in Path(cluster.admin.data, "audit").glob("*.log")).splitlines()


def is_named(cluster: LocalCluster, blob: Path) -> bool:
    """Whether the audit trail says that it was rotten."""
    return any(b" rotten " in line and blob.name.encode() in line for line in trail(cluster))


def server(cluster: LocalCluster, name: str) -> dict[str, Any]:
    """What an admin server says of a server."""
    shown: dict[str, Any] = cluster.operator().request("GET", f"/api/v1/servers/{name}").must(200).json()
    return shown


@pytest.mark.parametrize("through", ["its origin", "a relay"])
def test_a_reader_gets_every_byte_right(small_cluster: LocalCluster, through: str) -> None:
    """A block in the middle of the origin's copy rots: a reader gets the whole file, in one answer, and the copy is made anew."""
    data = noise(24 * MIB, through)
    name = f"{BIG}-{through.replace(' ', '-')}"
    put(small_cluster.http("node1", "alice"), name, data).must(201)
    origin = small_cluster.details(name, "alice")["origin"]
    blob = blob_of(small_cluster, origin, data)
    rot(blob, 12 * MIB + 4711)
    if through == "its origin":
        answer = get(small_cluster.http(origin, "alice"), name)
    else:
        holders = small_cluster.holders(name, "alice")
        other = next(node for node in small_cluster.nodes if node not in holders)
        answer = small_cluster.http(other, "alice").request("GET", f"/api/v1/files/{name}?relay=1")
    assert sha256(answer.must(200).body) == sha256(data)
    eventually(lambda: is_mended(small_cluster, origin, blob, data), MENDED_S, "the copy is made anew")
    eventually(lambda: is_named(small_cluster, blob), MENDED_S, "the audit trail names it")


def test_the_scrub_finds_what_nobody_reads(small_cluster: LocalCluster) -> None:
    """With a quick scrub, a rotten byte is found by itself; the node goes on running, and everybody can see what happened."""
    for name in SMALL:
        put(small_cluster.http("node2", "alice"), name, noise(3000, name)).must(201)
    victim = small_cluster.holders(SMALL[5], "alice")[-1]
    blob = blob_of(small_cluster, victim, noise(3000, SMALL[5]))
    before = server(small_cluster, victim)["quarantined"]
    rot(blob, 1234)
    quick = {"scrub_bytes_s": 1e9, "scrub_every_s": 1}
    small_cluster.operator().request("PATCH", "/api/v1/settings", json=quick).must(200)
    eventually(lambda: is_mended(small_cluster, victim, blob, noise(3000, SMALL[5])), MENDED_S, "the scrub finds it and it is made anew")
    eventually(lambda: is_named(small_cluster, blob), MENDED_S, "the audit trail names it")
    eventually(lambda: server(small_cluster, victim)["quarantined"] > (before or 0), MENDED_S, "the admin server counts it")
    assert small_cluster.statuses()[victim] == "running"
    assert server(small_cluster, victim)["oldest_check_age_s"] is not None
    metrics = small_cluster.operator().request("GET", "/metrics").must(200).body.decode()
    assert f'securifile_node_quarantined_blobs{{server="{victim}"}}' in metrics
    assert "securifile_oldest_check_seconds " in metrics

    def all_verified() -> bool:
        details = [small_cluster.details(name, "alice") for name in SMALL]
        return any(one["verified_at"] is not None for one in details)

    eventually(all_verified, MENDED_S, "the catalogue knows when files were verified")
