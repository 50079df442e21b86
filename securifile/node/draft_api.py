"""The routes of resumable uploads in the words of the IETF's draft (`http/draft_uploads.py`), where `resumable_draft` is set.

They share the URLs of tus: who sends no `Tus-Resumable` speaks the draft.
"""

from __future__ import annotations

from collections.abc import Callable

from securifile.http import draft_uploads as draft
from securifile.http import tus
from securifile.http.answers import uploaded_json
from securifile.http.digest_fields import format_digest
from securifile.http.exchange import Access, Answer
from securifile.http.ranges import etag_of
from securifile.http.request import Request
from securifile.http.targets import Target, parse_place
from securifile.model.errors import Code, Refusal
from securifile.model.roster import Roster
from securifile.model.staged import StagedUpload
from securifile.node.resumable import Resumable, State


class DraftApi:
    """Answers in the words of the draft."""

    def __init__(self, resumable: Resumable, roster: Roster, wall: Callable[[], float]) -> None:
        self._resumable = resumable
        self._roster = roster
        self._wall = wall

    def is_spoken(self, request: Request) -> bool:
        """Whether a request to an upload's URL, or one to create an upload, is to be answered here."""
        return self._roster.settings.resumable_draft and request.header("tus-resumable") is None

    def is_creation(self, request: Request) -> bool:
        """Whether a request that has a file as its body asks to be resumable."""
        return self.is_spoken(request) and draft.completes(request.header) is not None

    def options(self) -> tus.Headers:
        """What `OPTIONS` tells of the draft."""
        return (
            ((b"Accept-Patch", draft.MEDIA_TYPE.encode()), (b"Upload-Limit", draft.limits()))
            if self._roster.settings.resumable_draft
            else ()
        )

    async def create(self, request: Request, access: Access, target: Target | None) -> Answer:
        """Begin an upload, and take the bytes that came along. Raises `Refusal`.

        Args:
            target: what it is to become; None: `Upload-Metadata` says so.
        """
        last = draft.completes(request.header)
        if last is None:
            raise Refusal(Code.BAD_REQUEST, "Say whether this is all of the upload: Upload-Complete: ?1, or ?0.")
        asked = draft.parse_creation(request.header, body=request.content_length, has_body=request.has_body, target=target)

        def begun(upload: StagedUpload) -> None:
            request.interim(*draft.RESUMPTION_SUPPORTED, [_location(upload), (b"Upload-Limit", draft.limits())])

        state = await self._resumable.create(request, access, asked, begun)
        if state.committed is not None:
            return self._completed(access, state)
        return Answer(status=201, headers=(_location(state.upload), *self._progress(state)))

    async def look(self, request: Request, access: Access) -> Answer:
        """Answer `HEAD` of an upload."""
        state = await self._resumable.look(access, tus.parse_upload(request.path.decode("ascii")))
        return Answer(status=204, headers=self._progress(state))

    async def append(self, request: Request, access: Access) -> Answer:
        """Answer `PATCH` of an upload."""
        asked = draft.parse_append(request.header, body=request.content_length, has_body=request.has_body)
        try:
            state = await self._resumable.append(request, access, tus.parse_upload(request.path.decode("ascii")), asked)
        except Refusal as refusal:
            if refusal.code is Code.CONFLICT and "offset" in refusal.evidence:
                request.add_always([(b"Upload-Offset", b"%d" % refusal.evidence["offset"])])
            raise
        if state.committed is not None:
            return self._completed(access, state)
        return Answer(status=204, headers=self._progress(state))

    async def end(self, request: Request, access: Access) -> Answer:
        """Answer `DELETE` of an upload."""
        await self._resumable.terminate(access, tus.parse_upload(request.path.decode("ascii")))
        return Answer(status=204)

    def _completed(self, access: Access, state: State) -> Answer:
        """What the `PUT` of all of it would have answered."""
        file, committed = state.file, state.committed
        assert file is not None and committed is not None and state.upload.path is not None
        access.entry = file.id
        headers = [(b"ETag", etag_of(file.id, file.version.number).encode("ascii")), *self._progress(state)]
        digest = format_digest(file.version.algorithm, file.version.digest)
        if digest is not None:
            headers.append((b"Repr-Digest", digest.encode("ascii")))
        if committed.created:
            headers.append((b"Location", parse_place(state.upload.path).url().encode("ascii")))
        value = uploaded_json(file, state.upload.path, self._roster.settings.copies_wanted)
        return Answer(status=201 if committed.created else 200, value=value, headers=tuple(headers))

    def _progress(self, state: State) -> tus.Headers:
        complete = state.committed is not None
        left = None if complete else state.note.expires_at - self._wall()
        return draft.progress(state.note.offset, state.note.length, complete=complete, seconds_left=left)


def _location(upload: StagedUpload) -> tuple[bytes, bytes]:
    return b"Location", tus.url_of(upload.attempt).encode("ascii")
