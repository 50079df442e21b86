"""People at work while servers fail: readers and writers on a few files, what they were told, and whether it can be true.

Every version's content says which upload it was, so that a reader can check each byte of it. The history is judged per file as a
versioned register: what can be ordered in real time must be ordered by version.
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
from tests.processes.actions import BROKEN, Attempt, files, noise

SIZES = (60, 4_000, 120_000, 700_000)
PATIENCE_S = 8.0


@attrs.frozen
class Operation:
    """One read or write, as the client saw it."""

    kind: str
    path: str
    begun: float
    ended: float
    status: int
    """0: no answer."""
    version: int | None
    upload: str | None
    """Which upload was written, or read."""
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
        self, cluster: LocalCluster, *, readers: int, writers: int, paths: int, seed: int, relay: bool = False, via: list[str] | None = None
    ) -> None:
        self._cluster = cluster
        self._paths = [f"alice/load-{seed}-{number}" for number in range(paths)]
        self._via = via or list(cluster.nodes)
        self._relay = "?relay=1" if relay else ""
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
        for path in self._paths:
            self._write(path, f"{path} first", self._via[0])
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
            path, node = chance.choice(self._paths), chance.choice(self._via)
            if kind == "read":
                self._read(path, node)
            else:
                self._write(path, f"{path} {number} {count}", node)
            self._enough.wait(0.02 if kind == "read" else 0.05)

    def _read(self, path: str, node: str) -> None:
        def ask() -> Response:
            return self._cluster.http(node, "alice", timeout_s=PATIENCE_S).request("GET", files(path) + self._relay, follow=True)

        self._note("read", path, ask, None)

    def _write(self, path: str, upload: str, node: str) -> None:
        def ask() -> Response:
            http = self._cluster.http(node, "alice", timeout_s=PATIENCE_S)
            return http.request("PUT", files(path) + self._relay, content(upload), follow=True)

        self._note("write", path, ask, upload)

    def _note(self, kind: str, path: str, ask: Callable[[], Response], upload: str | None) -> None:
        begun, said = time.monotonic(), ""
        try:
            response: Response | None = ask()
        except BROKEN as error:
            response, said = None, repr(error)
        ended = time.monotonic()
        status = 0 if response is None else response.status
        version: int | None = None
        if response is not None and status in {200, 201}:
            version = int(response.headers["ETag"].strip('"').rpartition(".")[2])
            if kind == "read":
                upload = upload_in(response.body)
        elif response is not None:
            said = f"{response.code}: {response.body.decode(errors='replace')[-300:]}"
        with self._lock:
            self.history.append(Operation(kind, path, begun, ended, status, version, upload, said))

    # --- judging ---

    def attempts(self, kind: str) -> list[Attempt]:
        """The reads or the writes, in the order in which they ended."""
        done = sorted((one for one in self.history if one.kind == kind), key=lambda one: one.ended)
        return [Attempt(one.begun, one.ended, None if one.status == 0 else _Answered(one.status)) for one in done]  # type: ignore[arg-type]

    def violations(self) -> list[str]:
        """What cannot be true of a store that keeps its promises; empty when all is well."""
        found: list[str] = []
        contents: dict[tuple[str, int], str] = {}
        for one in self.history:
            if one.version is None:
                continue
            if one.upload is None:
                found.append(f"wrong bytes read: {one}")
                continue
            before = contents.setdefault((one.path, one.version), one.upload)
            if before != one.upload:
                found.append(f"two contents for {one.path} version {one.version}: {before} and {one.upload}")
        for path in self._paths:
            known = sorted((one for one in self.history if one.path == path and one.version is not None), key=lambda one: one.ended)
            newest = 0
            waiting = sorted(known, key=lambda one: one.begun)
            ended = iter(known)
            following = next(ended, None)
            for one in waiting:
                while following is not None and following.ended < one.begun:
                    newest = max(newest, following.version or 0)
                    following = next(ended, None)
                if (one.version or 0) < newest:
                    found.append(f"older than what was known before it began (version {newest}): {one}")
        return found

    def final_violations(self, read: Callable[[str], Response]) -> list[str]:
        """Acknowledged writes that are not there now, or not whole."""
        found = []
        for path in self._paths:
            acknowledged = max((one.version or 0 for one in self.history if one.path == path and one.kind == "write"), default=0)
            response = read(path)
            version = int(response.headers["ETag"].strip('"').rpartition(".")[2]) if response.status == 200 else 0
            if version < acknowledged or upload_in(response.body) is None:
                found.append(f"{path}: version {acknowledged} was acknowledged, and {response.status} with version {version} is there")
        return found


@attrs.frozen
class _Answered:
    status: int
