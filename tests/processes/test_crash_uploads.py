"""Any process is killed at any moment during 200 uploads: nothing that was acknowledged is lost, nothing is there in part."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter

import attrs
import pytest

from securifile.local.cluster import ADMIN, LocalCluster
from securifile.local.processes import eventually
from tests.processes.actions import BROKEN, files, get, noise, put, sha256

UPLOADS = 200
UPLOADERS = 4
POSTGRES = "PostgreSQL"
ENOUGH_S = 100.0


@attrs.define
class Ledger:
    """What the uploaders were told, by path."""

    acknowledged: dict[str, str] = attrs.Factory(dict)
    """Digests of what was answered 2xx."""
    unknown: dict[str, str] = attrs.Factory(dict)
    """Digests of what was answered 5xx, or not at all."""
    statuses: Counter[str] = attrs.Factory(Counter)
    lock: threading.Lock = attrs.Factory(threading.Lock)


def upload(cluster: LocalCluster, ledger: Ledger, number: int, seed: int, enough: threading.Event) -> None:
    """Upload one file after the other, each to a node of chance, until all together have enough."""
    chance = random.Random(f"{seed} {number}")
    count = 0
    while not enough.is_set():
        count += 1
        path = f"alice/up-{number}-{count}"
        data = noise(chance.choice([0, 1, 5_000, 300_000, 2_000_000]), path)
        try:
            response = put(cluster.http(chance.choice(list(cluster.nodes)), "alice", timeout_s=20), path, data)
            said = f"{response.status} {response.code or ''}"
        except BROKEN as error:
            response, said = None, type(error).__name__
        with ledger.lock:
            ledger.statuses[said] += 1
            if response is not None and response.status in {200, 201}:
                ledger.acknowledged[path] = sha256(data)
            else:
                ledger.unknown[path] = sha256(data)
            if len(ledger.acknowledged) >= UPLOADS:
                enough.set()
        if response is None or response.status >= 300:
            enough.wait(0.1)


@pytest.mark.timeout(240)
def test_no_acknowledged_upload_is_lost(cluster: LocalCluster) -> None:
    """Every upload answered 2xx is there afterwards with the right digest; every other one is there whole, or not at all."""
    seed = int(os.environ.get("SECURIFILE_SEED", str(random.randrange(10**6))))
    print(f"SECURIFILE_SEED={seed}")
    chance = random.Random(seed)
    cluster.token("alice")
    ledger, enough = Ledger(), threading.Event()
    threads = [threading.Thread(target=upload, args=(cluster, ledger, number, seed, enough), daemon=True) for number in range(UPLOADERS)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    killed = []
    # The admin server and its PostgreSQL for certain, once; for the rest chance decides.
    victims = [ADMIN, POSTGRES, *(chance.choice(list(cluster.servers)) for _ in range(3))]
    chance.shuffle(victims)
    for victim in victims:
        enough.wait(chance.uniform(0.3, 2.0))
        killed.append(f"{victim} after {len(ledger.acknowledged)}")
        if victim == POSTGRES:
            eventually(lambda: cluster.postgres_pid() is not None, 30, "there is a PostgreSQL to kill")
            cluster.kill_postgres()
            continue
        cluster.servers[victim].kill()
        enough.wait(chance.uniform(0.0, 3.0))
        cluster.servers[victim].start()
        cluster.servers[victim].wait_ready()
    finished = enough.wait(max(0.0, ENOUGH_S - (time.monotonic() - begun)))
    enough.set()
    for thread in threads:
        thread.join(30)
    print(f"killed: {', '.join(killed)}\nanswers: {dict(ledger.statuses)}")
    assert finished, "the uploads came to a halt"
    cluster.wait_running(*cluster.nodes)

    listed = set()
    target = files("alice/?limit=1000")
    while target:
        page = cluster.http("node1", "alice").request("GET", target).must(200).json()
        listed |= {entry["name"] for entry in page["entries"]}
        target = files(f"alice/?limit=1000&after={page['next']}") if page.get("next") else ""
    nodes = list(cluster.nodes)
    for number, (path, digest) in enumerate(ledger.acknowledged.items()):
        response = get(cluster.http(nodes[number % len(nodes)], "alice"), path).must(200)
        assert sha256(response.body) == digest, path
        assert path.removeprefix("alice/") in listed
    for number, (path, digest) in enumerate(ledger.unknown.items()):
        response = get(cluster.http(nodes[number % len(nodes)], "alice"), path).must(200, 404)
        assert response.status == 404 or sha256(response.body) == digest, path
        assert (path.removeprefix("alice/") in listed) == (response.status == 200)
