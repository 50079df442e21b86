"""A node's disk fills up: it refuses what it cannot keep, leaves nothing half done, lives, and goes on when there is room again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import pytest

from securifile.local.cluster import LocalCluster
from securifile.local.processes import eventually
from tests.processes.actions import BROKEN, MIB, blocks, files, get, noise, put, sha256
from tests.processes.conftest import running
from tests.processes.disks import Disk, disks_for, missing

RESERVE = 8 * MIB
ROOM = 2 * MIB
BIG = 5 * MIB
FULL = "node2"
SETTLED_S = 30.0
LACK = missing()
pytestmark = pytest.mark.skipif(LACK is not None, reason=f"no disks for servers: {LACK}")


@attrs.frozen
class Tight:
    """Three nodes, one replica; one of the nodes has a small disk."""

    cluster: LocalCluster
    disk: Disk

    @contextmanager
    def filled(self, left: int) -> Iterator[None]:
        """Fill that disk with something else until so many bytes are left; it is gone on leaving."""
        ballast = self.disk.folder / "ballast"
        with ballast.open("wb", buffering=0) as file:
            for step in (MIB, 64 * 1024, 4096):
                with suppress(OSError):
                    while _available(self.disk.folder) >= left + step or not left:
                        file.write(bytes(step))
        try:
            yield
        finally:
            ballast.unlink()

    def half_done(self) -> list[Path]:
        """What lies in the nodes' folders for blobs that have just begun."""
        return [path for node in self.cluster.nodes.values() for path in (node.data / "incoming").iterdir()]

    def room(self, node: str) -> int:
        """What the admin server has heard of a node's disk."""
        text = self.cluster.operator().request("GET", "/metrics").must(200).body.decode()
        label = f'securifile_node_available_bytes{{server="{node}"}} '
        return next(int(line.removeprefix(label)) for line in text.splitlines() if line.startswith(label))


def _available(folder: Path) -> int:
    state = os.statvfs(folder)
    return state.f_bavail * state.f_frsize


@pytest.fixture(scope="module")
def tight(request: pytest.FixtureRequest) -> Iterator[Tight]:
    disks: dict[str, Disk] = {}
    prepare = disks_for([FULL], 64 * MIB, disks)
    with running(request, prepare=prepare, nodes=3, replicas=1, options=["--reserve-bytes", str(RESERVE)]) as cluster:
        yield Tight(cluster, disks[FULL])


def test_what_does_not_fit_is_refused_or_goes_elsewhere(tight: Tight) -> None:
    """A file goes to a node with room, a new one or one that was here; with `?relay=1` it is 507 and nowhere; reading goes on."""
    cluster = tight.cluster
    put(cluster.http(FULL, "alice"), "alice/old", b"old").must(201)
    with tight.filled(RESERVE + ROOM):
        eventually(lambda: tight.room(FULL) <= ROOM, SETTLED_S, "the others know that the disk is nearly full")
        told = put(cluster.http(FULL, "alice"), "alice/elsewhere", noise(BIG)).must(201).json()
        assert FULL not in [told["origin"], *(one["server"] for one in told["replicas"])]
        refused = cluster.http(FULL, "alice").request("PUT", files("alice/here?relay=1"), noise(BIG))
        assert (refused.status, refused.code) == (507, "disk-full")
        put(cluster.http(FULL, "alice"), "alice/small", b"small").must(201)
        for node in cluster.nodes:
            get(cluster.http(node, "alice"), "alice/here").must(404)
            assert sha256(get(cluster.http(node, "alice"), "alice/elsewhere").must(200).body) == sha256(noise(BIG))
            assert get(cluster.http(node, "alice"), "alice/old").must(200).body == b"old"
        put(cluster.http("node1", "alice"), "alice/old", noise(BIG, "new")).must(200)
        assert FULL not in cluster.holders("alice/old", "alice")
        for node in cluster.nodes:
            assert sha256(get(cluster.http(node, "alice"), "alice/old").must(200).body) == sha256(noise(BIG, "new"))
        eventually(lambda: tight.half_done() == [], SETTLED_S, "nothing is left half done")


def test_a_disk_that_fills_up_in_mid_upload(tight: Tight) -> None:
    """Nobody said how much would come: 507, and nothing of it is left on any node; an older version stays as it was."""
    cluster = tight.cluster
    put(cluster.http(FULL, "alice"), "alice/grows", b"as it was").must(201)
    origin = cluster.details("alice/grows", "alice")["origin"]
    assert origin == FULL
    before = {name: sorted(path.name for path in (node.data / "blobs").rglob("*")) for name, node in cluster.nodes.items()}
    with tight.filled(RESERVE + ROOM):
        eventually(lambda: tight.room(FULL) <= ROOM, SETTLED_S, "the others know that the disk is nearly full")
        refused = cluster.http(FULL, "alice").request("PUT", files("alice/grows"), (block for block in blocks(3 * BIG)))
        assert (refused.status, refused.code) == (507, "disk-full")

        def nothing_left() -> bool:
            after = {name: sorted(path.name for path in (node.data / "blobs").rglob("*")) for name, node in cluster.nodes.items()}
            return tight.half_done() == [] and after == before

        eventually(nothing_left, SETTLED_S, "nothing of it is left on any node")
        for node in cluster.nodes:
            assert get(cluster.http(node, "alice"), "alice/grows").must(200).body == b"as it was"


def test_not_a_byte_is_left(tight: Tight) -> None:
    """Index and audit spool cannot be written either: the node serves nothing that it cannot record, nor anything old, and does not die.

    The others go on. With room again it catches up by itself.
    """
    cluster = tight.cluster
    pid = cluster.nodes[FULL].pid
    put(cluster.http("node1", "alice"), "alice/changes", b"old").must(201)
    put(cluster.http("node1", "alice"), "alice/secret", b"secret").must(201)
    access = "/api/v1/access/alice/secret"
    cluster.http("node1", "alice").request("PUT", access, json={"user": "bob", "role": "reader"}).must(200)
    get(cluster.http(FULL, "bob"), "alice/secret").must(200)
    with tight.filled(0):
        answers = []
        for number in range(6):

            def written(number: int = number) -> bool:
                body = f"new {number}".encode()
                return cluster.http("node1", "alice").request("PUT", files("alice/changes?relay=1"), body).status == 200

            eventually(written, SETTLED_S, "the others take writes")
            if number == 3:
                cluster.http("node3", "alice").request("DELETE", f"{access}?user=bob").must(204)
            for user, path in (("alice", "alice/changes"), ("bob", "alice/secret")):
                try:
                    answer = cluster.http(FULL, user).request("GET", files(f"{path}?relay=1"))
                except BROKEN:
                    continue
                answers.append((number, user, answer.status))
                if user == "alice":
                    assert answer.status != 200 or answer.body == f"new {number}".encode(), (number, answer)
                else:
                    assert answer.status != 200 or number < 3, (number, answer)
        refused = cluster.http(FULL, "alice").request("PUT", files("alice/nowhere?relay=1"), b"x")
        assert refused.status in {503, 507}, (refused.status, refused.body)
        print(f"\nwith a full disk: {answers}")
        assert cluster.nodes[FULL].pid == pid and cluster.nodes[FULL].is_running
    cluster.wait_running(FULL, timeout_s=SETTLED_S)

    def current() -> bool:
        return (
            get(cluster.http(FULL, "alice"), "alice/changes").body == b"new 5"
            and get(cluster.http(FULL, "bob"), "alice/secret").status == 404
        )

    eventually(current, SETTLED_S, "it has caught up")
    said = cluster.nodes[FULL].log.read_text().count("Traceback")
    assert said == 0, "a full disk is no bug"

    def written_there() -> bool:
        return put(cluster.http(FULL, "alice"), "alice/again", b"again").status in {200, 201}

    # Its connection to the admin server is tried again after some seconds at the latest.
    eventually(written_there, SETTLED_S, "it takes uploads again")
    get(cluster.http(FULL, "alice"), "alice/nowhere").must(404)
    assert cluster.nodes[FULL].pid == pid
