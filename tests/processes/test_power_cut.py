"""The power fails: what was acknowledged is on the disks, and what is on the disks is enough to go on."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress

import attrs
import pytest

from securifile.local.asking import Response
from securifile.local.cluster import ADMIN, LocalCluster
from securifile.local.processes import eventually
from securifile.node.pack_format import decode_places
from tests.processes.actions import BROKEN, get, noise, put, sha256
from tests.processes.conftest import running
from tests.processes.database import ask_catalogue
from tests.processes.disks import MIB, Disk, children_of, disks_for, missing

ROUNDS = int(os.environ.get("SECURIFILE_POWER_CUTS", "1"))
SETTLED_S = 40.0
NODES = ["node1", "node2", "node3"]
SIZES = (0, 1, 5_000, 300_000)
LACK = missing()
pytestmark = [
    pytest.mark.skipif(LACK is not None, reason=f"no disks for servers: {LACK}"),
    pytest.mark.timeout(120 + 30 * ROUNDS),
]


@attrs.frozen
class Upload:
    """One that was answered 2xx."""

    path: str
    digest: str
    version: int
    holders: frozenset[str]
    """Those with a durable copy, as the answer said."""


class Uploaders(AbstractContextManager["Uploaders"]):
    """People who upload new files, and sometimes change one, through all nodes, from entering to leaving."""

    def __init__(self, cluster: LocalCluster, number: int, seed: object) -> None:
        self._cluster = cluster
        self._seed = seed
        self._enough = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=(one,), daemon=True) for one in range(number)]
        self.acknowledged: list[Upload] = []
        self.possible: dict[str, set[str]] = {}
        """By path, the digests of what may be there: what was acknowledged last, and what has got no certain answer since."""

    def __enter__(self) -> Uploaders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *why: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join(60)

    def _work(self, number: int) -> None:
        chance = random.Random(f"{self._seed} {number}")
        count, changed = 0, 0
        while not self._enough.is_set():
            count += 1
            if count % 3 == 0:
                changed += 1
            path = f"alice/{self._seed}-{number}-{changed if count % 3 == 0 else count}"
            data = noise(chance.choice(SIZES), (path, count))
            with self._lock:
                self.possible.setdefault(path, set()).add(sha256(data))
            response: Response | None = None
            with suppress(*BROKEN):
                response = put(self._cluster.http(chance.choice(list(self._cluster.nodes)), "alice", timeout_s=10), path, data)
            if response is not None and response.status in {200, 201}:
                told = response.json()
                holders = frozenset({told["origin"], *(one["server"] for one in told["replicas"] if one["durable"])})
                with self._lock:
                    self.acknowledged.append(Upload(path, sha256(data), told["version"], holders))
                    self.possible[path] = {sha256(data)}
            else:
                self._enough.wait(0.05)

    def last(self) -> dict[str, Upload]:
        """The newest acknowledged upload of each path."""
        with self._lock:
            return {one.path: one for one in self.acknowledged}


class Machines:
    """Servers with a disk each, and the power that they all need."""

    def __init__(self, cluster: LocalCluster, disks: dict[str, Disk]) -> None:
        self.cluster = cluster
        self.disks = disks
        self._copies = 0

    def cut(self, *names: str) -> None:
        """Cut the power of these servers, all at the same instant: what their disks have then is what is found after it.

        They are stopped while their disks are copied, so that nothing is answered or written meanwhile; and then never go on.
        """
        self._copies += 1
        stopped = [self.cluster.servers[name].pid for name in names]
        if ADMIN in names:
            postgres = self.cluster.postgres_pid()
            assert postgres is not None
            stopped += [postgres, *children_of(postgres)]
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        copies = {name: self.disks[name].copied(self.disks[name].image.with_suffix(f".{self._copies}")) for name in names}
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name in names:
            self.cluster.servers[name].kill()
        for name, copy in copies.items():
            disk = self.disks[name]
            disk.unmount()
            disk.image.unlink()
            disk.image = copy
            disk.mount()

    def start(self, *names: str) -> None:
        """The power is back."""
        for name in names:
            self.cluster.servers[name].start()
        for name in names:
            self.cluster.servers[name].wait_ready()
        self.cluster.wait_running(*self.cluster.nodes, timeout_s=SETTLED_S)


@pytest.fixture(scope="module")
def machines(request: pytest.FixtureRequest) -> Iterator[Machines]:
    """Three nodes, one replica; everything that any server keeps, PostgreSQL too, is on a disk of its own."""
    disks: dict[str, Disk] = {}
    prepare = disks_for([ADMIN, *NODES], 384 * MIB, disks)
    with running(request, prepare=prepare, nodes=len(NODES), replicas=1, options=["--reserve-bytes", str(MIB)]) as cluster:
        cluster.token("alice")
        for disk in disks.values():
            # What the servers were invited with came from this test, which fsyncs nothing.
            disk.sync()
        yield Machines(cluster, disks)


@pytest.fixture(scope="module")
def chance() -> random.Random:
    """Printed, so that a run can be had again (its choices, not its timing)."""
    seed = int(os.environ.get("SECURIFILE_SEED", str(random.randrange(10**6))))
    print(f"\nSECURIFILE_SEED={seed}")
    return random.Random(seed)


def digests_on(disk: Disk) -> set[str]:
    """Of every blob on a disk that has its sidecar, as the bytes are: in a file of its own, or in a pack, of which any name will do."""
    blobs = [path for path in (disk.folder / "blobs").rglob("*") if path.is_file() and not path.suffix]
    whole = [blob.read_bytes() for blob in blobs if blob.with_name(blob.name + ".meta").exists()]
    for path in [*(disk.folder / "blobs").rglob("*.pack"), *(disk.folder / "packs").iterdir()]:
        pack = path.read_bytes()
        whole += [pack[place.start : place.start + place.size] for place in decode_places(pack).values()]
    return {hashlib.sha256(data).hexdigest() for data in whole}


def check(cluster: LocalCluster, people: Uploaders) -> None:
    """Everything acknowledged is there; whatever else was tried is there whole, or not at all; every node says so."""
    last = people.last()
    for number, (path, possible) in enumerate(sorted(people.possible.items())):
        answer = get(cluster.http(NODES[number % len(NODES)], "alice"), path).must(200, 404)
        if path in last:
            assert answer.status == 200, last[path]
        assert answer.status == 404 or sha256(answer.body) in possible, (path, last.get(path), sha256(answer.body))


def wait_for(people: Uploaders, chance: random.Random) -> None:
    """Let the people work for a while."""
    goal = len(people.acknowledged) + chance.randrange(20, 60)
    eventually(lambda: len(people.acknowledged) >= goal, 60, f"{goal} uploads are acknowledged")


def test_one_node_loses_its_power(machines: Machines, chance: random.Random) -> None:
    """What it had promised to hold is whole on its disk; it is verified and running again by itself; the others went on."""
    cluster = machines.cluster
    seen = 0
    with Uploaders(cluster, 3, f"one{chance.randrange(10**6)}") as people:
        for _ in range(ROUNDS):
            wait_for(people, chance)
            victim = chance.choice(NODES)
            machines.cut(victim)
            promised = {one.digest for one in people.last().values() if victim in one.holders}
            assert promised <= digests_on(machines.disks[victim])
            seen += len(promised)
            machines.start(victim)
    check(cluster, people)
    print(f"{ROUNDS} power cuts of one of {len(NODES)} nodes, {len(people.acknowledged)} uploads, {seen} copies looked for on the disks")


def test_all_lose_their_power(machines: Machines, chance: random.Random) -> None:
    """Nodes, admin server and PostgreSQL at the same instant: they verify each other, and nothing that was acknowledged is missing.

    Neither is its record in the audit trail.
    """
    cluster = machines.cluster
    everybody: list[Uploaders] = []
    for number in range(ROUNDS):
        with Uploaders(cluster, 3, f"all{number}-{chance.randrange(10**6)}") as people:
            wait_for(people, chance)
            machines.cut(ADMIN, *NODES)
            machines.start(ADMIN, *NODES)
        everybody.append(people)

        def writable(number: int = number) -> bool:
            return put(cluster.http("node1", "alice"), f"alice/after-{number}", b"after").status in {200, 201}

        eventually(writable, SETTLED_S, "files can be written again")
        check(cluster, people)

    def recorded() -> bool:
        found = {(path, status) for path, status in ask_catalogue(cluster, "SELECT path, status FROM audit WHERE event = 'write'")}
        asked = {(one.path, 201 if one.version == 1 else 200) for people in everybody for one in people.acknowledged}
        return asked <= found

    eventually(recorded, SETTLED_S, "every upload that was acknowledged is in the audit trail")
    print(f"{ROUNDS} power cuts of everything, {sum(len(people.acknowledged) for people in everybody)} uploads")
