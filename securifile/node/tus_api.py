"""The routes of resumable uploads: tus 1.0 under `/api/v1/uploads`, on every node."""

from __future__ import annotations

from typing import Any

from klein import Klein

from securifile.http import tus
from securifile.http.answers import time_text, uploaded_json
from securifile.http.digest_fields import format_digest
from securifile.http.exchange import Access, Answer
from securifile.http.ranges import etag_of
from securifile.http.request import Request
from securifile.http.shared_api import SharedApi
from securifile.http.targets import parse_place
from securifile.model.errors import Code, Refusal
from securifile.model.facts import File
from securifile.model.roster import Roster
from securifile.node.draft_api import DraftApi
from securifile.node.resumable import Resumable, State

BENEATH = tus.COLLECTION + "/"


class TusApi:
    """Answers in the words of the protocol."""

    def __init__(self, resumable: Resumable, roster: Roster, draft: DraftApi) -> None:
        """Args:
        draft: answers those who speak the draft of the IETF.
        """
        self._resumable = resumable
        self._roster = roster
        self._draft = draft

    def register(self, app: Klein, api: SharedApi) -> None:
        """Put the routes on `app`."""
        for path, branch in ((tus.COLLECTION, False), (BENEATH, True)):
            api.route(app, path, "OPTIONS", "upload-options", self._options, anonymous=True, branch=branch, always=tus.ALWAYS)
            api.route(app, path, "POST", "upload-create", self._post, branch=branch, always=tus.ALWAYS)
        for method, event, handler in (
            ("HEAD", "upload-look", self._head),
            ("GET", "upload-look", self._get),
            ("PATCH", "upload-append", self._patch),
            ("DELETE", "upload-end", self._delete),
        ):
            api.route(app, BENEATH, method, event, handler, branch=True, always=tus.ALWAYS)

    async def _options(self, request: Request, access: Access) -> Answer:
        return Answer(status=204, headers=(*tus.options(), *self._draft.options()))

    async def _post(self, request: Request, access: Access) -> Answer:
        instead = (request.header("x-http-method-override") or "POST").upper()
        if instead != "POST":
            handlers = {"PATCH": self._patch, "DELETE": self._delete, "HEAD": self._head}
            if instead not in handlers:
                raise Refusal(Code.METHOD_NOT_ALLOWED, "This cannot be done here.", allow=sorted([*handlers, "POST"]))
            return await handlers[instead](request, access)
        if request.path.decode("ascii") not in (tus.COLLECTION, BENEATH):
            raise Refusal(
                Code.METHOD_NOT_ALLOWED, f"Uploads are created with POST {tus.COLLECTION}.", allow=["DELETE", "GET", "HEAD", "PATCH"]
            )
        if self._draft.is_creation(request):
            return await self._draft.create(request, access, None)
        tus.check_version(request.header)
        asked = tus.parse_creation(request.header, request.has_body)
        state = await self._resumable.create(request, access, asked)
        location = (b"Location", tus.url_of(state.upload.attempt).encode("ascii"))
        return self._moved(access, state, 201, (location,))

    async def _head(self, request: Request, access: Access) -> Answer:
        if self._draft.is_spoken(request):
            return await self._draft.look(request, access)
        tus.check_version(request.header)
        state = await self._resumable.look(access, tus.parse_upload(request.path.decode("ascii")))
        return self._moved(access, state, 200, tus.description(state.note.length, state.upload.metadata, state.upload.concat))

    async def _get(self, request: Request, access: Access) -> Answer:
        state = await self._resumable.look(access, tus.parse_upload(request.path.decode("ascii")))
        answer = self._moved(access, state, 200, ())
        value: dict[str, Any] = {
            "id": str(state.upload.attempt),
            "path": state.upload.path,
            "offset": state.note.offset,
            "length": state.note.length,
            "created_at": time_text(state.upload.created_at),
            "expires_at": None if state.committed is not None else time_text(state.note.expires_at),
            "file": None if state.file is None else self._json(state, state.file),
        }
        return Answer(status=200, value=value, headers=answer.headers)

    async def _patch(self, request: Request, access: Access) -> Answer:
        if self._draft.is_spoken(request):
            return await self._draft.append(request, access)
        tus.check_version(request.header)
        asked = tus.parse_append(request.header)
        state = await self._resumable.append(request, access, tus.parse_upload(request.path.decode("ascii")), asked)
        return self._moved(access, state, 204, ())

    async def _delete(self, request: Request, access: Access) -> Answer:
        if self._draft.is_spoken(request):
            return await self._draft.end(request, access)
        tus.check_version(request.header)
        await self._resumable.terminate(access, tus.parse_upload(request.path.decode("ascii")))
        return Answer(status=204)

    def _moved(self, access: Access, state: State, status: int, more: tus.Headers) -> Answer:
        """The answer that tells where the upload is, and what it became."""
        file = state.file
        headers = [*more, *tus.progress(state.note.offset, None if file is not None else state.note.expires_at)]
        if file is not None:
            access.entry = file.id
            headers.append((b"ETag", etag_of(file.id, file.version.number).encode("ascii")))
            digest = format_digest(file.version.algorithm, file.version.digest)
            if digest is not None:
                headers.append((b"Repr-Digest", digest.encode("ascii")))
            if state.upload.path is not None:
                headers.append((b"Content-Location", parse_place(state.upload.path).url().encode("ascii")))
        return Answer(status=status, headers=tuple(headers))

    def _json(self, state: State, file: File) -> dict[str, Any]:
        return uploaded_json(file, state.upload.path or "", self._roster.settings.copies_wanted)
