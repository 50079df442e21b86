"""One download: as many answers as it takes, and no byte taken for good before the digest of all of them is checked."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import attrs

from securifile.client.asking import Asking, Json, origin_of
from securifile.client.errors import Damaged, Problem, Unreachable
from securifile.client.exchange import Answer, Broken
from securifile.client.local_files import Output, Progress
from securifile.http.digest_fields import parse_digests
from securifile.http.targets import Target
from securifile.model.digests import DigestAlgorithm, Hasher
from securifile.model.errors import Refusal
from securifile.model.interfaces import IWorker

RESUMES_MAX = 8
"""Times a download is taken up again without anything having come in between."""

Details = Callable[[Target], Awaitable[Json]]
"""Asks for a file's details, where an answer's fields do not name its digest."""

_CONTENT_RANGE = re.compile(r"bytes ([0-9]+)-([0-9]+)/([0-9]+)")


@attrs.frozen(kw_only=True)
class Downloaded:
    """What came of a download."""

    size: int
    digest: str
    """`algorithm:hexadecimal`; what the bytes were checked against."""
    server: str
    """The URL that delivered the last of it, without its ticket."""


class Download:
    """One download, over as many connections as it takes."""

    def __init__(self, asking: Asking, details: Details, target: Target, output: Output, worker: IWorker, progress: Progress) -> None:
        self._asking = asking
        self._details = details
        self._target = target
        self._output = output
        self._worker = worker
        self._progress = progress
        self._forget()

    def _forget(self) -> None:
        self._offset = 0
        self._size: int | None = None
        self._etag: str | None = None
        self._hasher: Hasher | None = None
        self._algorithm: DigestAlgorithm | None = None
        self._recorded = b""

    async def run(self) -> Downloaded:
        """See `Client.download_to`."""
        in_vain, damaged = 0, False
        while True:
            before = self._offset
            answer = await self._ask()
            url = origin_of(answer.url)
            try:
                await self._take(answer)
            except Broken as error:
                in_vain = 0 if self._offset > before else in_vain + 1
                if in_vain > RESUMES_MAX:
                    raise Unreachable([(url, str(error))]) from error
                self._asking.avoid(url)
                continue
            assert self._hasher is not None and self._algorithm is not None
            found = self._hasher.digest()
            if found == self._recorded:
                return Downloaded(size=self._offset, digest=f"{self._algorithm}:{found.hex()}", server=url)
            # Once more from the beginning, elsewhere: where the digest came from another answer than the bytes, the file may
            # have been modified in between.
            if damaged or not await self._output.restart():
                raise Damaged(
                    f"What {url} delivered as {self._target} is damaged: its {self._algorithm} is {found.hex()}, "
                    f"but {self._recorded.hex()} is recorded. Do not use what was written; tell an administrator."
                )
            damaged = True
            self._asking.avoid(url)
            self._forget()

    async def _ask(self) -> Answer:
        """An answer that goes on where we are; where that cannot be had, one from the beginning."""
        fields: dict[str, str] = {}
        if self._offset and self._etag is not None:
            fields = {"Range": f"bytes={self._offset}-", "If-Range": self._etag}
        answer = await self._asking.request("GET", self._target.url(), kind="node", fields=fields, repeatable=True)
        if answer.status == 206 and fields:
            matched = _CONTENT_RANGE.fullmatch(answer.fields.get("Content-Range") or "")
            ours = matched is not None and (int(matched[1]), int(matched[3])) == (self._offset, self._size)
            if ours and answer.fields.get("ETag") == self._etag:
                return answer
        elif answer.status == 200:
            if self._offset and not await self._output.restart():
                answer.close()
                raise Damaged(f"{self._target} was modified while it was being read, and what was written cannot be undone. Read it again.")
            self._forget()
            try:
                await self._learn(answer)
            except BaseException:
                answer.close()
                raise
            return answer
        answer.close()
        raise Problem(502, "bad-answer", f"{origin_of(answer.url)} answered a request for {self._target} with something else.")

    async def _learn(self, answer: Answer) -> None:
        """Size, version and digest, from the answer's fields; the digest from the details where HTTP has no name for it."""
        length = answer.fields.get("Content-Length") or ""
        self._size = int(length) if length.isdecimal() else None
        etag = answer.fields.get("ETag")
        self._etag = etag if etag is not None and etag.startswith('"') else None
        stated = _digests_of(answer)
        if stated:
            self._algorithm, self._recorded = max(stated.items(), key=lambda one: one[0].bytes_long)
        else:
            details = await self._details(self._target)
            try:
                self._algorithm, self._recorded = DigestAlgorithm(details["algorithm"]), bytes.fromhex(details["digest"])
            except (KeyError, TypeError, ValueError):
                raise Damaged(f"No digest is known of {self._target} that could be checked, so it was not taken.") from None
        self._hasher = self._algorithm.hasher()

    async def _take(self, answer: Answer) -> None:
        """Write what comes. Raises `Broken` when it ends too early."""
        assert self._hasher is not None
        try:
            while data := await answer.read():
                await self._worker.do(self._hasher.update, data)
                await self._output.write(data)
                self._offset += len(data)
                self._progress(self._offset, self._size if self._size is not None else self._offset)
        finally:
            answer.close()
        if self._size is not None and self._offset != self._size:
            raise Broken("the content ended early")


def _digests_of(answer: Answer) -> dict[DigestAlgorithm, bytes]:
    """What the answer's `Repr-Digest` says; nothing if it cannot be read."""
    try:
        return parse_digests(answer.fields.get("Repr-Digest") or "")
    except Refusal:
        return {}
