"""What one connection may take of a server's time and memory, and what is noted of each request."""

from __future__ import annotations

import attrs

from securifile.http.wire import HeadLimits


@attrs.frozen(kw_only=True)
class HttpLimits:
    """Bounds of the public port; every one ends an attack or a mistake that has been seen elsewhere."""

    head: HeadLimits = attrs.field(factory=HeadLimits)
    connections_max: int = 4000
    """A connection costs about 30 KiB with TLS: 120 MiB. Beyond, the one that is idle longest gives way."""
    header_timeout_s: float = 20.0
    """From the connection, or a request's first byte, to the end of its head, the TLS handshake included: not re-armed by single bytes."""
    idle_timeout_s: float = 75.0
    """Between requests: as nginx; browsers close after 60 to 300 s."""
    upload_rate_min: int = 1024
    """Bytes a second over `body_window_s`: slower bodies are cut off. The cluster's setting of this name takes its place."""
    body_window_s: float = 60.0
    """Long enough for a train to leave a tunnel."""
    unread_bytes_max: int = 256 * 1024
    """Of a body, held for the route; then the client waits. One large chunk: more gains nothing."""
    held_bytes_max: int = 64 * 1024
    """Of requests sent before the answer to the one at hand."""
    drain_bytes_max: int = 256 * 1024
    """Of a body that the route did not want: read and dropped when the length is known to be within, to keep the connection."""
    drain_s: float = 5.0
    """How long that may take."""
    linger_s: float = 10.0
    """How long a connection stays open after the last answer while the client is still sending: closed at once, the client
    would see a reset instead of the answer."""
    send_stall_s: float = 60.0
    """How long a client may take nothing of an answer: as nginx."""
    download_rate_min: int = 1024
    """Bytes a second: what was given to the transport extends `send_stall_s` by this."""


@attrs.frozen(kw_only=True)
class Access:
    """One answered, or cut off, request: what an access log wants to know. Tickets are taken out of the target."""

    peer: str
    method: str
    target: str
    version: str
    status: int
    """0: the connection ended before there was an answer."""
    sent: int
    """Bytes of content of the answer."""
    received: int
    """Bytes of the request's body."""
    duration_s: float
    user: str | None
    agent: str | None
    complete: bool
    """False: the answer was cut off, or never given."""
