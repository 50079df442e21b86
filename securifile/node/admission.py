"""Whether this node may serve people now: the hands of `model/standing.py`."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime

from securifile.model.errors import Code, Refusal
from securifile.model.facts import Server
from securifile.model.ids import BEGINNING, Position
from securifile.model.roster import Roster
from securifile.model.servers import ServerKind, Status
from securifile.model.standing import FRESH_INTERVALS, Standing, lasts_until, standing
from securifile.node.index import Index
from securifile.node.removal import Removal
from securifile.protocol.heartbeats import Heartbeats

BEHIND_S = 2.0
"""How long a request waits for the index to catch up before it is refused: the feed is milliseconds behind, or broken."""


class Admission:
    """This node's standing, and who is let in by it."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        name: str,
        boot: str,
        roster: Roster,
        index: Index,
        heartbeats: Heartbeats,
        removal: Removal,
        is_available: Callable[[str], bool],
    ) -> None:
        """Args:
        boot: the life of this node's process.
        is_available: whether people can be sent to a node.
        """
        self._clock = clock
        self._name = name
        self._boot = boot
        self._roster = roster
        self._index = index
        self._heartbeats = heartbeats
        self._removal = removal
        self._is_available = is_available
        self._refusing: str | None = "starting"
        self._admitted = BEGINNING
        """Where in the catalogue this node's status changed last."""
        self._objectors: dict[str, Position] = {}
        """Whose word counts against this node, and where in the catalogue it became so; see `standing`."""

    def open(self) -> None:
        """From now on people are let in, if the others agree."""
        self._refusing = None

    def close(self) -> None:
        """Serve nobody any more."""
        self._refusing = "stopping"

    def changed(self, position: Position) -> None:
        """The cluster holds this node for something else from that position on."""
        self._admitted = position

    def weigh(self, server: Server, since: Position) -> None:
        """From that position on, a server's word counts against this node or not."""
        if server.kind is ServerKind.ADMIN or server.status is Status.RUNNING:
            self._objectors[server.name] = BEGINNING if server.kind is ServerKind.ADMIN else since
        else:
            self._objectors.pop(server.name, None)

    def forget(self, name: str) -> None:
        """A server is no member any more."""
        self._objectors.pop(name, None)

    def standing(self) -> Standing:
        """This node's right to serve people now."""
        if self._refusing is not None:
            return Standing(serves=False, reason=f"this node is {self._refusing}")
        own = self._roster.servers.get(self._name)
        if self._removal.is_removed:
            return Standing(serves=False, reason="this node was removed from the cluster")
        if own is None:
            return Standing(serves=False, reason="this node is not a member of the cluster (yet)")
        if own.status is not Status.RUNNING:
            return Standing(serves=False, reason=f"the cluster holds this node for {own.status}")
        if own.boot != self._boot:
            return Standing(serves=False, reason="this node was started anew and has to be verified first")
        settings = self._roster.settings
        return standing(
            self._clock.seconds(),
            self._heartbeats.acknowledgements,
            nodes=len(self._roster.nodes),
            interval_s=settings.heartbeat_interval_s,
            serve_alone=settings.serve_alone,
            known=self._index.position,
            heard=self._heartbeats.heard,
            objectors=self._objectors,
            admitted=self._admitted,
        )

    def serves_until(self) -> tuple[float, float]:
        """Until when people may be served, and until when transfers under way may go on, if nothing more is heard: monotonic seconds.

        Long ago where they may not now; and at most as far ahead as an acknowledgement counts, for who needs none.
        """
        judged = self.standing()
        if not judged.serves and not judged.behind:
            return float("-inf"), float("-inf")
        settings = self._roster.settings
        lasts = lasts_until(
            self._heartbeats.acknowledgements,
            nodes=len(self._roster.nodes),
            interval_s=settings.heartbeat_interval_s,
            serve_alone=settings.serve_alone,
        )
        until = min(lasts, self._clock.seconds() + FRESH_INTERVALS * settings.heartbeat_interval_s)
        return (until if judged.serves else float("-inf")), until

    async def admit(self) -> None:
        """Return when this node may serve a person; wait a moment if it only has to catch up.

        Raises:
            Refusal: NOT_RUNNING, with the reason.
        """
        judged = self.standing()
        if judged.serves:
            return
        if judged.behind:
            heard = self._heartbeats.heard
            waiting = self._index.reached(heard)
            timer = self._clock.callLater(BEHIND_S, waiting.cancel)
            try:
                await waiting
                judged = self.standing()
                if judged.behind and self._index.position >= heard:
                    # All that was answered before this request came is known here. What was heard of since does not count: under
                    # constant writing there is always something.
                    return
            except CancelledError:
                pass
            finally:
                if timer.active():
                    timer.cancel()
        if not judged.serves:
            raise Refusal(
                Code.NOT_RUNNING,
                f"Node {self._name} serves nobody now: {judged.reason}. Use another server.",
                retry_after_s=1.0,
                servers=[server.url for server in self._roster.of_kind(ServerKind.NODE) if self._is_available(server.name)],
            )
