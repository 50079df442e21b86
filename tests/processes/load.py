"""People at work while servers fail: readers and writers on a few files, what they were told, and whether it can be true.

Every version's content says which upload it was, so that a reader can check each byte of it, and the history of each file can be
judged: whether there is an order in which it can have happened (`securifile.simulation.linearizability`).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import attrs

from securifile.local.asking import Response
from securifile.local.cluster import LocalCluster
from securifile.local.processes import eventually
from securifile.simulation.linearizability import Event, Read, Unanswered, Written, judge
from tests.processes.actions import BROKEN, Attempt, files, noise, sha256

SIZES = (60, 4_000, 120_000, 700_000)
PATIENCE_S = 8.0
RETRY_AFTER_S = 1.0
"""Who has been told that a read is to be tried again elsewhere waits for so long for each answer."""
CERTAINLY_NOT_DONE = frozenset({*range(400, 500), 503, 507})


@attrs.frozen
class Operation:
    """One read or write, as the client saw it."""

    kind: str
    path: str
    begun: float
    ended: float
    status: int
    """0: no answer."""
    file: str | None
    """The id of the file whose version it is."""
    version: int | None
    upload: str | None
    """Which upload was written, or read; None when what was read is none of them, or not whole."""
    said: str = ""
    """Of a problem: its code and detail; of no answer: what happened."""


def content(upload: str) -> bytes:
    """What an upload contains: its name, and bytes that follow from it."""
    size = SIZES[random.Random(upload).randrange(len(SIZES))]
    return upload.encode() + b"\n" + noise(size, upload)


def upload_in(body: bytes) -> str | None:
    """The upload whose content this is, whole and unchanged; None for anything else."""
    name = body.partition(b"\n")[0].decode(errors="replace")
    return name if body == content(name) else None


class Load(AbstractContextManager["Load"]):
    """Readers and writers in threads, from entering to leaving."""

    def __init__(
        self,
        cluster: LocalCluster,
        *,
        readers: int,
        writers: int,
        paths: int,
        seed: int,
        relay: bool = False,
        retry: bool = False,
        via: list[str] | None = None,
    ) -> None:
        """Args:
        relay: ask for `relay=1` instead of following redirects.
        retry: what fails is tried once more, through another node; that is one operation.
        via: the nodes that are asked.
        """
        self._cluster = cluster
        self.paths = [f"alice/load-{seed}-{number}" for number in range(paths)]
        self._via = via or list(cluster.nodes)
        self._relay = "?relay=1" if relay else ""
        self._tries = 2 if retry else 1
        self._seed = seed
        self._enough = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, args=(kind, number))
            for kind, count in (("read", readers), ("write", writers))
            for number in range(count)
        ]
        self.history: list[Operation] = []

    def __enter__(self) -> Load:
        for path in self.paths:
            self._write(path, f"{path} first", self._via[:1])
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *why: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def _work(self, kind: str, number: int) -> None:
        chance = random.Random(f"{self._seed} {kind} {number}")
        count = 0
        while not self._enough.is_set():
            count += 1
            path, nodes = chance.choice(self.paths), chance.sample(self._via, self._tries)
            if kind == "read":
                self._read(path, nodes, PATIENCE_S, self._relay)
            else:
                self._write(path, f"{path} {number} {count}", nodes)
            self._enough.wait(0.02 if kind == "read" else 0.05)

    def read_on_retry(self, path: str, nodes: list[str], within_s: float) -> int:
        """Read through one node after the other until one serves; how many it took.

        Raises:
            TimeRanOut: none did.
        """
        tries = 0

        def served() -> bool:
            nonlocal tries
            tries += 1
            return self._read(path, [nodes[(tries - 1) % len(nodes)]], RETRY_AFTER_S, "?relay=1").status == 200

        eventually(served, within_s, f"{path} can be read through one of {', '.join(nodes)}")
        return tries

    def _read(self, path: str, nodes: list[str], timeout_s: float, query: str) -> Operation:
        def ask(node: str) -> Response:
            return self._cluster.http(node, "alice", timeout_s=timeout_s).request("GET", files(path) + query, follow=True)

        return self._note("read", path, ask, nodes, None)

    def _write(self, path: str, upload: str, nodes: list[str]) -> None:
        # The same key at each try: if the first one is done after all, the second gets its answer.
        headers = {"Idempotency-Key": f'"{sha256(upload.encode())}"'}

        def ask(node: str) -> Response:
            http = self._cluster.http(node, "alice", timeout_s=PATIENCE_S)
            return http.request("PUT", files(path) + self._relay, content(upload), headers, follow=True)

        self._note("write", path, ask, nodes, upload)

    def _note(self, kind: str, path: str, ask: Callable[[str], Response], nodes: list[str], upload: str | None) -> Operation:
        """Ask one node after the other until one does it, and keep what was said in the end; unless an earlier one may have done it."""
        begun, status, said = time.monotonic(), 503, ""
        response: Response | None = None
        for node in nodes:
            try:
                response = ask(node)
            except BROKEN as error:
                response, status, said = None, 0, repr(error)
                continue
            if response.status in {200, 201}:
                status, said = response.status, ""
                break
            if status in CERTAINLY_NOT_DONE:
                status, said = response.status, f"{response.code}: {response.body.decode(errors='replace')[-300:]}"
        ended = time.monotonic()
        file: str | None = None
        version: int | None = None
        if response is not None and response.status in {200, 201}:
            file, _, number = response.headers["ETag"].strip('"').rpartition(".")
            version = int(number)
            if kind == "read":
                upload = upload_in(response.body)
        done = Operation(kind, path, begun, ended, status, file, version, upload, said)
        with self._lock:
            self.history.append(done)
        return done

    # --- judging ---

    def attempts(self, kind: str) -> list[Attempt]:
        """The reads or the writes, in the order in which they ended."""
        done = sorted((one for one in self.history if one.kind == kind), key=lambda one: one.ended)
        return [Attempt(one.begun, one.ended, None if one.status == 0 else _Answered(one.status)) for one in done]  # type: ignore[arg-type]

    def violations(self) -> list[str]:
        """What cannot be true of a store that keeps its promises; empty when all is well."""
        found = [f"wrong bytes: {one}" for one in self.history if one.version is not None and one.upload is None]
        for path in self.paths:
            about = [one for one in self.history if one.path == path]
            ids = {one.file for one in about if one.file is not None}
            if len(ids) > 1:
                found.append(f"{path} was several files, and nobody deleted one: {ids}")
            found += [f"{path}: {one.reason}: {one.events}" for one in judge(filter(None, map(_event, about)))]
        return found


def _event(one: Operation) -> Event | None:
    """What a file's history is told of an operation; None when it says nothing of the file."""
    if one.kind == "write":
        if one.version is not None:
            return Written(content=one.upload, version=one.version, begun=one.begun, ended=one.ended)
        return None if one.status in CERTAINLY_NOT_DONE else Unanswered(content=one.upload, begun=one.begun)
    if one.status == 404:
        return Read(content=None, version=0, begun=one.begun, ended=one.ended)
    if one.version is None or one.upload is None:
        return None
    return Read(content=one.upload, version=one.version, begun=one.begun, ended=one.ended)


@attrs.frozen
class _Answered:
    status: int
