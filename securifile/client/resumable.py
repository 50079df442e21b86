"""Uploading a large file so that no failure costs more than what was in flight: tus 1.0, as `docs/resumable.md` has it.

The upload is created once. All that is missing is sent in one `PATCH`; when that breaks, some server is asked how far it came,
and the rest goes from there, to whichever node answers. It is done when a server says so, not when a `PATCH` was answered.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit

from securifile.client.errors import Damaged, Problem, Uncertain, Unreachable
from securifile.client.exchange import Answer, Content
from securifile.client.local_files import FileSource, Progress
from securifile.http.targets import Target
from securifile.http.tus import COLLECTION, MEDIA_TYPE, VERSION
from securifile.model.digests import DigestAlgorithm
from securifile.model.interfaces import IWorker

RESUMABLE_BYTES = 64 * 1024 * 1024
"""From this size on the command uploads so: below, sending all of it again costs less than the questions."""

TRIES_MAX = 8
"""Times that the upload is gone on with without a byte having arrived in between."""

_LATER = frozenset({408, 409, 423, 429, 500, 502, 503, 504})
"""Refusals after which the upload may go on: another request, a lock, a fail-over in between."""


class Ask(Protocol):
    """`Asking.request`."""

    def __call__(
        self,
        method: str,
        path: str,
        *,
        kind: str,
        fields: Mapping[str, str],
        content: Callable[[], Content] | None = None,
        repeatable: bool = False,
    ) -> Awaitable[Answer]:
        """Ask some server."""


class ResumableUpload:
    """One upload.

    Args:
        ask: asks some server, and another when that one is gone.
        pause: waits so many seconds.
        fields: of the creation: preconditions, the digest.
    """

    def __init__(
        self,
        *,
        ask: Ask,
        pause: Callable[[float], Awaitable[None]],
        target: Target,
        file: BinaryIO,
        length: int,
        fields: Mapping[str, str],
        worker: IWorker,
        progress: Progress,
    ) -> None:
        self._ask = ask
        self._pause = pause
        self._target = target
        self._file = file
        self._length = length
        self._fields = fields
        self._worker = worker
        self._progress = progress
        self.source = FileSource(file, length, worker, DigestAlgorithm.SHA256, progress)
        """What was read last."""

    async def run(self) -> dict[str, Any]:
        """Upload; what a `PUT` would have answered.

        Raises:
            Problem, Unreachable: it is not stored. 404 or 405 when the servers know no resumable uploads.
        """
        path = await self._create()
        offset, tries = 0, 0
        while offset < self._length:
            try:
                await self._send(path, offset)
                break
            except (Uncertain, Unreachable, Problem) as error:
                if isinstance(error, Problem) and error.status not in _LATER:
                    raise
                if tries == TRIES_MAX:
                    raise
                if tries:
                    await self._pause(min(8.0, 0.25 * 2**tries))
                tries += 1
                reached = await self._reached(path, error)
                offset, tries = max(offset, reached), 0 if reached > offset else tries
        return await self._outcome(path)

    async def _create(self) -> str:
        name = base64.b64encode(str(self._target).encode()).decode("ascii")
        fields = {**self._fields, "Tus-Resumable": VERSION, "Upload-Length": str(self._length), "Upload-Metadata": f"path {name}"}
        answer = await self._ask("POST", COLLECTION, kind="node", fields=fields, repeatable=True)
        await _end(answer)
        return urlsplit(answer.fields.get("location") or "").path

    async def _send(self, path: str, offset: int) -> None:
        def content() -> Content:
            self.source = FileSource(self._file, self._length, self._worker, DigestAlgorithm.SHA256, self._progress, start=offset)
            return Content(source=self.source, length=self._length - offset)

        fields = {"Tus-Resumable": VERSION, "Upload-Offset": str(offset), "Content-Type": MEDIA_TYPE}
        await _end(await self._ask("PATCH", path, kind="node", fields=fields, content=content))

    async def _reached(self, path: str, error: Exception) -> int:
        """How far it came. What is complete is committed by the question."""
        try:
            answer = await self._ask("HEAD", path, kind="node", fields={"Tus-Resumable": VERSION}, repeatable=True)
        except (Unreachable, Uncertain):
            return 0
        except Problem as problem:
            if problem.status in _LATER:
                return 0
            raise
        await _end(answer)
        offset = answer.fields.get("upload-offset") or ""
        if not offset.isdecimal():
            raise Damaged("A server answered without Upload-Offset.") from error
        return int(offset)

    async def _outcome(self, path: str) -> dict[str, Any]:
        answer = await self._ask("GET", path, kind="node", fields={}, repeatable=True)
        told = json.loads(await answer.content())
        if not isinstance(told, dict) or not isinstance(told.get("file"), dict):
            raise Damaged("The upload is complete, and the server does not say what it became.")
        file: dict[str, Any] = told["file"]
        return file


async def _end(answer: Answer) -> None:
    """Take what there is of the content, so that the connection can be used again."""
    await answer.content()
