"""Client, node or admin server are killed at any byte of a resumable upload: it completes, and little is sent again.

`SECURIFILE_TUS_BYTES=1073741824 SECURIFILE_TUS_ROUNDS=50` for the measure that the issue names.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
from collections.abc import Iterator
from urllib.parse import urlsplit

import attrs
import pytest

from securifile.local.asking import Http
from securifile.local.cluster import ADMIN, LocalCluster
from securifile.local.processes import eventually
from tests.processes.actions import BROKEN, MIB, files, noise

SIZE = int(os.environ.get("SECURIFILE_TUS_BYTES", str(24 * MIB)))
ROUNDS = int(os.environ.get("SECURIFILE_TUS_ROUNDS", "4"))
CHUNK = max(SIZE // 8, 1)
IN_FLIGHT = 16 * MIB
"""What the kernel's buffers, TLS and the servers' queues may hold on the way."""
PIECE = 64 * 1024
VICTIMS = ("client", "the node that takes it", "a node", ADMIN)
UPLOADS = "/api/v1/uploads"
BLOCK = noise(MIB, "resumable")


@attrs.define
class Content:
    """Bytes that are never in memory, no two blocks the same."""

    seed: int

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        at = start
        while at < stop:
            number, within = divmod(at, MIB)
            block = b"%016d" % (number * 1_000_003 + self.seed) + BLOCK[16:]
            data = block[within : min(within + PIECE, within + stop - at, MIB)]
            yield data
            at += len(data)

    def digest(self) -> str:
        hasher = hashlib.sha256()
        for data in self.pieces(0, SIZE):
            hasher.update(data)
        return hasher.hexdigest()


@attrs.define
class Client:
    """Somebody who uploads, and goes on at another node when something broke."""

    cluster: LocalCluster
    content: Content
    path: str
    chunk: int
    chance: random.Random
    url: str = ""
    node: str = ""
    sent: int = 0
    said: list[str] = attrs.Factory(list)

    def http(self) -> Http:
        return self.cluster.http(self.node, "alice", timeout_s=60)

    def create(self) -> None:
        self.node = self.chance.choice(list(self.cluster.nodes))
        path = base64.b64encode(self.path.encode()).decode()
        headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(SIZE), "Upload-Metadata": f"path {path}"}
        answer = self.http().request("POST", UPLOADS, headers=headers).must(201)
        self.url = urlsplit(str(answer.headers["Location"])).path

    def offset(self) -> int | None:
        """Where to go on; None when nobody can say now. What is complete is committed."""
        try:
            answer = self.http().request("HEAD", self.url, headers={"Tus-Resumable": "1.0.0"})
        except BROKEN as error:
            self.said.append(f"HEAD {type(error).__name__}")
            return None
        self.said.append(f"HEAD {answer.status} {answer.headers.get('Upload-Offset')}")
        answer.must(200, 423, 500, 503)
        return int(str(answer.headers["Upload-Offset"])) if answer.status == 200 else None

    def finds_offset(self, dead: list[str]) -> int:
        """Ask nodes that are not dead until one tells."""
        told: list[int | None] = [None]

        def ask() -> bool:
            self.node = self.chance.choice([node for node in self.cluster.nodes if node not in dead])
            told[0] = self.offset()
            return told[0] is not None

        eventually(ask, 60 + SIZE / MIB, "somebody tells the offset")
        assert told[0] is not None
        return told[0]

    def patch(self, offset: int, until: int, then: object = None) -> int | None:
        """Send a chunk; the new offset. At the byte `until` of the whole call `then`; with None go away there."""
        stop = min(offset + self.chunk, SIZE)
        headers = {
            "Tus-Resumable": "1.0.0",
            "Upload-Offset": str(offset),
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(stop - offset),
        }
        at = offset
        try:
            with self.http().begin("PATCH", self.url, headers) as exchange:
                for data in self.content.pieces(offset, stop):
                    exchange.send(data)
                    self.sent += len(data)
                    if at < until <= at + len(data):
                        if not callable(then):
                            return None
                        then()
                    at += len(data)
                answer = exchange.whole()
        except BROKEN as error:
            self.said.append(f"PATCH from {offset}: {type(error).__name__} at {at}")
            return None
        self.said.append(f"PATCH from {offset}: {answer.status} {answer.code or ''}")
        answer.must(204, 409, 423, 500, 503)
        return int(str(answer.headers["Upload-Offset"])) if answer.status == 204 else None


@pytest.mark.timeout(120 + ROUNDS * (30 + SIZE // (8 * MIB)))
def test_an_upload_survives_whatever_is_killed(cluster: LocalCluster) -> None:
    """One kill at a byte of chance in each upload; the digest is right, and no more than a chunk and what was in flight is sent twice."""
    seed = int(os.environ.get("SECURIFILE_SEED", str(random.randrange(10**6))))
    print(f"SECURIFILE_SEED={seed}")
    chance = random.Random(seed)
    cluster.token("alice")
    again = []
    for number in range(ROUNDS):
        content = Content(seed + number)
        whole = bool(number % 2)
        client = Client(cluster, content, f"alice/killed-{number}", SIZE if whole else CHUNK, chance)
        client.create()
        victim = VICTIMS[number] if number < len(VICTIMS) else chance.choice(VICTIMS)
        until = chance.randrange(1, SIZE + 1)
        killed: list[str] = []

        def kill(client: Client = client, victim: str = victim, killed: list[str] = killed) -> None:
            name = {"the node that takes it": client.node, "a node": chance.choice(list(cluster.nodes))}.get(victim, victim)
            cluster.servers[name].kill()
            killed.append(name)

        then = None if victim == "client" else kill
        offset: int | None = 0
        while offset != SIZE:
            if offset is None:
                if ADMIN in killed:
                    cluster.servers[ADMIN].start()
                    cluster.servers[ADMIN].wait_ready()
                    killed.remove(ADMIN)
                offset = client.finds_offset(killed)
            else:
                offset = client.patch(offset, until, then)
                until = 0 if offset is None or offset >= until else until
        twice = client.sent - SIZE
        again.append(twice)
        print(f"{number}: {victim} in {'one' if whole else 'many'}; {max(0, twice)} bytes twice; {client.said[-6:]}")
        assert twice <= (0 if whole else CHUNK) + IN_FLIGHT, client.said
        for name in killed:
            cluster.servers[name].start()
            cluster.servers[name].wait_ready()
        cluster.wait_running(*cluster.nodes)
        node = chance.choice(list(cluster.nodes))
        hasher = hashlib.sha256()
        answer = cluster.http(node, "alice").request("GET", files(client.path), follow=True, into=hasher.update)
        assert answer.must(200).status == 200 and hasher.hexdigest() == content.digest(), client.said
        details = cluster.details(client.path, "alice")
        assert (details["version"], details["size"]) == (1, SIZE)
        cluster.http(node, "alice").request("DELETE", files(client.path)).must(204)
    print(f"sent twice, in MiB: {[round(max(0, one) / MIB, 1) for one in again]}")
