"""The sans-IO connection: what is allowed when, and that nothing which arrives can break it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securifile.model.digests import DigestAlgorithm
from securifile.model.errors import Code
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.model.servers import ServerKind
from securifile.protocol.codec import encode, encode_plain
from securifile.protocol.connection import (
    MAGIC,
    TABLE,
    AbortReceived,
    AnswerReceived,
    AnswerUnusable,
    CancelReceived,
    Connection,
    ConnectionLimits,
    DataReceived,
    EndReceived,
    Event,
    GoodbyeReceived,
    Hello,
    HelloReceived,
    Misuse,
    PeerIdentity,
    ProtocolFailed,
    Purpose,
    RequestReceived,
    RequestUnusable,
    Side,
    State,
    TooManyRequests,
    notice,
)
from securifile.protocol.frames import FrameKind, encode_frame
from securifile.protocol.messages import BlobFollows, BlobSent, BlobStored, Done, Ended, FetchBlob, Heartbeat, Refused, StoreBlob

N1 = PeerIdentity(cluster="c", kind=ServerKind.NODE, name="n1")
N2 = PeerIdentity(cluster="c", kind=ServerKind.NODE, name="n2")
BEAT = Heartbeat(position=Position(1, 2))
ATTEMPT = AttemptId(b"a" * 16)
STORE = StoreBlob(attempt=ATTEMPT, file=EntryId(b"f" * 16), version=1, algorithm=DigestAlgorithm.SHA256, size=3)
FETCH = FetchBlob(attempt=ATTEMPT)
REFUSED = Refused(code=Code.DISK_FULL.value, detail="no room")


def opened(purpose: Purpose = Purpose.CONTROL, **options: Any) -> tuple[Connection, Connection]:
    """A client and a server after their hellos."""
    client, server = Connection(Side.CLIENT, N2, purpose, **options), Connection(Side.SERVER, N1, **options)
    [event] = server.receive(client.hello())
    assert isinstance(event, HelloReceived)
    [event] = client.receive(server.accept())
    assert isinstance(event, HelloReceived)
    return client, server


def failure(events: list[Event]) -> str:
    """The reason of the `ProtocolFailed` that came last."""
    assert events
    assert isinstance(events[-1], ProtocolFailed)
    return events[-1].refused.detail


def frame(kind: FrameKind, request: int, message: Any) -> bytes:
    return encode_frame(kind, request.to_bytes(4, "big"), encode(message))


# --- hello ---


def test_hello() -> None:
    """After the hellos both know who the other is, what for, and in which version."""
    client, server = opened()
    assert (client.state, server.state) == (State.OPEN, State.OPEN)
    assert server.peer is not None
    assert client.peer is not None
    assert (server.peer.identity, client.peer.identity) == (N2, N1)
    assert (client.version, server.version, server.purpose) == (1, 1, Purpose.CONTROL)


@pytest.mark.parametrize(("ours", "theirs", "spoken"), [((1, 2), (2, 3), 2), ((1, 1), (1, 2), 1), ((4, 5), (4, 5), 5), ((2, 3), (1, 2), 2)])
def test_neighbouring_versions(ours: tuple[int, int], theirs: tuple[int, int], spoken: int) -> None:
    """The newest version that both have is spoken."""
    client, server = Connection(Side.CLIENT, N2, Purpose.CONTROL, versions=ours), Connection(Side.SERVER, N1, versions=theirs)
    server.receive(client.hello())
    client.receive(server.accept())
    assert (client.version, server.version) == (spoken, spoken)


@pytest.mark.parametrize(("ours", "theirs"), [((1, 1), (2, 3)), ((4, 5), (2, 3))])
def test_distant_versions(ours: tuple[int, int], theirs: tuple[int, int]) -> None:
    """Without a version in common the server says why it goes."""
    client, server = Connection(Side.CLIENT, N2, Purpose.CONTROL, versions=ours), Connection(Side.SERVER, N1, versions=theirs)
    events = server.receive(client.hello())
    assert "no version in common" in failure(events)
    assert isinstance(events[-1], ProtocolFailed)
    [event] = client.receive(server.goodbye(events[-1].refused))
    assert isinstance(event, GoodbyeReceived)
    assert "no version in common" in event.refused.detail


def test_features() -> None:
    """A feature is used when both have it."""
    client = Connection(Side.CLIENT, N2, Purpose.CONTROL, features=frozenset({"a", "b"}))
    server = Connection(Side.SERVER, N1, features=frozenset({"b", "c"}))
    server.receive(client.hello())
    client.receive(server.accept())
    assert client.features == server.features == {"b"}


def test_other_cluster() -> None:
    """Servers of different clusters do not talk."""
    client = Connection(Side.CLIENT, PeerIdentity(cluster="d", kind=ServerKind.NODE, name="n2"), Purpose.CONTROL)
    assert "different clusters" in failure(Connection(Side.SERVER, N1).receive(client.hello()))


_HELLO = Hello(version_min=1, version_max=1, cluster="c", kind=ServerKind.NODE, name="n2", purpose=Purpose.CONTROL)


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        encode_frame(FrameKind.HELLO, b"hello"),
        encode_frame(FrameKind.HELLO, MAGIC),
        encode_frame(FrameKind.HELLO, MAGIC, b"\x80"),
        encode_frame(FrameKind.HELLO, MAGIC, encode_plain(Hello, _HELLO).replace(b"n2", b"N2")),
        encode_frame(FrameKind.HELLO, MAGIC, bytes(5000)),
        frame(FrameKind.REQUEST, 1, BEAT),
        encode_frame(FrameKind.DATA, b"x"),
        encode_frame(FrameKind.END),
    ],
)
def test_bad_first_words(first: bytes) -> None:
    """What is no hello ends the connection, and nothing more is heard."""
    server = Connection(Side.SERVER, N1)
    failure(server.receive(first))
    assert server.receive(Connection(Side.CLIENT, N2, Purpose.CONTROL).hello()) == []
    assert server.goodbye(REFUSED)
    assert server.goodbye(REFUSED) == b""


def test_second_hello() -> None:
    """A hello is said once."""
    _, server = opened()
    assert "hello" in failure(server.receive(Connection(Side.CLIENT, N2, Purpose.CONTROL).hello()))


# --- control ---


def test_both_ask() -> None:
    """Requests of both sides have ids of their own, and answers find them in any order."""
    client, server = opened()
    first, data_first = client.request(BEAT)
    second, data_second = client.request(BEAT)
    assert server.receive(data_first + data_second) == [RequestReceived(first, BEAT), RequestReceived(second, BEAT)]
    assert client.receive(server.answer(second, Done()) + server.answer(first, REFUSED)) == [
        AnswerReceived(second, Done()),
        AnswerReceived(first, REFUSED),
    ]
    number, data = server.request(BEAT)
    assert client.receive(data) == [RequestReceived(number, BEAT)]
    assert server.receive(client.answer(number, Done())) == [AnswerReceived(number, Done())]


def test_cancel() -> None:
    """A cancelled request is answered all the same, and the answer is marked; a cancel that crosses its answer does no harm."""
    client, server = opened()
    number, data = client.request(BEAT)
    server.receive(data)
    assert server.receive(client.cancel(number)) == [CancelReceived(number)]
    assert client.cancel(number) == b""
    answer = server.answer(number, Done())
    assert client.receive(answer) == [AnswerReceived(number, Done(), wanted=False)]
    number, data = client.request(BEAT)
    server.receive(data)
    answer, cancel = server.answer(number, Done()), client.cancel(number)
    assert server.receive(cancel) == []
    assert client.receive(answer) == [AnswerReceived(number, Done(), wanted=False)]


def test_unknown_and_malformed_requests() -> None:
    """An unknown or malformed request is answered with an error, and the connection goes on."""
    client, server = opened()
    unknown = encode_frame(FrameKind.REQUEST, b"\0\0\0\7", b"\x92\xa4Sing\x80")
    malformed = encode_frame(FrameKind.REQUEST, b"\0\0\0\x08", b"\x92\xa9Heartbeat\x80")
    [first, second] = server.receive(unknown + malformed)
    assert isinstance(first, RequestUnusable)
    assert isinstance(second, RequestUnusable)
    assert (first.refused.code, second.refused.code) == (Code.UNKNOWN_MESSAGE.value, Code.BAD_REQUEST.value)
    server.answer(first.id, first.refused)
    server.answer(second.id, second.refused)
    assert isinstance(server.receive(client.request(BEAT)[1])[0], RequestReceived)


def test_unreadable_answer() -> None:
    """An answer that cannot be read fails its question, not the connection."""
    client, server = opened()
    number, data = client.request(BEAT)
    server.receive(data)
    [event] = client.receive(encode_frame(FrameKind.ANSWER, number.to_bytes(4, "big"), b"\x92\xa4Sing\x80"))
    assert isinstance(event, AnswerUnusable)
    client.request(BEAT)


def test_requests_in_flight() -> None:
    """Too many at once: we do not send them, and answer a peer's with an error; room comes back with answers."""
    limits = ConnectionLimits(requests_in_flight_max=2)
    client, server = Connection(Side.CLIENT, N2, Purpose.CONTROL), Connection(Side.SERVER, N1, limits=limits)
    server.receive(client.hello())
    client.receive(server.accept())
    requests = [client.request(BEAT) for _ in range(3)]
    events = server.receive(b"".join(data for _, data in requests))
    assert [type(event) for event in events] == [RequestReceived, RequestReceived, RequestUnusable]
    assert isinstance(events[2], RequestUnusable)
    assert events[2].refused.code == Code.TOO_MANY_REQUESTS.value
    server.request(BEAT)
    number, data = server.request(BEAT)
    with pytest.raises(TooManyRequests):
        server.request(BEAT)
    client.receive(data)
    server.receive(client.answer(number, Done()))
    server.request(BEAT)


@pytest.mark.parametrize(
    "wrong",
    [
        frame(FrameKind.ANSWER, 9, Done()),
        frame(FrameKind.REQUEST, 0, BEAT),
        frame(FrameKind.REQUEST, 5, BEAT) * 2,
        encode_frame(FrameKind.CANCEL, b"\0"),
        encode_frame(FrameKind.DATA, b"x"),
        encode_frame(FrameKind.END),
        encode_frame(FrameKind.ABORT, encode(REFUSED)),
    ],
)
def test_violations(wrong: bytes) -> None:
    """Answers to nothing, ids used twice, streams on a control connection: the end."""
    _, server = opened()
    failure(server.receive(wrong))


def test_ids_wrap() -> None:
    """Ids start again from 1 after 2^32 - 1, passing over those in flight."""
    client, _ = opened()
    first, _ = client.request(BEAT)
    assert first == 1
    client._last_id = 2**32 - 2
    assert [client.request(BEAT)[0] for _ in range(2)] == [2**32 - 1, 2]


# --- bulk ---


def test_upload() -> None:
    """Request, data, end; answer; and again."""
    client, server = opened(Purpose.BULK)
    for _ in range(2):
        number, data = client.request(STORE)
        events = server.receive(data + client.data(b"abc") + client.data(b"d") + client.end())
        assert events == [RequestReceived(number, STORE), DataReceived(b"abc"), DataReceived(b"d"), EndReceived()]
        stored = BlobStored(size=4, digest=b"")
        assert client.receive(server.answer(number, stored)) == [AnswerReceived(number, stored)]
        assert (client.state, server.state) == (State.IDLE, State.IDLE)


def test_what_is_said_at_the_end_of_a_stream() -> None:
    """It comes with the end; an end that cannot be read is a breach of the protocol."""
    client, server = opened(Purpose.BULK)
    sent = BlobSent(size=1, digest=b"d", checksum=b"c")
    _, data = client.request(STORE)
    assert server.receive(data + client.data(b"a") + client.end(sent))[-1] == EndReceived(sent)
    client, server = opened(Purpose.BULK)
    _, data = client.request(STORE)
    [_, failed] = server.receive(data + encode_frame(FrameKind.END, b"\xc1"))
    assert isinstance(failed, ProtocolFailed)


def test_download() -> None:
    """Request; answer, data, end; and again; an abort instead of the end is told apart."""
    client, server = opened(Purpose.BULK)
    for last, expected in ((server.end, EndReceived()), (lambda: server.abort(REFUSED), AbortReceived(REFUSED))):
        number, data = client.request(FETCH)
        server.receive(data)
        follows = BlobFollows(size=3)
        events = client.receive(server.answer(number, follows) + server.data(b"abc") + last())
        assert events == [AnswerReceived(number, follows), DataReceived(b"abc"), expected]
        assert (client.state, server.state) == (State.IDLE, State.IDLE)


@pytest.mark.parametrize("late", [False, True])
def test_early_refusal(late: bool) -> None:
    """A refusal in mid-stream, even one that crosses the end, leaves both ends in step; the rest of the stream is passed over."""
    client, server = opened(Purpose.BULK)
    number, data = client.request(STORE)
    server.receive(data + client.data(b"abc"))
    refusal = server.answer(number, REFUSED)
    if late:
        rest = client.data(b"more") + client.end()
        assert client.receive(refusal) == [AnswerReceived(number, REFUSED)]
    else:
        rest = client.data(b"more")
        assert client.receive(refusal) == [AnswerReceived(number, REFUSED)]
        rest += client.abort(REFUSED)
    assert server.receive(rest) == []
    assert (client.state, server.state) == (State.IDLE, State.IDLE)
    assert isinstance(server.receive(client.request(FETCH)[1])[0], RequestReceived)


def test_aborted_upload_is_answered() -> None:
    """An aborted upload is answered like a complete one, so that every request has one answer."""
    client, server = opened(Purpose.BULK)
    number, data = client.request(STORE)
    assert server.receive(data + client.abort(REFUSED))[-1] == AbortReceived(REFUSED)
    assert client.receive(server.answer(number, REFUSED)) == [AnswerReceived(number, REFUSED)]
    assert (client.state, server.state) == (State.IDLE, State.IDLE)


def test_our_own_mistakes() -> None:
    """Calling at the wrong moment raises `Misuse`."""
    client, server = opened(Purpose.BULK)
    wrongs: list[Callable[[], object]] = [client.end, client.hello, server.accept, lambda: client.data(b"x")]
    wrongs += [lambda: server.request(STORE), lambda: server.answer(1, Done())]
    for wrong in wrongs:
        with pytest.raises(Misuse):
            wrong()
    number, data = client.request(STORE)
    server.receive(data)
    for wrong in (lambda: client.request(STORE), lambda: client.data(b""), lambda: server.answer(number, Done())):
        with pytest.raises(Misuse):
            wrong()


# --- whatever arrives ---


def conversation(purpose: Purpose) -> tuple[bytes, list[Event]]:
    """What a client says in a whole conversation, and what the server hears."""
    client, server = Connection(Side.CLIENT, N2, purpose), Connection(Side.SERVER, N1)
    said = client.hello()
    events = server.receive(said)
    client.receive(server.accept())

    def say(data: bytes) -> None:
        nonlocal said
        said += data
        events.extend(server.receive(data))

    if purpose is not Purpose.BULK:
        for _ in range(3):
            say(client.request(BEAT)[1])
        say(client.cancel(2))
    else:
        say(client.request(STORE)[1])
        for _ in range(3):
            say(client.data(b"some data"))
        say(client.end())
    say(client.goodbye(REFUSED))
    return said, events


class _Accepting:
    """A server that accepts every hello as soon as it has heard it, as the transport does."""

    def __init__(self) -> None:
        self.connection = Connection(Side.SERVER, N1)

    def receive(self, data: bytes) -> list[Event]:
        events = self.connection.receive(data)
        if self.connection.state is State.JUDGING:
            self.connection.accept()
        return events


def test_a_notice_is_made_beforehand() -> None:
    """The two pieces that a process is given to send which knows nothing of the protocol are a hello and a request; an answer comes."""
    hello, request = notice(N2, Ended(boot="b"))
    server = _Accepting()
    assert [event.hello.identity for event in server.receive(hello) if isinstance(event, HelloReceived)] == [N2]
    assert server.connection.purpose is Purpose.NOTICE
    assert server.receive(request) == [RequestReceived(1, Ended(boot="b"))]
    assert server.connection.answer(1, Done())


@given(st.sampled_from(Purpose), st.lists(st.integers(min_value=0), max_size=12))
def test_any_split(purpose: Purpose, cuts: list[int]) -> None:
    """However the bytes are split (after the hello, which is answered first), the same events come out; data as it has come."""
    said, expected = conversation(purpose)
    hello = len(Connection(Side.CLIENT, N2, purpose).hello())
    places = sorted({0, hello, len(said), *(cut % len(said) for cut in cuts)})
    server = _Accepting()
    events = [event for start, stop in itertools.pairwise(places) for event in server.receive(said[start:stop])]
    assert _joined(events) == _joined(expected)


def _joined(events: list[Event]) -> list[Event]:
    """With data that follows data put together, as its reader does."""
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, DataReceived) and isinstance(last, DataReceived):
            joined[-1] = DataReceived(last.data + event.data)
        else:
            joined.append(event)
    return joined


@settings(deadline=None)
@given(st.sampled_from(Purpose), st.data())
def test_damage(purpose: Purpose, data: st.DataObject) -> None:
    """Damaged, truncated and random bytes never raise; after a failure nothing more is heard."""
    said, _ = conversation(purpose)
    hello = len(Connection(Side.CLIENT, N2, purpose).hello())
    damaged = bytearray(said)
    for place in data.draw(st.lists(st.integers(0, len(said) - 1), max_size=5)):
        damaged[place] = data.draw(st.integers(0, 255))
    server = _Accepting()
    events = [*server.receive(bytes(damaged[:hello])), *server.receive(bytes(damaged[hello:]) + data.draw(st.binary(max_size=50)))]
    failures = [place for place, event in enumerate(events) if isinstance(event, ProtocolFailed)]
    assert failures in ([], [len(events) - 1])


# --- the table ---


def test_every_state_can_be_reached_and_left() -> None:
    """The table has no island: every state but the first has a way in, every state a way on."""
    targets = {target for steps in TABLE.values() for target in steps.values()}
    assert targets | {State.GREETING, State.CLOSED} == set(State)
    assert all(TABLE[state] for state in State if state is not State.CLOSED)
