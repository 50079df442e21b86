"""The sentinel's process: waits until the node process has ended, and says so to the other servers.

It is run as a script, by `python -I -S`, and imports nothing of SecuriFile: it is to be small, and does nothing for as long as its node
lives. What it says it is given, in the bytes of the protocol; of that it knows frames only. TLS is loaded when there is something to say.

    descriptor 0   from the node process: lines of JSON (`supervisor.Supervisor.describe`), of which the last one counts
    PROCESS        a pidfd of the node process: readable when that has ended (pidfd_open(2))
    LIFELINE       the reading end of a pipe of which the node process and all that serve people for it have the writing end

It says nothing while any of these lives; and it ends soon after the node process, or when that has no use for it any more.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from typing import Any

PROCESS, LIFELINE = 3, 4
"""The descriptors that it finds when it starts, beside 0, 1 and 2."""

LEFT_S = 5.0
"""How long a node process may take to end after it has closed its end of descriptor 0: it stops in an orderly way. And how long those may
take after its end that serve people for it; the system kills them."""
TELLING_S = 2.0
"""How long it goes on telling: a service manager may wait for its end before it starts the node again."""
ANSWER_S = 1.0
"""How long a server may take to accept, to shake hands or to answer."""
PAUSES_S = (0.2, 0.5)
"""Between attempts to tell a server that could not be reached."""

_HELLO, _ANSWER = 1, 3
"""Kinds of frames."""
_LENGTH_BYTES, _FRAME_BYTES_MAX = 4, 1 << 20
_PIECE_BYTES = 1 << 16

_PASSED_OVER = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""What terminals and supervisors send to all processes of a node: it has to see the end of that first."""


class NotHeard(Exception):
    """The server does not take what it is told."""


def main() -> None:
    """Wait, and tell."""
    for number in _PASSED_OVER:
        signal.signal(number, signal.SIG_IGN)
    if os.getpgrp() != os.getpid():
        os.setsid()
    last = wait_for_end()
    if last is not None and wait_for_others():
        tell_all(last)


def wait_for_end() -> bytes | None:
    """The last line that the node process has written, once it has ended; None if it lives on without this process, or has written none."""
    poll = select.poll()
    poll.register(PROCESS, select.POLLIN)
    poll.register(0, select.POLLIN)
    last, rest, patience_ms = b"", b"", None
    while True:
        ready = [descriptor for descriptor, _ in poll.poll(patience_ms)]
        if not ready:
            return None
        if 0 in ready:
            piece = os.read(0, _PIECE_BYTES)
            *whole, rest = (rest + piece).split(b"\n")
            last = whole[-1] if whole else last
            if piece:
                continue
            poll.unregister(0)
            patience_ms = LEFT_S * 1000
        if PROCESS in ready:
            # What it wrote before its end has been read: the end of descriptor 0 comes before its own.
            return last or None


def wait_for_others() -> bool:
    """Whether nobody has the writing end of the lifeline any more. It is never written to."""
    ready, _, _ = select.select([LIFELINE], [], [], LEFT_S)
    return bool(ready) and os.read(LIFELINE, 1) == b""


def tell_all(line: bytes) -> None:
    """Tell every server that is named in the line, all at the same time."""
    import json
    import threading

    told = json.loads(line)
    hello, request = bytes.fromhex(told["hello"]), bytes.fromhex(told["request"])
    context = None if told["tls"] is None else _context(*told["tls"])
    over = threading.Event()
    telling = [
        threading.Thread(target=_tell, args=(over, (host, port), uri, context, hello, request), daemon=True)
        for host, port, uri in told["servers"]
    ]
    for one in telling:
        one.start()
    timer = threading.Timer(TELLING_S, over.set)
    timer.daemon = True
    timer.start()
    for one in telling:
        one.join(TELLING_S if not over.is_set() else 0.0)


def _context(identity: str, trust: str) -> Any:
    """TLS as between servers (`protocol/tls.py`).

    Args:
        identity: the file with the node's key and certificate.
        trust: that with the authority of servers.
    """
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
    context.load_verify_locations(trust)
    context.load_cert_chain(identity)
    return context


def _tell(over: Any, address: tuple[str, int], uri: str, context: Any, hello: bytes, request: bytes) -> None:
    for pause_s in (*PAUSES_S, 0.0):
        try:
            with _connect(address, uri, context) as connection:
                connection.sendall(hello)
                _receive(connection, _HELLO)
                connection.sendall(request)
                _receive(connection, _ANSWER)
            return
        except NotHeard:
            return
        except OSError:
            # Refused, silent, or not trusted: it is tried again, for it may be there in a moment. Nobody is left to be told of it.
            if over.wait(pause_s):
                return


def _connect(address: tuple[str, int], uri: str, context: Any) -> Any:
    """Connect to the server of that URI name."""
    plain = socket.create_connection(address, ANSWER_S)
    if context is None:
        return plain
    try:
        connection = context.wrap_socket(plain)
    except BaseException:
        plain.close()
        raise
    names = connection.getpeercert().get("subjectAltName", ())
    if [name for kind, name in names if kind == "URI"] != [uri]:
        connection.close()
        raise NotHeard(f"{address} is not {uri}")
    return connection


def _receive(connection: Any, kind: int) -> None:
    """Take a frame, which has to be of that kind. Raises `NotHeard` if it is another one."""
    length = int.from_bytes(_exactly(connection, _LENGTH_BYTES), "big")
    if not 1 <= length <= _FRAME_BYTES_MAX or _exactly(connection, length)[0] != kind:
        raise NotHeard


def _exactly(connection: Any, count: int) -> bytes:
    received = b""
    while len(received) < count:
        piece = connection.recv(count - len(received))
        if not piece:
            raise ConnectionError
        received += piece
    return received


if __name__ == "__main__":
    main()
