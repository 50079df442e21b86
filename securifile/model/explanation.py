"""Why things are as they are and what happens next, in sentences: what an administrator or an owner reads when they ask.

It decides nothing. It asks the same functions that decide (`repair.holding`, `repair.plan`) and puts their answers into words, so that what
is said cannot differ from what is done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType

import attrs

from securifile.model.entries import Copy, Version
from securifile.model.facts import Server
from securifile.model.repair import Failing, Holding, Worth, holding, plan, worth
from securifile.model.servers import Status
from securifile.model.settings import ClusterSettings


def span(seconds: float) -> str:
    """A span of time as people say it: `40 s`, `6 min`, `3 h`, `2 days`."""
    if seconds < 1:
        return "a moment"
    for limit, unit_s, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def _state(server: Server, now: float) -> str:
    """`node2 is down for 4 min`."""
    word = "offline" if server.offline and server.status is Status.DOWN else server.status.value
    return f"{server.name} is {word} for {span(now - server.since)}"


def _grace_left_s(server: Server, settings: ClusterSettings, now: float) -> float:
    grace_s = settings.repair_after_offline_s if server.offline else settings.repair_after_s
    return grace_s - (now - server.since)


@attrs.frozen(kw_only=True)
class CopyView:
    """What a copy is worth, and why."""

    copy: Copy
    worth: Holding
    """Of whatever is on its node; a copy that is not durable is worth nothing yet."""
    why: str


def view_of(copy: Copy, server: Server | None, settings: ClusterSettings, now: float, verifying: Collection[str] = ()) -> CopyView:
    """Explain what a copy is worth.

    Args:
        server: its node; None when it is no member any more.
        now: wall clock.
        verifying: nodes that are being verified.
    """
    kind = holding(server, settings, now, verifying)
    if server is None:
        why = f"{copy.node} is no member of the cluster any more"
    elif kind is Holding.GOOD:
        why = f"{copy.node} is running" if copy.durable else f"{copy.node} is running, and does not have it yet"
    elif kind is Holding.LEAVING:
        why = f"{copy.node} is running, and being drained"
    elif kind is Holding.AWAY and server.status is Status.DOWN and copy.node in verifying:
        why = f"{copy.node} has returned, and is being verified"
    elif kind is Holding.AWAY:
        why = f"{_state(server, now)}, and waited for"
    else:
        why = f"{_state(server, now)}, longer than it is waited for"
    if not copy.durable and kind is not Holding.GOOD:
        why += "; it was not known to have the copy"
    return CopyView(copy=copy, worth=kind, why=why)


def _copies(count: int) -> str:
    return "1 copy is" if count == 1 else f"{count} copies are"


NOTHING_FAILS: Mapping[str, Failing] = MappingProxyType({})


def _failing(node: str, failing: Failing, settings: ClusterSettings, now: float, *, moves: bool) -> str:
    said = f"{node} cannot make its copy: {failing.reason} (tried {failing.failures} times in {span(now - failing.since)})"
    if moves:
        return f"{said}; another node makes it instead"
    if failing.is_stuck(settings, now):
        return f"{said}; it goes on trying"
    return f"{said}; if it goes on failing, another node is to make it in {span(failing.stuck_at(settings) - now)}"


def next_for_file(
    version: Version,
    servers: Mapping[str, Server],
    settings: ClusterSettings,
    now: float,
    *,
    room: Mapping[str, int],
    failing: Mapping[str, Failing] = NOTHING_FAILS,
    verifying: Collection[str] = (),
) -> list[str]:
    """What happens to the copies of a version from here, if nothing else changes; at least one sentence.

    Args:
        servers: the members, by name.
        now: wall clock.
        room: bytes available on each running node.
        failing: nodes that try to make a copy of it in vain.
        verifying: nodes that are being verified.
    """

    def holding_of(node: str) -> Holding:
        return holding(servers.get(node), settings, now, verifying)

    stuck = [node for node, one in failing.items() if one.is_stuck(settings, now)]
    # The real planner draws lots among the nodes that have room, so no new node is named.
    planned = plan(version, settings.copies_wanted, holding_of=holding_of, room=room, below=lambda bound: 0, stuck=stuck)
    outlook = _Outlook(
        version=version,
        servers=servers,
        settings=settings,
        now=now,
        failing=failing,
        stuck=stuck,
        verifying=verifying,
        here=worth(version, holding_of),
        planned=planned or version.copies,
        holding_of=holding_of,
    )
    return list(outlook.sentences()) or [f"nothing: {len(outlook.here.good)} of {settings.copies_wanted} copies are good"]


@attrs.frozen(kw_only=True)
class _Outlook:
    """What is known of the copies of a version, what is planned for them, and the sentences about it."""

    version: Version
    servers: Mapping[str, Server]
    settings: ClusterSettings
    now: float
    failing: Mapping[str, Failing]
    stuck: Collection[str]
    verifying: Collection[str]
    here: Worth
    planned: Sequence[Copy]
    holding_of: Callable[[str], Holding]

    def sentences(self) -> Iterator[str]:
        """In order of what matters; none when nothing happens."""
        if not self.here.readable:
            yield self._unreadable()
        yield from filter(None, map(self._coming, self.here.coming))
        yield from self._missing()
        yield from map(self._away, self.here.away)
        yield from filter(None, map(self._leaving, self.version.copies))
        if self.planned[0].node != self.version.origin:
            yield f"{self.planned[0].node} becomes the origin in place of {self.version.origin}"

    def _stays(self, copy: Copy) -> bool:
        return any(planned.node == copy.node for planned in self.planned)

    def _unreadable(self) -> str:
        had = " or ".join(self.version.holders)
        if had:
            return f"no copy can be read now: the content is not to be had until {had} is running again"
        return "no server is known to have the content"

    def _coming(self, copy: Copy) -> str | None:
        """A copy that is not durable yet."""
        """A copy that is not durable yet."""
        node = copy.node
        if node in self.failing:
            return _failing(node, self.failing[node], self.settings, self.now, moves=not self._stays(copy))
        if not self._stays(copy):
            return None
        return f"a copy is being made on {node}" if self.here.readable else f"a copy is made on {node} when one can be read"

    def _missing(self) -> Iterator[str]:
        """Copies that nobody makes yet."""
        coming = sum(copy.node not in self.stuck for copy in self.here.coming)
        missing = self.settings.copies_wanted - len(self.here.good) - len(self.here.away) - coming
        added = len({copy.node for copy in self.planned} - {copy.node for copy in self.version.copies})
        if added:
            yield f"{_copies(added)} to be made on another node, after those of more endangered files"
        if missing > added and self.here.readable:
            yield f"{_copies(missing - added)} missing, and no other running node has room for it"

    def _away(self, copy: Copy) -> str:
        """A copy on a node that is waited for."""
        server, wanted = self.servers[copy.node], self.settings.copies_wanted
        if copy.node in self.verifying and server.status is Status.DOWN:
            return f"{copy.node} is being verified, and runs again when every copy there is sound"
        if len(self.here.good) >= wanted:
            then = f"; {len(self.here.good)} of {wanted} copies are good without it"
        elif self.here.readable:
            then = f"; in {span(_grace_left_s(server, self.settings, self.now))} its copy is made anew on another node"
        else:
            then = ", and waited for"
        return _state(server, self.now) + then

    def _leaving(self, copy: Copy) -> str | None:
        """A copy that is to go."""
        node, wanted, kind = copy.node, self.settings.copies_wanted, self.holding_of(copy.node)
        if not self._stays(copy):
            if node in self.failing and copy in self.here.coming:
                return None
            reason = "one more than wanted" if kind is Holding.GOOD and copy.durable else "not needed any more"
            return f"the copy on {node} is dropped soon: {reason}"
        if copy.durable and kind is Holding.LEAVING:
            return f"the copy on {node} is dropped when {wanted} others are good"
        if copy.durable and kind is Holding.LOST:
            return f"the copy on {node} is forgotten when {wanted} others are good"
        return None


@attrs.frozen(kw_only=True)
class Trace:
    """Something that was written down about a node."""

    at: float
    """Wall clock."""
    event: str
    """As in `AuditRecord`: `status`, `verification`, `verdict`, `bad-copy`, or what an administrator did: `offline`, `online`, ..."""
    person: str | None
    detail: str


@attrs.frozen(kw_only=True)
class NodeView:
    """What is known of a node at one moment."""

    server: Server
    now: float
    """Wall clock."""
    boot: str | None
    """The life of its process, by its last heartbeat; None when there was none lately."""
    ended: bool
    """Whether the process that was admitted is known to have ended."""
    answers: bool
    """Whether it answers heartbeats."""
    verifying: bool
    """Whether it is being verified now."""
    caught_up: bool
    """Whether its index is as far as is asked of it."""
    copies: int
    """How many it is to hold."""
    only: int
    """How many of those that it has are the only one on a running node."""
    holds: Mapping[str, Status]
    """What each observer holds it for."""
    fruitless: tuple[str, float] | None = None
    """Why its last verification came to no verdict, and in how many seconds the next one begins."""
    trail: Sequence[Trace]
    """What was written down about when its status changed last, in order of time."""


def why_status(node: NodeView) -> str:
    """Why the cluster holds a node for what it does, as far as that is known."""
    server = node.server
    if server.offline:
        by = [trace.person for trace in node.trail if trace.event == "offline" and trace.person]
        return f"it was taken offline by {by[-1]}" if by else "it was taken offline"
    changes = [trace.detail for trace in node.trail if trace.event == "status" and f"-> {server.status}" in trace.detail]
    reason = changes[-1].partition(f"-> {server.status}")[2].removeprefix(":").strip() if changes else ""
    if server.status is Status.FAILED:
        return f"its verification failed: {reason}" if reason else "its verification failed, or a running node holds it for failed"
    if node.ended and node.boot in (None, server.boot):
        return "its process has ended"
    if server.status is Status.RUNNING:
        return "all who verified it found its copies good"
    if node.boot is not None and node.boot != server.boot:
        return "its process is another one than was admitted, and has to be verified"
    silent = sorted(observer for observer, status in node.holds.items() if status is Status.DOWN)
    if silent and not node.answers:
        return f"{', '.join(silent)} {'hears' if len(silent) == 1 else 'hear'} nothing of it"
    return "it has not been verified since it was down"


def next_for_node(node: NodeView, settings: ClusterSettings) -> list[str]:
    """What happens to a node and its copies from here, and what an administrator can do; at least one sentence."""
    server, name = node.server, node.server.name
    said: list[str] = []
    if server.status is Status.FAILED:
        said.append(
            f"it serves nobody; to have it repaired: securifile node offline {name}, then node repair {name}, then node online {name}"
        )
    elif server.status is Status.DOWN:
        if server.offline:
            said.append(f"it stays down until it is put back: securifile node online {name}")
        elif node.verifying:
            said.append("its copies are being verified: if all are good it is running, if one is bad it is failed")
        elif not node.answers:
            said.append("it is verified as soon as it answers again")
        elif not node.caught_up:
            said.append("it is verified as soon as it has caught up with the catalogue")
        elif node.fruitless is not None:
            reason, left_s = node.fruitless
            said.append(f"its verification came to no verdict ({reason}); it begins again in {span(left_s)}, or when something changes")
        else:
            said.append("it is verified within seconds")
    if server.status is Status.RUNNING and server.draining:
        said.append(
            f"its {node.copies} copies are made on other nodes, and dropped here"
            if node.copies
            else f"nothing is left on it; to take it out of the cluster: securifile node remove {name}"
        )
    if server.status is not Status.RUNNING and node.copies:
        left_s = _grace_left_s(server, settings, node.now)
        when = f"in {span(left_s)} its" if left_s > 0 else "its"
        said.append(f"{when} {node.copies} copies are made anew on other nodes")
        if node.only:
            said.append(f"but {node.only} files have no copy on a running node: they cannot be read until it, or another holder, is back")
    return said or ["nothing: it is running"]
