"""The database dies between COMMIT and its answer: what people are told is what the catalogue has, now and later."""

from __future__ import annotations

import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import attrs
import psycopg2
import pytest

from securifile.local.asking import Response
from securifile.local.cluster import ADMIN, LocalCluster
from securifile.local.processes import eventually
from tests.processes.actions import BROKEN, files, get, noise, put, sha256
from tests.processes.conftest import running
from tests.processes.database import Database
from tests.processes.database_line import DatabaseLine, Fault

ROUNDS = int(os.environ.get("SECURIFILE_LOST_COMMITS", "6"))
SETTLED_S = 30.0
LATEST_S = 0.004
"""PostgreSQL is killed up to so long after it was told to commit."""
DONE = {200, 201, 204}
pytestmark = pytest.mark.timeout(120 + 10 * ROUNDS)


@attrs.frozen
class Site:
    """A cluster whose admin server reaches its database by a line that can break."""

    cluster: LocalCluster
    line: DatabaseLine
    dsn: str
    """Around the line."""

    def sql(self, question: str, **parameters: object) -> list[tuple[object, ...]]:
        """What the catalogue has, from PostgreSQL itself."""
        with closing(psycopg2.connect(self.dsn)) as connection, connection.cursor() as cursor:
            cursor.execute(question, parameters)
            return list(cursor.fetchall())


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """Three nodes, one replica, and a PostgreSQL of its own."""
    with tempfile.TemporaryDirectory(prefix="securifile-database-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with (
            Database(folder) as database,
            DatabaseLine(folder / "line", database.dsn) as line,
            running(request, nodes=3, replicas=1, admin_options=["--dsn", line.dsn]) as cluster,
        ):
            yield Site(cluster=cluster, line=line, dsn=database.dsn)


@attrs.frozen(kw_only=True)
class Told:
    """What somebody asked for, what was answered, and what the catalogue said when it could be asked again."""

    round: str
    status: int
    """0: no answer."""
    path: str
    content: bytes | None
    """The content that was uploaded; None for what was to be deleted, or granted."""
    is_done: bool

    @property
    def is_a_lie(self) -> bool:
        """Whether the answer promised something else."""
        return self.is_done if self.status == 503 or 400 <= self.status < 500 else not self.is_done and self.status in DONE


class Client:
    """Does things and looks afterwards what came of them."""

    def __init__(self, site: Site, chance: random.Random) -> None:
        self.site = site
        self.cluster = site.cluster
        self._chance = chance
        self.histories: Counter[str] = Counter()
        self.repeated = 0

    def round(self, number: int, fault: Fault) -> Told:
        """One act that the fault meets."""
        act = (self._upload, self._upload_again, self._delete, self._grant)[number % 4]
        told = act(f"alice/{number:03}", f"round {number}: {act.__name__.strip('_')}, {fault}", fault)
        self.histories[f"{fault}: {told.status} and {'done' if told.is_done else 'not done'}"] += 1
        return told

    def versions(self, path: str) -> list[tuple[int, str]]:
        """Number and digest of each version of what is at the path; empty when nothing is there."""
        question = (
            "SELECT v.number, encode(v.digest, 'hex') FROM entries e JOIN versions v ON v.file = e.id WHERE e.name = %(name)s ORDER BY 1"
        )
        return [(int(str(number)), str(digest)) for number, digest in self._ask(question, name=path.partition("/")[2])]

    def _ask(self, question: str, **parameters: object) -> list[tuple[object, ...]]:
        """The catalogue, once PostgreSQL takes questions again."""

        def answers() -> bool:
            try:
                self.site.sql("SELECT 1")
            except psycopg2.OperationalError:
                return False
            return True

        eventually(answers, SETTLED_S, "PostgreSQL answers")
        return self.site.sql(question, **parameters)

    def _server(self) -> str:
        return self._chance.choice([*self.cluster.nodes, ADMIN])

    def _met(self, fault: Fault, statement: bytes, method: str, target: str, body: bytes | None = None, **headers: str) -> Response | None:
        """Ask a server, with the fault waiting for what it does; None when there was no answer."""
        server = self.cluster.http(self._server(), "alice")
        self.site.line.arm(fault, statement, self._chance.uniform(0.0, LATEST_S))
        try:
            return server.request(method, target, body, {name.replace("_", "-"): text for name, text in headers.items()}, follow=True)
        except BROKEN:
            return None
        finally:
            self.site.line.disarm()
            assert self.site.line.struck.wait(5), f"{method} {target} committed nothing"

    def _upload(self, path: str, what: str, fault: Fault, before: int = 0) -> Told:
        data = noise(4000, what)
        first = self._met(fault, b"INTO attempts", "PUT", files(path), data, Idempotency_Key=what)
        found = self.versions(path)
        status = 0 if first is None else first.status
        is_done = (before + 1, sha256(data)) in found
        assert len(found) == before + is_done, (what, status, found)

        def again() -> Response | None:
            response = put(self.cluster.http(self._server(), "alice"), path, data, Idempotency_Key=what)
            return response if response.status in DONE else None

        # The same key, on any server, as often as one likes: one answer, one version, and if it was answered before, the very same one.
        answers = [eventually(again, SETTLED_S, f"{what}: the upload with the same key is answered") for _ in range(2)]
        self.repeated += is_done
        if first is not None and status in DONE:
            answers.append(first)
        assert len({(answer.status, answer.headers["ETag"], answer.body) for answer in answers}) == 1, what  # type: ignore[union-attr]
        assert self.versions(path)[before:] == [(before + 1, sha256(data))], what
        return Told(round=what, status=status, path=path, content=data, is_done=is_done)

    def _upload_again(self, path: str, what: str, fault: Fault) -> Told:
        self._prepare(path)
        return self._upload(path, what, fault, before=1)

    def _delete(self, path: str, what: str, fault: Fault) -> Told:
        self._prepare(path)
        response = self._met(fault, b"DELETE FROM entries", "DELETE", files(path))
        return Told(round=what, status=0 if response is None else response.status, path=path, content=None, is_done=not self.versions(path))

    def _grant(self, path: str, what: str, fault: Fault) -> Told:
        self._prepare(path)
        body = b'{"user": "bob", "role": "reader"}'
        target = f"/api/v1/access/{path}"
        response = self._met(fault, b"INTO grants", "PUT", target, body, Content_Type="application/json")
        question = "SELECT g.username FROM entries e JOIN grants g ON g.entry = e.id WHERE e.name = %(name)s"
        is_done = self._ask(question, name=path.partition("/")[2]) == [("bob",)]
        return Told(round=what, status=0 if response is None else response.status, path=path, content=None, is_done=is_done)

    def _prepare(self, path: str) -> None:
        def done() -> bool:
            return put(self.cluster.http(self._server(), "alice"), path, noise(3000, path)).status in DONE

        eventually(done, SETTLED_S, f"{path} is there")


def test_the_answer_and_the_catalogue_agree(site: Site) -> None:
    """2xx: it is there. 4xx and 503: it never is. 5xx else: whole or not at all. The same Idempotency-Key: one answer, one version."""
    seed = int(os.environ.get("SECURIFILE_SEED", str(random.randrange(10**6))))
    print(f"\nSECURIFILE_SEED={seed}")
    client = Client(site, random.Random(seed))
    cluster = site.cluster
    faults = [Fault.ANSWER_LOST, Fault.COMMIT_LOST, Fault.KILLED]
    told = []
    for number in range(ROUNDS):
        told.append(client.round(number, faults[number // 4 % 3] if ROUNDS >= 12 else faults[number % 3]))
    print(f"{ROUNDS} commits, {client.repeated} answered again by their key: {dict(client.histories)}")
    assert [one for one in told if one.is_a_lie] == []

    # Later nothing else has come of it, and every node says the same.
    for number, one in enumerate(told):
        act, reader = number % 4, "bob" if number % 4 == 3 else "alice"
        for node in cluster.nodes:
            answer = get(cluster.http(node, reader), one.path)
            if act < 2:
                assert answer.must(200).body == one.content, one
            else:
                assert (answer.status == 200) == (one.is_done if act == 3 else not one.is_done), (one, node, answer.status)
