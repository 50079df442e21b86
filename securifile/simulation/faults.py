"""What befalls a cluster in a run: faults that begin at random, last a while, and end.

Each is written down when it begins and when it ends, and with every change who can reach whom is noted: the judges want to
know which node was cut off, and since when.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from securifile.model.ids import AttemptId
from securifile.node.pack_format import decode_places
from securifile.node.sidecars import DamagedSidecar
from securifile.simulation.chance import Chance
from securifile.simulation.cluster import DATA, SimulatedCluster
from securifile.simulation.history import Reach

BLOBS = f"{DATA}/blobs/"

TOLD = 0.7
"""How often a sentinel survives the process that it watches."""
TOLD_WITHIN_S = (0.05, 0.05, 3.0)
"""How long it takes at most to say so: usually nothing, sometimes so long that the next process is there."""

Ending = Callable[[], None]
Fault = tuple[str, Ending]
"""What it is, for people, and what ends it."""


@attrs.frozen(kw_only=True)
class Climate:
    """Which faults there are in a run, and how many."""

    pause_s: float = 4.0
    """At most between two faults' beginnings."""
    lasts_s: float = 6.0
    """At most."""
    least_s: float = 0.05
    weights: tuple[tuple[str, int], ...] = (
        ("crash", 6),
        ("power", 4),
        ("power-all", 1),
        ("stop", 6),
        ("isolate", 5),
        ("cut", 4),
        ("one-way", 4),
        ("slow-link", 3),
        ("lossy-link", 3),
        ("break", 8),
        ("slow-disk", 2),
        ("full-disk", 2),
        ("database-away", 2),
        ("lost-answers", 3),
        ("admin-crash", 3),
        ("admin-stop", 2),
        ("wall", 2),
        ("rot", 3),
        ("lost-disk", 1),
        ("offline", 1),
        ("drain", 1),
        ("replicas", 1),
    )


CALM = Climate(weights=())


def blobs_among(tree: Mapping[str, bytes]) -> dict[str, tuple[str, int, bytes]]:
    """The blobs among the files of a disk, by attempt: in which file they are, from where on, and their bytes."""
    found: dict[str, tuple[str, int, bytes]] = {}
    for path, data in tree.items():
        attempt, _, kind = path.rpartition("/")[2].partition(".")
        if not path.startswith(BLOBS) or kind == "meta":
            continue
        if kind == "pack":
            with suppress(DamagedSidecar):  # on a disk that lies
                place = decode_places(data)[AttemptId.parse(attempt)]
                found[attempt] = path, place.start, data[place.start : place.start + place.size]
        else:
            found[attempt] = path, 0, data
    return found


class Storm:
    """Makes faults in a cluster."""

    def __init__(self, cluster: SimulatedCluster, chance: Chance, climate: Climate, say: Callable[[str], None]) -> None:
        """Args:
        say: takes a line of the history.
        """
        self.stopped = False
        self.counts: dict[str, int] = {}
        """How many there were, by kind."""
        self.reach: list[Reach] = []
        """Who could send to whom, at the beginning and after each fault's beginning and end."""
        self.rotten: dict[str, str] = {}
        """Attempts of which one copy has rotted, and on which node."""
        self.lost_disks: list[str] = []
        """The node that lost its disk. One at most: a write is answered when two copies are durable."""
        self.rotting: set[AttemptId] = set()
        """Those that rotted while their node's process lived, or were read in part only: it may have been verified before."""
        self.commands: list[Deferred[None]] = []
        """What operators began."""
        self._cluster = cluster
        self._chance = chance
        self._climate = climate
        self._say = say
        self._endings: dict[int, Fault] = {}
        self._number = 0
        self._kinds = [kind for kind, weight in climate.weights for _ in range(weight)]

    async def rage(self) -> None:
        """Make faults until `stopped`."""
        while not self.stopped and self._kinds:
            await deferLater(self._cluster.time, self._chance.between(0.0, self._climate.pause_s))
            if not self.stopped:
                self.begin(self._chance.pick(self._kinds), self._chance.between(self._climate.least_s, self._climate.lasts_s))

    def begin(self, kind: str, lasts_s: float, target: str | None = None) -> None:
        """One fault, now, if it can be; it ends by itself."""
        made = self._make(kind, target)
        if made is None:
            return
        what, ending = made
        self._number += 1
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self._say(f"fault {self._number} begins: {kind} {what}".rstrip())
        self._endings[self._number] = (kind, ending)
        self._cluster.time.callLater(lasts_s, self._end, self._number)
        self.note_reach()

    def end_all(self) -> None:
        """No fault any more."""
        self.stopped = True
        for number in list(self._endings):
            self._end(number)

    def _end(self, number: int) -> None:
        kind, ending = self._endings.pop(number, ("", None))
        if ending is not None:
            ending()
            self._say(f"fault {number} ends: {kind}")
            self.note_reach()

    # --- kinds ---

    def _make(self, kind: str, target: str | None) -> Fault | None:
        node = target or self._chance.pick(self._cluster.nodes)
        admin = target or self._chance.pick(self._cluster.admins)
        makers: dict[str, Callable[[], Fault | None]] = {
            "crash": lambda: self._kill(node, power=False, told=self._chance.happens(TOLD)),
            "power": lambda: self._kill(node, power=True),
            "power-all": self._kill_all,
            "admin-crash": lambda: self._kill(admin, power=self._chance.happens(0.3)),
            "stop": lambda: self._stop(node),
            "admin-stop": lambda: self._stop(admin),
            # From all servers, not from people.
            "isolate": lambda: self._cut([(node, other) for other in self._servers if other != node]),
            "cut": lambda: self._cut([self._two()]),
            "one-way": self._cut_one_way,
            "lossy-link": self._lose_on_link,
            "slow-link": self._slow_link,
            "break": self._break_connections,
            "slow-disk": lambda: self._slow_disk(node),
            "full-disk": lambda: self._fill(node),
            "database-away": self._take_database_away,
            "lost-answers": self._lose_answers,
            "rot": lambda: self._rot(node),
            "lost-disk": lambda: self._lose_disk(node),
            "offline": lambda: self._order(node, lambda begins: self._cluster.set_offline(node, begins)),
            "drain": lambda: self._order(node, lambda begins: self._cluster.drain(node, begins)),
            "replicas": self._change_replicas,
            "wall": self._set_wall,
        }
        return makers[kind]()

    @property
    def _servers(self) -> list[str]:
        return [*self._cluster.nodes, *self._cluster.admins]

    def _two(self) -> tuple[str, str]:
        """Two servers."""
        one, other = self._chance.shuffled(self._servers)[:2]
        return one, other

    # --- processes ---

    def _kill(self, name: str, *, power: bool, told: bool = False) -> Fault | None:
        cluster = self._cluster
        if cluster.machines[name].life is None:
            return None
        if told:
            cluster.tell_end(name, self._chance.between(0.005, self._chance.pick(TOLD_WITHIN_S)))
        if power:
            cluster.cut_power(name)
        else:
            cluster.crash(name)
        return f"{name}{' power' if power else ''}{' told' if told else ''}", lambda: self._start([name])

    def _kill_all(self) -> Fault | None:
        names = [name for name, machine in self._cluster.machines.items() if machine.life is not None]
        for name in names:
            self._cluster.cut_power(name)
        return " ".join(names), lambda: self._start(names)

    def _start(self, names: list[str]) -> None:
        for name in names:
            if self._cluster.machines[name].life is None:
                self._cluster.start(name)

    def _stop(self, name: str) -> Fault | None:
        cluster = self._cluster
        machine = cluster.machines[name]
        life = machine.life
        if life is None or machine.paused:
            return None
        cluster.pause(name)
        return name, lambda: cluster.resume(name) if machine.life is life and machine.paused else None

    # --- the network ---

    def _cut(self, pairs: list[tuple[str, str]]) -> Fault:
        return self._block([way for one, other in pairs for way in ((one, other), (other, one))])

    def _block(self, ways: list[tuple[str, str]]) -> Fault:
        network = self._cluster.network
        # What another fault has cut already is not this one's to heal.
        own = [way for way in ways if not network.is_blocked(*way)]
        for way in own:
            network.block(*way)

        def heal() -> None:
            for way in own:
                network.unblock(*way)

        return " ".join(f"{source}-{target}" for source, target in own), heal

    def _cut_one_way(self) -> Fault:
        some = self._chance.shuffled(self._servers)
        source, targets = some[0], some[1 : 2 + self._chance.below(len(some) - 1)]
        if self._chance.happens(0.5):
            return self._block([(source, one) for one in targets])
        return self._block([(one, source) for one in targets])

    def _lose_on_link(self) -> Fault:
        (one, other), network = self._two(), self._cluster.network
        share = self._chance.between(0.01, 0.5)
        network.lose(one, other, share)
        return f"{one} {other} {share:.2f}", lambda: network.lose(one, other, 0.0)

    def _slow_link(self) -> Fault:
        (one, other), network = self._two(), self._cluster.network
        factor = self._chance.between(10.0, 1000.0)
        network.slow(one, other, factor)
        return f"{one} {other} {factor:.0f} times", lambda: network.slow(one, other, 1.0)

    def _break_connections(self) -> Fault | None:
        one, other = self._two()
        broken = self._cluster.network.break_one(one, other)
        return (f"{one} {other}", lambda: None) if broken else None

    # --- disks ---

    def _rot(self, name: str) -> Fault | None:
        """One byte of one blob is another one. Never in two copies of the same blob: then nobody could help."""
        if self.lost_disks:
            return None
        files = self._cluster.machines[name].files
        blobs = [(attempt, *found) for attempt, found in blobs_among(files.tree()).items() if found[2] and attempt not in self.rotten]
        if not blobs:
            return None
        attempt, path, start, data = self._chance.pick(blobs)
        self.rotten[attempt] = name
        if self._cluster.machines[name].life is not None or self._cluster.settings.verification_budget_s == 0:
            self.rotting.add(AttemptId(bytes.fromhex(attempt)))
        files.rot(path, start + self._chance.below(len(data)))
        return f"{name} {path}", lambda: None

    def _lose_disk(self, name: str) -> Fault | None:
        """The machine breaks, and is mended with an empty disk."""
        if self.lost_disks or self.rotten or self._cluster.settings.copies_needed < 2:
            return None
        if self._cluster.machines[name].life is not None:
            self._cluster.cut_power(name)
        self.lost_disks.append(name)
        self._cluster.lose_disk(name)
        return name, lambda: self._start([name])

    def _slow_disk(self, name: str) -> Fault:
        machine, factor = self._cluster.machines[name], self._chance.between(10.0, 500.0)
        machine.slowness = factor
        return f"{name} {factor:.0f} times", lambda: setattr(machine, "slowness", 1.0)

    def _fill(self, name: str) -> Fault:
        files = self._cluster.machines[name].files
        taken = max(0, files.room - self._chance.below(20_000))
        files.room -= taken

        def empty() -> None:
            files.room += taken

        return name, empty

    # --- the database, and clocks ---

    def _take_database_away(self) -> Fault:
        database = self._cluster.database
        database.available = False
        return "", lambda: setattr(database, "available", True)

    def _lose_answers(self) -> Fault:
        database = self._cluster.database
        database.lost_answers = self._chance.between(0.05, 0.5)
        return f"{database.lost_answers:.2f}", lambda: setattr(database, "lost_answers", 0.0)

    def _set_wall(self) -> Fault:
        server = self._chance.pick(self._servers)
        ahead_s = self._chance.between(-3600.0, 3600.0)
        self._cluster.set_wall(server, ahead_s)
        return f"{server} {ahead_s:+.0f} s", lambda: self._cluster.set_wall(server, 0.0)

    # --- operators ---

    def _change_replicas(self) -> Fault:
        usual, nodes = self._cluster.settings.replicas, len(self._cluster.nodes)
        other = self._chance.pick([r for r in (usual - 1, usual + 1) if 1 <= r < nodes] or [usual])
        return self._order(f"{other}", lambda begins: self._cluster.change_settings(replicas=other if begins else usual))

    def _order(self, what: str, order: Callable[[bool], Awaitable[bool]]) -> Fault:
        """What an operator orders, and takes back: one after the other, however long each takes."""

        async def obey(begins: bool, before: Deferred[None] | None) -> None:
            if before is not None:
                await before
            await order(begins)

        begun: Deferred[None] = Deferred.fromCoroutine(obey(True, None))
        ended: Deferred[None] = Deferred()
        self.commands += [begun, ended]

        def end() -> None:
            Deferred.fromCoroutine(obey(False, begun)).chainDeferred(ended)

        return what, end

    # --- who reaches whom ---

    def note_reach(self) -> None:
        """Write it down after a change."""
        cluster = self._cluster
        up = [name for name, machine in cluster.machines.items() if machine.life is not None and not machine.paused]
        ways = frozenset((one, other) for one in up for other in up if one != other and not cluster.network.is_cut(one, other))
        self.reach.append(Reach(at=cluster.time.now, ways=ways, nodes=frozenset(cluster.nodes), admins=frozenset(cluster.admins)))
