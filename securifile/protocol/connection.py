"""One connection between two servers, without a socket: bytes in, events out; method calls in, bytes out.

The client (who connected) says hello and for what the connection is; the server answers with its own hello or says goodbye.
On a *control* connection both may ask, many requests at a time. On a *bulk* connection the client makes one
transfer after another. A *notice* connection is a control connection of a client that is not the server itself, but a sentinel that speaks
for it after its end. `TABLE` is the whole order of things; `docs/protocol.md` shows it as a picture made from it.

Nothing that arrives can raise: what is wrong becomes one `ProtocolFailed` event, after which the connection is closed and
deaf. Calling a method at the wrong moment is our own bug and raises `Misuse`.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import Any

import attrs

from securifile.model.errors import Code
from securifile.model.servers import ServerKind, check_server_name
from securifile.protocol.codec import CodecError, UnknownMessage, decode, decode_plain, encode, encode_plain
from securifile.protocol.frames import Frame, FrameDecoder, FrameKind, FrameLimits, data_header, encode_frame
from securifile.protocol.messages import AppendBlob, Message, Refused, StoreBlob, StoreBlobs

MAGIC = b"SecuriFile\r\n"
"""Begins every hello; the line end shows when something on the way treats the stream as text."""

VERSION = 1
VERSION_MIN = max(1, VERSION - 1)
"""Version N and N-1 are spoken, so that a cluster can be upgraded one server after the other."""

RESUMABLE = "resumable"
"""The feature: takes `AppendBlob`. A server that does not know it would take the stream that follows for a breach of the protocol."""
WHOLE = "whole"
"""The feature: takes `StoreBlobs`. A server that does not know it is given one stream after the other."""
VOUCHED = "vouched"
"""The feature: takes the digest of a blob from the end of its stream. A server that does not know it computes the digest."""
UNLOCKING = "unlocking"
"""The feature: forgets an attempt's lease when its index hears of the commit. A server that does not know it has to be told."""
SETTLING = "settling"
"""The feature: takes `SettledAsk`. A server that does not know it shows a version as soon as it has heard of it."""
FEATURES = frozenset({RESUMABLE, WHOLE, VOUCHED, UNLOCKING, SETTLING})
"""Optional abilities of this release."""

_ID = struct.Struct(">I")
_ID_MAX = 2**32 - 1


class Misuse(Exception):
    """A method was called at a moment when the protocol does not allow it: a bug on this side."""


class TooManyRequests(Exception):
    """As many requests are in flight as the protocol allows; nothing was sent."""


# --- values ---


@attrs.frozen(kw_only=True)
class PeerIdentity:
    """Who a server is: proved by its certificate, or only claimed when TLS is off."""

    cluster: str
    kind: ServerKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def _can_be_a_name(instance: object, attribute: object, name: str) -> None:
    check_server_name(name)


class Purpose(StrEnum):
    """What a connection is for; fixed by the client's hello."""

    CONTROL = "control"
    BULK = "bulk"
    NOTICE = "notice"
    """For one `Ended`, of a process that cannot say it any more. A server that does not know the purpose refuses the hello."""


@attrs.frozen(kw_only=True)
class Hello:
    """The first frame in each direction. Its encoding never changes; fields may be added."""

    version_min: int
    version_max: int
    cluster: str
    kind: ServerKind
    name: str = attrs.field(validator=_can_be_a_name)
    purpose: Purpose
    features: tuple[str, ...] = ()
    """Names of optional abilities; one is used only when both have it."""

    @property
    def identity(self) -> PeerIdentity:
        """Who the sender claims to be."""
        return PeerIdentity(cluster=self.cluster, kind=self.kind, name=self.name)


@attrs.frozen(kw_only=True)
class ConnectionLimits:
    """What one connection may cost."""

    frames: FrameLimits = attrs.field(factory=FrameLimits)
    requests_in_flight_max: int = 1024
    """In each direction, counting cancelled ones that are not answered yet."""


# --- the table ---


class Side(StrEnum):
    """Who of the two: the client opened the connection."""

    CLIENT = "client"
    SERVER = "server"

    @property
    def other(self) -> Side:
        """The one at the other end."""
        return Side.SERVER if self is Side.CLIENT else Side.CLIENT


class State(StrEnum):
    """Where a connection is. Both ends go through the same states, each as it sees it."""

    GREETING = "greeting"
    """Connected; the client's hello is awaited."""
    JUDGING = "judging"
    """The server judges the client's hello."""
    OPEN = "open"
    """Control and notice: both ask and answer."""
    IDLE = "idle"
    """Bulk: no transfer."""
    UPLOADING = "uploading"
    """Bulk: the client streams."""
    FINISHING = "finishing"
    """Bulk: the client's stream has ended; the answer is awaited."""
    REFUSED = "refused"
    """Bulk: the server has refused early; the rest of the client's stream is passed over."""
    ASKED = "asked"
    """Bulk: a download was asked for; the answer is awaited."""
    DOWNLOADING = "downloading"
    """Bulk: the server streams."""
    CLOSED = "closed"


class Act(StrEnum):
    """What a frame does; some frames do different things by what is in them."""

    HELLO = "hello"
    HELLO_CONTROL = "hello (control, notice)"
    HELLO_BULK = "hello (bulk)"
    REQUEST = "request"
    ANSWER = "answer"
    CANCEL = "cancel"
    STORE = "request to store"
    STORE_WHOLE = "request to store whole blobs"
    FETCH = "other request"
    GRANT = "answer that it follows"
    REFUSE = "answer Refused"
    DATA = "data"
    END = "end"
    ABORT = "abort"
    GOODBYE = "goodbye"


TABLE: dict[State, dict[tuple[Side, Act], State]] = {
    State.GREETING: {(Side.CLIENT, Act.HELLO): State.JUDGING},
    State.JUDGING: {(Side.SERVER, Act.HELLO_CONTROL): State.OPEN, (Side.SERVER, Act.HELLO_BULK): State.IDLE},
    State.OPEN: {(side, act): State.OPEN for side in Side for act in (Act.REQUEST, Act.ANSWER, Act.CANCEL)},
    State.IDLE: {
        (Side.CLIENT, Act.STORE): State.UPLOADING,
        (Side.CLIENT, Act.STORE_WHOLE): State.FINISHING,
        (Side.CLIENT, Act.FETCH): State.ASKED,
    },
    State.UPLOADING: {
        (Side.CLIENT, Act.DATA): State.UPLOADING,
        (Side.CLIENT, Act.END): State.FINISHING,
        (Side.CLIENT, Act.ABORT): State.FINISHING,
        (Side.SERVER, Act.REFUSE): State.REFUSED,
    },
    State.REFUSED: {
        (Side.CLIENT, Act.DATA): State.REFUSED,
        (Side.CLIENT, Act.END): State.IDLE,
        (Side.CLIENT, Act.ABORT): State.IDLE,
    },
    State.FINISHING: {(Side.SERVER, Act.ANSWER): State.IDLE, (Side.SERVER, Act.REFUSE): State.IDLE},
    State.ASKED: {(Side.SERVER, Act.GRANT): State.DOWNLOADING, (Side.SERVER, Act.REFUSE): State.IDLE},
    State.DOWNLOADING: {
        (Side.SERVER, Act.DATA): State.DOWNLOADING,
        (Side.SERVER, Act.END): State.IDLE,
        (Side.SERVER, Act.ABORT): State.IDLE,
    },
    State.CLOSED: {},
}
"""What may be sent in which state, by whom, and what comes then. A goodbye may be said by either in any state but CLOSED."""


def next_state(state: State, side: Side, act: Act) -> State | None:
    """The state after `side` did `act`; None when that is not allowed."""
    if act is Act.GOODBYE:
        return None if state is State.CLOSED else State.CLOSED
    return TABLE[state].get((side, act))


def diagram() -> str:
    """`TABLE` as a mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.GREETING}"]
    for state, steps in TABLE.items():
        arrows: dict[State, list[str]] = {}
        for (side, act), target in steps.items():
            arrows.setdefault(target, []).append(f"{side} - {act}")
        lines += [f"    {state} --> {target}: {', '.join(labels)}" for target, labels in arrows.items()]
    return "\n".join([*lines, f"    {State.CLOSED} --> [*]", ""])


# --- events ---


@attrs.frozen
class HelloReceived:
    """The other end's hello, of our cluster and with a version in common.

    On the server: judge it, then call `accept` or `goodbye`. On the client: the connection is open.
    """

    hello: Hello


@attrs.frozen
class RequestReceived:
    """The other end asks; answer with `answer(id, ...)`, exactly once, even when it is cancelled meanwhile."""

    id: int
    message: Message


@attrs.frozen
class RequestUnusable:
    """A request that is to be answered with `refused`: unknown, malformed or one too many."""

    id: int
    refused: Refused


@attrs.frozen
class AnswerReceived:
    """The answer to our request `id`; may be `Refused`. `wanted` is False when we have cancelled it."""

    id: int
    message: Message
    wanted: bool = True


@attrs.frozen
class AnswerUnusable:
    """An answer came to our request `id`, and cannot be read: the request may have been done."""

    id: int
    problem: str


@attrs.frozen
class CancelReceived:
    """The other end does not want the answer to its request `id` any more."""

    id: int


@attrs.frozen
class DataReceived:
    """Bytes of the stream."""

    data: bytes = attrs.field(repr=False)


@attrs.frozen
class EndReceived:
    """The stream is complete."""

    message: Message | None = None
    """What the other end says of it."""


@attrs.frozen
class AbortReceived:
    """The stream is broken off, for this reason."""

    refused: Refused


@attrs.frozen
class GoodbyeReceived:
    """The other end closes the connection, for this reason."""

    refused: Refused


@attrs.frozen
class ProtocolFailed:
    """The other end broke the protocol. Say goodbye with `refused` and close."""

    refused: Refused


Event = (
    HelloReceived
    | RequestReceived
    | RequestUnusable
    | AnswerReceived
    | AnswerUnusable
    | CancelReceived
    | DataReceived
    | EndReceived
    | AbortReceived
    | GoodbyeReceived
    | ProtocolFailed
)


class _Violation(Exception):
    """The other end did what it must not."""


def _bad(detail: str) -> Refused:
    return Refused(code=Code.BAD_REQUEST.value, detail=detail)


def notice(here: PeerIdentity, message: Message) -> tuple[bytes, bytes]:
    """What is to be sent on a notice connection by who cannot make it: the hello, and after the other end's hello the request."""
    client, server = Connection(Side.CLIENT, here, Purpose.NOTICE), Connection(Side.SERVER, here)
    hello = client.hello()
    server.receive(hello)
    client.receive(server.accept())
    return hello, client.request(message)[1]


def goodbye_frame(refused: Refused) -> bytes:
    """A goodbye, for who speaks without a connection (a TLS port that hears plain text)."""
    return encode_frame(FrameKind.GOODBYE, encode(refused))


# --- the object ---


class Connection:
    """The state of one connection, for either side.

    Args:
        side: which end this is.
        here: who this server is.
        purpose: what for; the client decides, the server passes None.
        versions: (oldest, newest) that this side speaks.
        features: optional abilities of this side.
        limits: see `ConnectionLimits`.
    """

    def __init__(
        self,
        side: Side,
        here: PeerIdentity,
        purpose: Purpose | None = None,
        *,
        versions: tuple[int, int] = (VERSION_MIN, VERSION),
        features: frozenset[str] = FEATURES,
        limits: ConnectionLimits | None = None,
    ) -> None:
        if (side is Side.CLIENT) != (purpose is not None):
            raise Misuse("the client, and only the client, decides what a connection is for")
        self.side = side
        self.here = here
        self.purpose = purpose
        self.state = State.GREETING
        self.peer: Hello | None = None
        """The other end's hello."""
        self.version: int | None = None
        """The version spoken: the newest that both have."""
        self._versions = versions
        self._features = features
        self._limits = limits if limits is not None else ConnectionLimits()
        self._decoder = FrameDecoder(self._limits.frames)
        self._deaf = False
        self._last_id = 0
        self._ours: dict[int, bool] = {}
        """Our requests that are not answered yet, and whether the answer is still wanted."""
        self._theirs: set[int] = set()
        """Requests that we have not answered yet."""

    @property
    def closed(self) -> bool:
        """Whether a goodbye was said or heard."""
        return self.state is State.CLOSED

    @property
    def features(self) -> frozenset[str]:
        """The optional abilities that both ends have."""
        return self._features.intersection(self.peer.features) if self.peer is not None else frozenset()

    # --- sending ---

    def hello(self) -> bytes:
        """Client: the first words."""
        self._send(Act.HELLO)
        return self._own_hello()

    def accept(self) -> bytes:
        """Server: the answer to a `HelloReceived` that is welcome."""
        self._send(self._hello_act())
        return self._own_hello()

    def request(self, message: Message) -> tuple[int, bytes]:
        """Ask.

        Returns:
            The request's id and the bytes to send.

        Raises:
            TooManyRequests: nothing to send; wait for an answer.
            CodecError: the message holds what its annotations do not allow.
        """
        body = encode(message)
        self._check_length(body)
        if len(self._ours) >= self._limits.requests_in_flight_max:
            raise TooManyRequests(f"{len(self._ours)} requests are in flight")
        self._send(self._request_act(message))
        self._last_id = self._free_id()
        self._ours[self._last_id] = True
        return self._last_id, encode_frame(FrameKind.REQUEST, _ID.pack(self._last_id), body)

    def answer(self, request: int, message: Message) -> bytes:
        """Answer a `RequestReceived` (or `RequestUnusable`). Raises `CodecError` like `request`; then another answer may be tried."""
        if request not in self._theirs:
            raise Misuse(f"request {request} is not waiting for an answer")
        body = encode(message)
        self._check_length(body)
        self._send(self._answer_act(message, self.state))
        self._theirs.remove(request)
        return encode_frame(FrameKind.ANSWER, _ID.pack(request), body)

    def cancel(self, request: int) -> bytes:
        """Say that the answer is not wanted any more; empty when it has come already.

        It comes all the same, as `AnswerReceived(wanted=False)`.
        """
        if self.closed or not self._ours.get(request):
            return b""
        self._send(Act.CANCEL)
        self._ours[request] = False
        return encode_frame(FrameKind.CANCEL, _ID.pack(request))

    def data(self, data: bytes) -> bytes:
        """A piece of our stream: from 1 to `data_bytes_max` bytes."""
        return self.data_header(len(data)) + data

    def data_header(self, length: int) -> bytes:
        """What is sent before a piece of our stream of so many bytes, for who sends the piece itself."""
        if not 1 <= length <= self._limits.frames.data_bytes_max:
            raise Misuse(f"a piece of {length} bytes")
        self._send(Act.DATA)
        return data_header(length)

    def end(self, message: Message | None = None) -> bytes:
        """Our stream is complete; with what is to be said of it, to who has a feature for that."""
        body = b"" if message is None else encode(message)
        self._send(Act.END)
        return encode_frame(FrameKind.END, body)

    def abort(self, refused: Refused) -> bytes:
        """Our stream will not be completed."""
        self._send(Act.ABORT)
        return encode_frame(FrameKind.ABORT, encode(refused))

    def goodbye(self, refused: Refused) -> bytes:
        """The last words; empty when the connection was closed by a goodbye already."""
        if self.state is State.CLOSED:
            return b""
        self._send(Act.GOODBYE)
        return goodbye_frame(refused)

    # --- receiving ---

    @property
    def data_missing(self) -> int:
        """How much is still to come of a piece of the other end's stream that has begun."""
        return self._decoder.data_missing

    @property
    def wanted_bytes(self) -> int:
        """How many bytes would complete what has begun: a piece of a stream, a frame, or its header."""
        return self._decoder.wanted_bytes

    def data_passed(self, count: int) -> None:
        """So many of the bytes that are missing (`data_missing`) were taken by another way than `receive`."""
        self._decoder.data_passed(count)

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the other end, however they are split; what they mean. After `ProtocolFailed` or a goodbye: nothing."""
        if self._deaf or self.state is State.CLOSED:
            return []
        events: list[Event] = []
        frames, error = self._decoder.receive(data)
        try:
            for frame in frames:
                event = self._receive_frame(frame)
                if event is not None:
                    events.append(event)
                if self.closed:
                    return events
            if error is not None:
                raise _Violation(str(error))
        except _Violation as violation:
            events.append(ProtocolFailed(_bad(str(violation))))
            # The state stays, so that a goodbye can still be said; but nothing more is heard.
            self._deaf = True
        return events

    def _receive_frame(self, frame: Frame) -> Event | None:
        kind, body = frame.kind, frame.body
        if kind is FrameKind.HELLO:
            return self._receive_hello(body)
        if kind is FrameKind.REQUEST:
            return self._receive_request(*self._split_id(body))
        if kind is FrameKind.ANSWER:
            return self._receive_answer(*self._split_id(body))
        if kind is FrameKind.CANCEL:
            self._received(Act.CANCEL)
            request, _ = self._split_id(body)
            return CancelReceived(request) if request in self._theirs else None
        if kind is FrameKind.DATA:
            self._received(Act.DATA)
            if not body:
                raise _Violation("an empty data frame")
            return DataReceived(body) if self.state is not State.REFUSED else None
        if kind is FrameKind.END:
            was_refused = self.state is State.REFUSED
            self._received(Act.END)
            return None if was_refused else self._ended(body)
        if kind is FrameKind.ABORT:
            was_refused = self.state is State.REFUSED
            self._received(Act.ABORT)
            return None if was_refused else AbortReceived(self._reason(body))
        self._received(Act.GOODBYE)
        return GoodbyeReceived(self._reason(body))

    def _receive_hello(self, body: bytes) -> Event:
        if not body.startswith(MAGIC):
            raise _Violation("a hello without the magic")
        try:
            hello: Hello = decode_plain(Hello, body[len(MAGIC) :])
        except CodecError as error:
            raise _Violation(f"a malformed hello: {error}") from None
        if hello.cluster != self.here.cluster:
            raise _Violation(f"we belong to different clusters: {self.here.cluster!r} and {hello.cluster!r}")
        version = min(hello.version_max, self._versions[1])
        if version < max(hello.version_min, self._versions[0]):
            raise _Violation(
                f"no version in common: {self._versions[0]} to {self._versions[1]} here, {hello.version_min} to {hello.version_max} there;"
                " releases more than one version apart cannot talk"
            )
        if self.side is Side.CLIENT:
            if hello.purpose is not self.purpose:
                raise _Violation(f"asked for {self.purpose}, got {hello.purpose}")
            self._received(self._hello_act())
        else:
            self._received(Act.HELLO)
            self.purpose = hello.purpose
        self.peer, self.version = hello, version
        return HelloReceived(hello)

    def _receive_request(self, request: int, body: bytes) -> Event:
        message: Message | None = None
        unusable: Refused | None = None
        try:
            message = decode(body)
        except UnknownMessage as error:
            unusable = Refused(code=Code.UNKNOWN_MESSAGE.value, detail=f"{error}; update this server first")
        except CodecError as error:
            unusable = _bad(str(error))
        self._received(self._request_act(message))
        if request in self._theirs or request == 0:
            raise _Violation(f"request id {request} cannot be used now")
        if len(self._theirs) >= self._limits.requests_in_flight_max:
            unusable = Refused(code=Code.TOO_MANY_REQUESTS.value, detail="too many requests are in flight here", retry_after_s=1)
        self._theirs.add(request)
        return RequestReceived(request, message) if unusable is None else RequestUnusable(request, unusable)

    def _receive_answer(self, request: int, body: bytes) -> Event:
        if request not in self._ours:
            raise _Violation(f"an answer to request {request}, which is not in flight")
        try:
            message = decode(body)
        except CodecError as error:
            if self.purpose is Purpose.BULK:
                # Whether a stream follows is not known; there is no going on.
                raise _Violation(f"an answer that cannot be read: {error}") from None
            self._received(Act.ANSWER)
            del self._ours[request]
            return AnswerUnusable(request, str(error))
        self._received(self._answer_act(message, self.state))
        return AnswerReceived(request, message, self._ours.pop(request))

    # --- steps ---

    def _send(self, act: Act) -> None:
        state = next_state(self.state, self.side, act)
        if state is None:
            raise Misuse(f"the {self.side} cannot send {act} while {self.state}")
        self.state = state

    def _received(self, act: Act) -> None:
        state = next_state(self.state, self.side.other, act)
        if state is None:
            raise _Violation(f"the {self.side.other} cannot send {act} while {self.state}")
        self.state = state

    def _hello_act(self) -> Act:
        return Act.HELLO_BULK if self.purpose is Purpose.BULK else Act.HELLO_CONTROL

    def _request_act(self, message: Message | None) -> Act:
        if self.purpose is not Purpose.BULK:
            return Act.REQUEST
        if isinstance(message, StoreBlobs):
            return Act.STORE_WHOLE
        return Act.STORE if isinstance(message, StoreBlob | AppendBlob) else Act.FETCH

    def _answer_act(self, message: Message, state: State) -> Act:
        if self.purpose is not Purpose.BULK:
            return Act.ANSWER
        if isinstance(message, Refused):
            return Act.REFUSE
        return Act.GRANT if state is State.ASKED else Act.ANSWER

    # --- small parts ---

    def _own_hello(self) -> bytes:
        assert self.purpose is not None
        hello = Hello(
            version_min=self._versions[0],
            version_max=self._versions[1],
            cluster=self.here.cluster,
            kind=self.here.kind,
            name=self.here.name,
            purpose=self.purpose,
            features=tuple(sorted(self._features)),
        )
        return encode_frame(FrameKind.HELLO, MAGIC, encode_plain(Hello, hello))

    def _check_length(self, body: bytes) -> None:
        if _ID.size + len(body) > self._limits.frames.control_bytes_max:
            raise CodecError(f"a message of {len(body)} bytes; a frame takes {self._limits.frames.control_bytes_max}")

    def _free_id(self) -> int:
        candidate = self._last_id % _ID_MAX + 1
        while candidate in self._ours:
            candidate = candidate % _ID_MAX + 1
        return candidate

    def _split_id(self, body: bytes) -> tuple[int, bytes]:
        if len(body) < _ID.size:
            raise _Violation("a frame without its request id")
        return int.from_bytes(body[: _ID.size], "big"), body[_ID.size :]

    def _ended(self, body: bytes) -> EndReceived:
        try:
            return EndReceived(decode(body) if body else None)
        except CodecError as error:
            raise _Violation(f"an end of a stream that cannot be read: {error}") from None

    def _reason(self, body: bytes) -> Refused:
        try:
            message: Any = decode(body)
        except CodecError:
            message = None
        return message if isinstance(message, Refused) else _bad("the other end gave no readable reason")
