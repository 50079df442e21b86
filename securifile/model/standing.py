"""Standing: a node's right to serve people now.

A node cannot know that it is down: it may be stopped, or cut off while people still reach it. So it serves only while
others have lately confirmed that they hold it for running, and it has caught up with everything it has heard of.
Age is counted from when the heartbeat was *sent*, on the monotonic clock, so a slow answer never lengthens it.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from securifile.model.ids import BEGINNING, Position
from securifile.model.servers import ServerKind, Status

FRESH_INTERVALS = 2.5
"""Heartbeat intervals for which an acknowledgement counts: less than the three after which others hold us for down."""


@attrs.frozen(kw_only=True)
class Acknowledgement:
    """The last answered heartbeat to one server."""

    kind: ServerKind
    sent_at: float
    """Monotonic seconds at which the heartbeat that was answered had been sent."""
    held_for: Status
    """What that server holds us for."""
    position: Position = BEGINNING
    """How far that server knew the catalogue when it said so."""


@attrs.frozen(kw_only=True)
class Standing:
    """Whether the node may serve, and if not why, in words for a person."""

    serves: bool
    reason: str
    behind: bool = False
    """The only thing missing is to catch up: worth waiting a moment for."""


def standing(
    now: float,
    acknowledgements: Mapping[str, Acknowledgement],
    *,
    nodes: int,
    interval_s: float,
    serve_alone: bool,
    known: Position,
    heard: Position,
    objectors: Mapping[str, Position],
    admitted: Position = BEGINNING,
) -> Standing:
    """Judge a node's standing.

    Args:
        now: monotonic seconds.
        acknowledgements: by server, the last ones.
        nodes: how many nodes the cluster has, this one included.
        interval_s: the heartbeat interval.
        serve_alone: the setting for two nodes of which one is dead, without an admin server.
        known: how far this node's index is.
        heard: the highest position any server has told of.
        objectors: whose word counts against this node: admin servers, and nodes that the cluster holds for running, each with where in the
            catalogue it became so. Who comes back from being cut off holds all others for down, and must not silence them with that.
        admitted: where in the catalogue the node's own status changed last. Who held it for down before knowing of that
            confirms that it lives, and is no longer right about its status.
    """
    oldest = now - FRESH_INTERVALS * interval_s
    fresh = {name: one for name, one in acknowledgements.items() if one.sent_at >= oldest}
    against = sorted(
        name
        for name, one in fresh.items()
        if one.held_for is not Status.RUNNING and name in objectors and one.position >= max(admitted, objectors[name])
    )
    if against:
        return Standing(serves=False, reason=f"{', '.join(against)} hold this node for {fresh[against[0]].held_for}")
    supported = 1 + sum(one.kind is ServerKind.NODE for one in fresh.values())
    has_admin = any(one.kind is ServerKind.ADMIN for one in fresh.values())
    alone_allowed = serve_alone and nodes == 2
    if not has_admin and supported * 2 <= nodes and not alone_allowed:
        return Standing(
            serves=False,
            reason=f"no admin server and only {supported} of {nodes} nodes (this one included) have answered lately: "
            "this node may be cut off",
        )
    if known < heard:
        return Standing(serves=False, reason=f"this node knows the catalogue up to {known} and has heard of {heard}", behind=True)
    return Standing(serves=True, reason="acknowledged and up to date")


def lasts_until(acknowledgements: Mapping[str, Acknowledgement], *, nodes: int, interval_s: float, serve_alone: bool) -> float:
    """Until when a standing lasts if nothing more is heard, in monotonic seconds; infinite for who needs nobody.

    The arguments are those of `standing`. It does not say that there is one: somebody may hold this node for down, or it may have to
    catch up.
    """
    fresh_s = FRESH_INTERVALS * interval_s
    needed = 0 if serve_alone and nodes == 2 else nodes // 2
    peers = sorted((one.sent_at for one in acknowledgements.values() if one.kind is ServerKind.NODE), reverse=True)
    if needed == 0:
        return float("inf")
    admin = max((one.sent_at for one in acknowledgements.values() if one.kind is ServerKind.ADMIN), default=float("-inf"))
    majority = peers[needed - 1] if len(peers) >= needed else float("-inf")
    return max(admin, majority) + fresh_s
