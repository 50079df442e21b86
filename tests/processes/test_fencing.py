"""Several want to modify one file: one does, and who held the lock too long ago does not."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from functools import partial
from typing import Self

import pytest

from securifile.local.asking import Exchange, Http, Response
from securifile.local.cluster import LocalCluster
from securifile.local.processes import eventually
from tests.processes.actions import MIB, files, get, noise, put

RACES = int(os.environ.get("SECURIFILE_RACES", "10"))
STALE_WRITERS = int(os.environ.get("SECURIFILE_STALE_WRITERS", "1"))
REFUSED = (409, 412, 423)
LEASE_S = 1.0
TAKEN_OVER_S = 20.0


@pytest.fixture(scope="module")
def seed() -> int:
    """Printed, so that a run can be had again (its choices, not its timing)."""
    number = int(os.environ.get("SECURIFILE_SEED", random.randrange(1 << 32)))
    print(f"\nSECURIFILE_SEED={number}")
    return number


def at_once(questions: list[tuple[LocalCluster, str, str, bytes, dict[str, str]]]) -> list[Response]:
    """The answers of uploads that start at the same time: cluster, node, path, content, headers."""
    together = threading.Barrier(len(questions))
    answers: dict[int, Response] = {}

    def write(number: int, cluster: LocalCluster, node: str, path: str, data: bytes, headers: dict[str, str]) -> None:
        http = cluster.http(node, "alice")
        together.wait()
        answers[number] = put(http, path, data, **headers)

    threads = [threading.Thread(target=write, args=(number, *question)) for number, question in enumerate(questions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers[number] for number in range(len(questions))]


@pytest.mark.timeout(120 + 3 * RACES)
@pytest.mark.parametrize("what", ["a new file", "an existing file"])
def test_of_two_writers_one_wins(cluster: LocalCluster, seed: int, what: str) -> None:
    """They start together through different nodes, to make the same version: one always does, and the other is refused."""
    chance = random.Random(f"{seed} {what}")
    told: Counter[int] = Counter()
    for number in range(RACES):
        path = f"alice/race {what} {number}".replace(" ", "-")
        headers, version = {"If_None_Match": "*"}, 1
        if what == "an existing file":
            made = put(cluster.http(chance.choice(list(cluster.nodes)), "alice"), path, b"first").must(201)
            headers, version = {"If_Match": made.headers["ETag"]}, 2
        contents = [noise(chance.choice([10, 5_000, 300_000]), f"{path} {writer}") for writer in "ab"]
        nodes = chance.sample(list(cluster.nodes), 2)
        answers = at_once([(cluster, node, path, data, headers) for node, data in zip(nodes, contents, strict=True)])
        winners = [place for place, answer in enumerate(answers) if answer.status in {200, 201}]
        assert len(winners) == 1, (number, [(answer.status, answer.code) for answer in answers])
        won, lost = answers[winners[0]], answers[1 - winners[0]]
        told[lost.must(*REFUSED).status] += 1
        assert won.json()["version"] == version
        for node in cluster.nodes:
            read = get(cluster.http(node, "alice"), path).must(200)
            assert (read.body, read.headers["ETag"]) == (contents[winners[0]], won.headers["ETag"])
    print(f"{RACES} races for {what}: {dict(told)}")


class StoppedWriter:
    """One who uploads through node1 to a file of node1's, and whose lock runs out while node1 hangs in mid-upload.

    A context manager, from the beginning of the upload to its end.
    """

    def __init__(self, cluster: LocalCluster, path: str, chance: random.Random) -> None:
        self._cluster = cluster
        self.path = path
        self.others = [name for name in cluster.nodes if name != "node1"]
        self.before = put(cluster.http("node1", "alice"), path, b"first").must(201).headers["ETag"]
        self.content = noise(2 * MIB, f"{path} late")
        self._sent = chance.choice([1, 100_000, MIB])
        self._upload = cluster.http("node1", "alice").begin("PUT", files(path), {"Content-Length": str(len(self.content))})

    def __enter__(self) -> Self:
        self._upload.send(self.content[: self._sent])
        eventually(self._is_locked, 10, "the upload has the lock")
        self._cluster.nodes["node1"].pause()
        return self

    def __exit__(self, *why: object) -> None:
        self._cluster.nodes["node1"].resume()
        self._upload.close()

    def _is_locked(self) -> bool:
        return self._cluster.details(self.path, "alice", via="node1")["lock"] is not None

    def goes_on(self) -> Response:
        """Awake again, it uploads the rest; the answer."""
        self._cluster.nodes["node1"].resume()
        self._upload.send(self.content[self._sent :])
        return self._upload.whole()

    def must_be_refused_everywhere(self) -> None:
        """Whichever node is asked to put it in the place of what was there at first."""
        for name in [*self.others, "node1"]:
            self._cluster.wait_running(name)
            put(self._cluster.http(name, "alice"), self.path, self.content, If_Match=self.before).must(412)

    def must_be_everywhere(self, data: bytes, etag: str) -> None:
        """What each node serves."""
        for name in self._cluster.nodes:
            self._cluster.wait_running(name)
            read = get(self._cluster.http(name, "alice"), self.path).must(200)
            assert (read.body, read.headers["ETag"]) == (data, etag)


@pytest.fixture
def short_leases(cluster: LocalCluster) -> LocalCluster:
    """A cluster in which a lock runs out before its holder is held for down."""
    cluster.operator().request("PATCH", "/api/v1/settings", json={"lease_s": LEASE_S}).must(200)
    return cluster


@pytest.mark.timeout(120 + 60 * STALE_WRITERS)
@pytest.mark.parametrize("until_down", [False, True])
def test_a_writer_that_was_stopped_past_its_lease_is_refused(short_leases: LocalCluster, seed: int, until_down: bool) -> None:
    """Meanwhile another one writes through another node; continued, the first is refused, here and everywhere."""
    chance = random.Random(f"{seed} {until_down}")
    told: Counter[str] = Counter()
    for number in range(STALE_WRITERS):
        path = f"alice/fenced-{until_down}-{number}"
        with StoppedWriter(short_leases, path, chance) as stopped:
            other, again = short_leases.http(chance.choice(stopped.others), "alice"), noise(1000, f"{path} again")
            if until_down:
                short_leases.wait_status("down", "node1")
            second = eventually(partial(taken, other, path, again), TAKEN_OVER_S, "another one writes")
            answer = stopped.goes_on().must(*REFUSED, 503)
        told[f"{answer.status} {answer.code}"] += 1
        stopped.must_be_refused_everywhere()
        stopped.must_be_everywhere(again, second.headers["ETag"])
    print(f"{STALE_WRITERS} stopped writers, {'down' if until_down else 'perhaps running'} when they wake: {dict(told)}")


def taken(http: Http, path: str, data: bytes) -> Response | None:
    """The answer to an upload; None if it is certainly refused for now."""
    response = http.request("PUT", f"{files(path)}?relay=1", data).must(200, 423, 503)
    return response if response.status == 200 else None


@pytest.mark.timeout(120 + 60 * STALE_WRITERS)
def test_a_writer_that_wakes_while_another_one_writes(short_leases: LocalCluster, seed: int) -> None:
    """Both are in mid-upload, and only the second has the lock: the first is refused, and everybody reads what the second writes."""
    chance = random.Random(f"{seed} both")
    told: Counter[str] = Counter()
    for number in range(STALE_WRITERS):
        path = f"alice/both-{number}"
        second = noise(MIB, f"{path} second")
        with StoppedWriter(short_leases, path, chance) as stopped:
            http = short_leases.http(chance.choice(stopped.others), "alice")
            with eventually(partial(begun, http, path, len(second)), TAKEN_OVER_S, "another one has the lock") as upload:
                upload.send(second[:1000])
                late = stopped.goes_on().must(*REFUSED, 503)
                upload.send(second[1000:])
                other = upload.whole().must(200)
        told[f"{late.status} {late.code}"] += 1
        stopped.must_be_everywhere(second, other.headers["ETag"])
    print(f"{STALE_WRITERS} writers who wake while another one writes: {dict(told)}")


def begun(http: Http, path: str, size: int) -> Exchange | None:
    """An upload whose body is wanted; None if it is refused."""
    upload = http.begin("PUT", f"{files(path)}?relay=1", {"Content-Length": str(size), "Expect": "100-continue"})
    if upload.may_continue():
        return upload
    with upload:
        upload.whole().must(423, 503)
    return None
