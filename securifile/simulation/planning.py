"""Planning: what a cluster of a given size, made of machines that fail so often, can promise over many years.

No message is simulated here, only what decides about copies in the long run: nodes go down and come back, disks die and are
replaced, and the cluster's own rules (`model/repair.py`, `model/placement.py`, `model/pacing.py`, `model/spreading.py`) say what
is copied where, and whether anybody can read and write meanwhile.

    node     running --outage--> away --returns, is verified--> running
             running, away --its disk dies--> dead --an empty one takes its place--> running
    copy     durable --its disk dies--> destroyed          pending --fetched, within the bandwidth--> durable
    file     lost, when its last copy is destroyed; a new one takes its place, so that there are always as many

Files are simulated in groups: one `Version` stands for so many files of the same size that have their copies on the same nodes. All
times are drawn from one seed, exponentially distributed about their means. Left out are what takes seconds (detection is a constant),
rot, and modifications: a node that returns finds its files as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush

import attrs

from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy, Version
from securifile.model.facts import Server
from securifile.model.ids import AttemptId
from securifile.model.pacing import Pace
from securifile.model.placement import place
from securifile.model.repair import Holding, holding, plan, worth
from securifile.model.servers import ServerKind, Status
from securifile.model.settings import ClusterSettings
from securifile.model.spreading import spread_enough
from securifile.simulation.chance import Chance

HOUR_S = 3600.0
DAY_S = 86400.0
YEAR_S = 365.25 * DAY_S

PERIODS = 20
"""Equal parts of the simulated time; how much they differ says how certain the figures are."""

STUDENT_95 = 2.093
"""Two-sided 95 % quantile of Student's t for `PERIODS` - 1 degrees of freedom."""

NONE_SEEN_95 = 3.0
"""The rule of three: what was not seen in a time happens, with 95 % confidence, less than three times in it (-ln 0.05)."""

SAMPLE_S = 0.01
"""To read some blocks of one file of a returning node, where there is too much to read all: a seek."""

A_LOOK_S = 1.0
"""The planner looks within seconds; a grace time has run out for sure this long after its end."""


@attrs.frozen(kw_only=True)
class Question:
    """What is to be found out: a cluster, and what befalls it. Mean times are of exponential distributions; infinity means never."""

    seed: int = 1
    nodes: int = attrs.field(default=5, validator=attrs.validators.ge(1))
    settings: ClusterSettings = attrs.field(factory=ClusterSettings)
    """Of them count r, `write_copies`, the grace time, the bandwidth for repairs, the heartbeats, and what a verification may take."""
    years: float = attrs.field(default=100.0, validator=attrs.validators.gt(0))
    groups: int = attrs.field(default=500, validator=attrs.validators.ge(1))
    """How many groups of files are simulated."""
    stored_bytes: float = attrs.field(default=100 * 1024.0**3, validator=attrs.validators.gt(0))
    """On each node, on average."""
    capacity_bytes: float = attrs.field(default=math.inf, validator=attrs.validators.gt(0))
    """Of each node."""
    file_bytes: float = attrs.field(default=4 * 1024.0**2, validator=attrs.validators.gt(0))
    """Of a file, on average: decides how many a group stands for."""
    disk_every_s: float = attrs.field(default=10 * YEAR_S, validator=attrs.validators.gt(0))
    """Mean time between losses of all that one node has."""
    replaced_in_s: float = attrs.field(default=DAY_S, validator=attrs.validators.ge(0))
    """Mean time until an empty node takes the place of one that was lost."""
    outage_every_s: float = attrs.field(default=90 * DAY_S, validator=attrs.validators.gt(0))
    """Mean time between outages of one node from which it returns as it was."""
    outage_s: float = attrs.field(default=300.0, validator=attrs.validators.ge(0))
    """Their mean length."""
    rack_nodes: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    """How many nodes share a switch or a power supply; node 1 and those after it, and so on."""
    rack_every_s: float = attrs.field(default=math.inf, validator=attrs.validators.gt(0))
    """Mean time between outages of one rack."""
    rack_outage_s: float = attrs.field(default=HOUR_S, validator=attrs.validators.ge(0))
    rack_kills: float = attrs.field(default=0.0, validator=[attrs.validators.ge(0), attrs.validators.le(1)])
    """Part of its nodes that lose all they have in a rack's outage."""
    read_bytes_s: float = attrs.field(default=200 * 1024.0**2, validator=attrs.validators.gt(0))
    """How fast a returning node reads what it has, to be verified."""
    coming_max: int = attrs.field(default=64, validator=attrs.validators.ge(1))
    """Copies that the planner has made at a time (`admin/repair.py`)."""
    round_s: float = attrs.field(default=2.0, validator=attrs.validators.gt(0))
    """How often it plans."""

    def __attrs_post_init__(self) -> None:
        if self.settings.replicas >= self.nodes:
            raise ValueError(f"{self.settings.replicas} replicas and an origin need {self.settings.replicas + 1} nodes, not {self.nodes}")
        if self.stored_bytes > self.capacity_bytes:
            raise ValueError("more is stored on a node than it can hold")

    @property
    def group_bytes(self) -> float:
        """How large one copy of a group is."""
        return self.stored_bytes * self.nodes / (self.settings.copies_wanted * self.groups)

    @property
    def files(self) -> float:
        """How many files there are."""
        return self.groups * self.group_bytes / self.file_bytes

    @property
    def verified_in_s(self) -> float:
        """How long a returning node is verified: it reads all it has, unless what it shares with one other is beyond the budget."""
        others = max(1, self.nodes - 1)
        shared = self.stored_bytes * min(max(1, self.settings.replicas), others) / others
        if shared <= self.settings.verification_budget_s * self.read_bytes_s:
            return self.stored_bytes / self.read_bytes_s
        return self.stored_bytes / self.file_bytes * SAMPLE_S


@attrs.frozen(kw_only=True)
class Estimate:
    """A figure, and between what bounds it lies with 95 % confidence."""

    value: float
    least: float
    most: float


def estimate(periods: list[float]) -> Estimate:
    """The mean of what was seen in equal periods, with Student's interval; never below 0."""
    count = len(periods)
    mean = sum(periods) / count
    spread = STUDENT_95 * math.sqrt(sum((one - mean) ** 2 for one in periods) / (count - 1) / count)
    return Estimate(value=mean, least=max(0.0, mean - spread), most=mean + spread)


@attrs.frozen(kw_only=True)
class Forecast:
    """What came out."""

    question: Question
    unreadable: Estimate
    """Part of the time in which a file cannot be read."""
    unwritable: Estimate
    """Part of the time in which a file cannot be modified."""
    lost: Estimate
    """Part of the files that is lost in a year."""
    incidents: int
    """Moments in which something was lost."""
    outages: int
    disks: int
    racks: int
    copies_destroyed: int
    """Of groups."""
    copies_made: int
    restored_s: tuple[float, ...]
    """For each destroyed copy that was made anew: how long it took from the end of its disk."""
    events: int


class _Node:
    """One machine, and the node's place in the cluster."""

    def __init__(self, name: str) -> None:
        self.server = Server(
            name=name, kind=ServerKind.NODE, url="", protocol_address="", public_key=b"", status=Status.RUNNING, since=0.0, boot="1"
        )
        self.holding = Holding.GOOD
        self.dead = False
        """Whether its disk is gone, whatever the catalogue believes."""
        self.life = 0
        """Grows with each change of status: what was to happen to an earlier life does not."""
        self.verifying = False
        """Whether it has returned, and is being verified."""
        self.disk = 0
        """Which disk it has."""
        self.listed: dict[int, bool] = {}
        """The groups that list a copy here, and whether the catalogue calls it durable."""
        self.pace = Pace()

    @property
    def name(self) -> str:
        return self.server.name

    @property
    def runs(self) -> bool:
        return self.server.status is Status.RUNNING


class _Group:
    """Files that have their copies on the same nodes."""

    def __init__(self, version: Version) -> None:
        self.version = version
        self.readable = 0
        """How many durable copies are on running nodes: `Worth.readable`, kept up to date because it is asked most often."""
        self.unreadable_since: float | None = 0.0
        self.destroyed_at: list[float] = []
        """When copies were destroyed that have not been made anew."""
        self.waits = False
        """Whether it is planned as soon as fewer copies are being made."""


class _Silence:
    """Time in which nobody can write, whatever is in the files."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._before_s = 0.0

    def until(self, now: float) -> float:
        """Seconds of it so far."""
        return self._before_s + (0.0 if self._since is None else now - self._since)

    def turn(self, now: float, silent: bool) -> None:
        """From now on it is like this."""
        self._before_s = self.until(now)
        self._since = now if silent else None


class Planning:
    """One history of many years."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._settings = question.settings
        self._now = 0.0
        self._number = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        chance = Chance(question.seed)
        self._chance = chance.stream("times")
        self._below = chance.stream("placement").below
        self._size = max(1, round(question.group_bytes))
        self._files_a_group = question.group_bytes / question.file_bytes
        self._planner = Pace()
        self._nodes = {f"n{number}": _Node(f"n{number}") for number in range(1, question.nodes + 1)}
        self._names = list(self._nodes)
        self._room_at_first = round(min(question.capacity_bytes, 2.0**62))
        self._room = dict.fromkeys(self._nodes, self._room_at_first)
        self._groups: list[_Group] = []
        self._unsettled: dict[int, None] = {}
        """Groups with a copy that is missing or on its way: looked at again whenever a node has come back."""
        self._coming: dict[tuple[int, str], object] = {}
        """Copies being made."""
        self._coming_max = max(question.coming_max, question.nodes)
        self._waiting: list[tuple[int, int]] = []
        """(readable copies, group): a heap, in which a group may stand more than once."""
        self._running = question.nodes
        self._writes = [self._can_write(running) for running in range(question.nodes + 1)]
        """Whether anybody can write, by the number of nodes that are running."""
        self._silence = _Silence()
        self._silent_at_group: dict[int, float] = dict.fromkeys(range(question.groups), 0.0)
        self._unreadable_s = [0.0] * PERIODS
        self._both_s = [0.0] * PERIODS
        """Of that, while nobody could write anyway."""
        self._silent_s = [0.0] * PERIODS
        self._silent_until_now = 0.0
        self._lost = [0] * PERIODS
        self._lost_at: float | None = None
        self._incidents = self._outages = self._disks = self._racks = self._destroyed = self._made = self._events = 0
        self._restored_s: list[float] = []

    def run(self) -> Forecast:
        """Let the years go by."""
        question = self._question
        for number in range(question.groups):
            self._groups.append(_Group(self._version(())))
            self._settle(number)
        for node in self._nodes.values():
            self._disk_will_die(node)
            self._will_fail(node)
        names = self._names
        for first in range(0, len(names), question.rack_nodes):
            self._rack_will_fail(names[first : first + question.rack_nodes])
        end = question.years * YEAR_S
        while self._queue and self._queue[0][0] <= end:
            self._now, _, happen = heappop(self._queue)
            self._events += 1
            happen()
        self._now = end
        self._note_silence()
        for number, group in enumerate(self._groups):
            if group.unreadable_since is not None:
                self._note_unreadable(number)
        return self._forecast()

    def check(self) -> None:
        """Whether what was counted is what the rules say of the state at the end. Raises `AssertionError`."""
        used = dict.fromkeys(self._nodes, 0)
        for number, group in enumerate(self._groups):
            assert group.readable == worth(group.version, self._holding_of).readable, (number, group.version.copies)
            assert (group.readable > 0) == (group.unreadable_since is None)
            for copy in group.version.copies:
                assert self._nodes[copy.node].listed[number] == copy.durable
                used[copy.node] += self._size
            if self._is_settled(group):
                copies = group.version.copies
                assert plan(group.version, len(copies), holding_of=self._holding_of, room=self._room, below=self._below) is None
        for name, node in self._nodes.items():
            assert len(node.listed) * self._size == used[name]
            assert self._room[name] + used[name] == self._room_at_first >= used[name]
        assert self._running == sum(node.runs for node in self._nodes.values())
        assert all(self._nodes[name].runs for _, name in self._coming)

    def _forecast(self) -> Forecast:
        question = self._question
        all_s = question.years * YEAR_S / PERIODS * question.groups
        unwritable_s = [
            unreadable + silent * question.groups - both
            for unreadable, silent, both in zip(self._unreadable_s, self._silent_s, self._both_s, strict=True)
        ]
        return Forecast(
            question=question,
            unreadable=estimate([seconds / all_s for seconds in self._unreadable_s]),
            unwritable=estimate([seconds / all_s for seconds in unwritable_s]),
            lost=estimate([lost * YEAR_S / all_s for lost in self._lost]),
            incidents=self._incidents,
            outages=self._outages,
            disks=self._disks,
            racks=self._racks,
            copies_destroyed=self._destroyed,
            copies_made=self._made,
            restored_s=tuple(self._restored_s),
            events=self._events,
        )

    # --- what befalls nodes ---

    def _at(self, at: float, happen: Callable[[], None]) -> None:
        if math.isfinite(at):
            self._number += 1
            heappush(self._queue, (at, self._number, happen))

    def _draw(self, mean_s: float) -> float:
        return -mean_s * math.log(1.0 - self._chance.fraction()) if 0 < mean_s < math.inf else mean_s

    def _disk_will_die(self, node: _Node) -> None:
        disk = node.disk
        self._at(self._now + self._draw(self._question.disk_every_s), lambda: self._die(node) if node.disk == disk else None)

    def _will_fail(self, node: _Node) -> None:
        life = node.life

        def fail() -> None:
            if node.life == life:
                self._outages += 1
                self._go_away(node, self._draw(self._question.outage_s))

        self._at(self._now + self._draw(self._question.outage_every_s), fail)

    def _rack_will_fail(self, names: list[str]) -> None:
        def fail() -> None:
            self._racks += 1
            lasts_s = self._draw(self._question.rack_outage_s)
            for node in [self._nodes[name] for name in names]:
                if not node.dead and self._chance.happens(self._question.rack_kills):
                    self._die(node)
                elif node.runs:
                    self._go_away(node, lasts_s)
            self._rack_will_fail(names)

        self._at(self._now + self._draw(self._question.rack_every_s), fail)

    def _go_away(self, node: _Node, lasts_s: float) -> None:
        """The node is down, and comes back as it was."""
        self._put_down(node)
        life = node.life

        def answers() -> None:
            if node.life == life:
                was_lost = node.holding is Holding.LOST
                node.verifying = True
                self._judge(node)
                self._at(self._now + self._question.verified_in_s, lambda: self._come_back(node, was_lost) if node.life == life else None)

        self._at(self._now + lasts_s, answers)

    def _die(self, node: _Node) -> None:
        """All that the node has is gone."""
        self._disks += 1
        node.disk += 1
        node.dead = True
        if node.runs:
            self._put_down(node)
        else:
            node.life += 1
            node.verifying = False
            self._judge(node)
            self._will_be_lost(node)
        for number, durable in list(node.listed.items()):
            if durable:
                self._destroyed += 1
                self._groups[number].destroyed_at.append(self._now)
                if not any(copy.durable and not self._nodes[copy.node].dead for copy in self._groups[number].version.copies):
                    self._lose(number)
        self._at(self._now + self._draw(self._question.replaced_in_s), lambda: self._replace(node))

    def _put_down(self, node: _Node) -> None:
        """Nobody can read there any more, and the others soon notice."""
        settings = self._settings
        node.life += 1
        since = self._now + settings.heartbeats_missed_max * settings.heartbeat_interval_s
        node.server = attrs.evolve(node.server, status=Status.DOWN, since=since)
        self._judge(node)
        self._count_running(-1)
        broken_off = []
        for number, durable in node.listed.items():
            if durable:
                group = self._groups[number]
                group.readable -= 1
                if not group.readable:
                    self._unreadable_begins(number)
                elif group.waits:
                    heappush(self._waiting, (group.readable, number))
            else:
                self._coming.pop((number, node.name), None)
                broken_off.append(number)
        self._will_be_lost(node)
        for number in broken_off:
            self._settle(number)
        self._settle_waiting()

    def _judge(self, node: _Node) -> None:
        """What the copies there are worth from now on."""
        node.holding = holding(node.server, self._settings, self._now, [node.name] if node.verifying else ())

    def _will_be_lost(self, node: _Node) -> None:
        """Its copies are made anew when it has been away for too long."""
        life = node.life

        def look() -> None:
            if node.life == life and not node.verifying:
                self._judge(node)
                for number in node.listed:
                    group = self._groups[number]
                    group.waits = True
                    self._unsettled[number] = None
                    heappush(self._waiting, (group.readable, number))
                self._settle_waiting()

        self._at(max(self._now, node.server.since + self._settings.repair_after_s) + A_LOOK_S, look)

    def _come_back(self, node: _Node, was_lost: bool) -> None:
        """The node has been verified, and is running."""
        self._run_again(node)
        for number, durable in node.listed.items():
            if durable:
                group = self._groups[number]
                group.readable += 1
                if group.readable == 1:
                    self._unreadable_ends(number)
        self._settle_all([*(node.listed if was_lost else ()), *self._unsettled])

    def _replace(self, node: _Node) -> None:
        """An empty node has taken the place of one that was lost, and fetches what it should have."""
        node.dead = False
        self._run_again(node)
        self._disk_will_die(node)
        for number, durable in list(node.listed.items()):
            if durable:
                group = self._groups[number]
                copies = (attrs.evolve(copy, durable=copy.durable and copy.node != node.name) for copy in group.version.copies)
                group.version = attrs.evolve(group.version, copies=tuple(copies))
                node.listed[number] = False
        self._settle_all([*node.listed, *self._unsettled])

    def _run_again(self, node: _Node) -> None:
        node.life += 1
        node.server = attrs.evolve(node.server, status=Status.RUNNING, since=self._now)
        node.verifying = False
        self._judge(node)
        self._count_running(1)
        self._will_fail(node)

    # --- what becomes of groups ---

    def _version(self, copies: tuple[Copy, ...]) -> Version:
        return Version(
            number=1,
            attempt=AttemptId(bytes(16)),
            size=self._size,
            digest=b"",
            algorithm=DigestAlgorithm.SHA256,
            committed_at=0.0,
            committed_by="",
            copies=copies,
        )

    def _holding_of(self, name: str) -> Holding:
        return self._nodes[name].holding

    def _settle_all(self, numbers: list[int]) -> None:
        """The most endangered first, as the planner does."""
        for number in sorted(dict.fromkeys(numbers), key=lambda number: (self._groups[number].readable, number)):
            self._settle(number)

    def _settle(self, number: int) -> None:
        """Let the cluster's rule say where the copies of a group should be, and make those that are missing."""
        group = self._groups[number]
        group.waits = False
        if not group.version.copies:
            self._upload(number)
        if self._is_settled(group):
            self._unsettled.pop(number, None)
            return
        self._unsettled[number] = None
        wanted = self._settings.copies_wanted
        copies = plan(group.version, wanted, holding_of=self._holding_of, room=self._some_room(group), below=self._below)
        if copies is not None:
            listed = {copy.node for copy in group.version.copies}
            if any(copy.node not in listed for copy in copies) and len(self._coming) >= self._coming_max:
                group.waits = True
                heappush(self._waiting, (group.readable, number))
            else:
                self._list(number, copies)
        if group.readable:
            for copy in group.version.copies:
                if not copy.durable and self._nodes[copy.node].runs and (number, copy.node) not in self._coming:
                    self._fetch(number, self._nodes[copy.node])

    def _some_room(self, group: _Group) -> dict[str, int]:
        """Where copies may go: with many nodes some of them, drawn by chance, from which the rule draws as evenly as from all."""
        wanted = self._settings.copies_wanted
        if len(self._names) > 8 * wanted:
            some = [self._names[self._below(len(self._names))] for _ in range(3 * wanted)]
            listed = [copy.node for copy in group.version.copies]
            room = {
                name: self._room[name]
                for name in some
                if name not in listed and self._nodes[name].holding is Holding.GOOD and self._room[name] >= self._size
            }
            if len(room) >= wanted:
                return room
        return self._room

    def _is_settled(self, group: _Group) -> bool:
        """Whether `plan` would change nothing for sure, without asking it: so it is nearly always."""
        copies = group.version.copies
        return len(copies) == self._settings.copies_wanted and all(
            copy.durable and self._nodes[copy.node].holding in (Holding.GOOD, Holding.AWAY) for copy in copies
        )

    def _settle_waiting(self) -> None:
        while self._waiting and len(self._coming) < self._coming_max:
            _, number = heappop(self._waiting)
            if self._groups[number].waits:
                self._settle(number)

    def _upload(self, number: int) -> None:
        """A new group, on as many running nodes as there are."""
        room = {name: room for name, room in self._room.items() if self._nodes[name].holding is Holding.GOOD}
        chosen = place(self._settings.copies_wanted, room=room, size=self._size, preferred=(), below=self._below)
        self._list(number, tuple(Copy(node=name, priority=priority, durable=True) for priority, name in enumerate(chosen)))

    def _list(self, number: int, copies: tuple[Copy, ...]) -> None:
        """The catalogue lists these copies from now on."""
        group = self._groups[number]
        after = {copy.node: copy.durable for copy in copies}
        for name in [copy.node for copy in group.version.copies if copy.node not in after]:
            node = self._nodes[name]
            self._room[name] += self._size
            self._coming.pop((number, name), None)
            if node.listed.pop(number) and node.runs:
                group.readable -= 1
        for name, durable in after.items():
            node = self._nodes[name]
            before = node.listed.get(number)
            if before is None:
                self._room[name] -= self._size
            node.listed[number] = durable
            if durable and not before and node.runs:
                group.readable += 1
        group.version = attrs.evolve(group.version, copies=copies)
        if group.readable and group.unreadable_since is not None:
            self._unreadable_ends(number)

    def _fetch(self, number: int, node: _Node) -> None:
        """A copy is on its way, as fast as the budget of its node and the planner's rounds let it."""
        question, token = self._question, object()
        self._coming[number, node.name] = token
        rate = self._settings.repair_bytes_s
        fetched_s = node.pace.take(self._now, self._size, rate) if rate else 0.0
        planned_s = self._planner.take(self._now, math.ceil(self._files_a_group), question.coming_max / question.round_s)

        def arrive() -> None:
            if self._coming.get((number, node.name)) is not token:
                return
            del self._coming[number, node.name]
            group = self._groups[number]
            # Without a source it stays pending until there is one again.
            if group.readable:
                self._made += 1
                if group.destroyed_at:
                    self._restored_s.append(self._now - group.destroyed_at.pop(0))
                self._list(
                    number, tuple(attrs.evolve(copy, durable=copy.durable or copy.node == node.name) for copy in group.version.copies)
                )
                self._settle(number)
            self._settle_waiting()

        self._at(self._now + max(fetched_s, planned_s), arrive)

    def _lose(self, number: int) -> None:
        """The last copy is gone; people write another file."""
        self._lost[self._period] += 1
        self._incidents += self._lost_at != self._now
        self._lost_at = self._now
        group = self._groups[number]
        self._list(number, ())
        group.destroyed_at.clear()
        if group.unreadable_since is None:
            self._unreadable_begins(number)
        self._settle(number)

    # --- what people notice ---

    @property
    def _period(self) -> int:
        return min(PERIODS - 1, int(self._now * PERIODS / (self._question.years * YEAR_S)))

    def _can_write(self, running: int) -> bool:
        """Whether a commit finds enough nodes for its copies, and can be answered, while so many nodes are running."""
        names, settings = self._names, self._settings
        known = names[:running]
        return running >= settings.copies_needed and spread_enough(
            known, known, names, waited_s=0.0, interval_s=settings.heartbeat_interval_s
        )

    def _count_running(self, more: int) -> None:
        self._note_silence()
        self._running += more
        self._silence.turn(self._now, not self._writes[self._running])

    def _note_silence(self) -> None:
        until_now = self._silence.until(self._now)
        self._silent_s[self._period] += until_now - self._silent_until_now
        self._silent_until_now = until_now

    def _unreadable_begins(self, number: int) -> None:
        self._groups[number].unreadable_since = self._now
        self._silent_at_group[number] = self._silence.until(self._now)

    def _unreadable_ends(self, number: int) -> None:
        self._note_unreadable(number)
        self._groups[number].unreadable_since = None

    def _note_unreadable(self, number: int) -> None:
        group = self._groups[number]
        assert group.unreadable_since is not None
        self._unreadable_s[self._period] += self._now - group.unreadable_since
        self._both_s[self._period] += self._silence.until(self._now) - self._silent_at_group[number]


def forecast(question: Question) -> Forecast:
    """The answer: the same to the same question."""
    return Planning(question).run()
