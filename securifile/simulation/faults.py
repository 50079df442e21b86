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
        self._endings: dict[int, tuple[str, Ending]] = {}
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

    def _make(self, kind: str, target: str | None) -> tuple[str, Ending] | None:
        cluster, chance = self._cluster, self._chance
        servers = [*cluster.nodes, *cluster.admins]
        node = target or chance.pick(cluster.nodes)
        admin = target or chance.pick(cluster.admins)
        match kind:
            case "crash":
                return self._kill(node, power=False, told=chance.happens(TOLD))
            case "power":
                return self._kill(node, power=True)
            case "power-all":
                return self._kill_all()
            case "admin-crash":
                return self._kill(admin, power=chance.happens(0.3))
            case "stop":
                return self._stop(node)
            case "admin-stop":
                return self._stop(admin)
            case "isolate":
                # From all servers, not from people.
                return self._cut([(node, other) for other in servers if other != node])
            case "cut":
                one, other = chance.shuffled(servers)[:2]
                return self._cut([(one, other)])
            case "one-way":
                some = chance.shuffled(servers)
                source, targets = some[0], some[1 : 2 + chance.below(len(some) - 1)]
                if chance.happens(0.5):
                    return self._block([(source, one) for one in targets])
                return self._block([(one, source) for one in targets])
            case "lossy-link":
                one, other = chance.shuffled(servers)[:2]
                share = chance.between(0.01, 0.5)
                cluster.network.lose(one, other, share)
                return f"{one} {other} {share:.2f}", lambda: cluster.network.lose(one, other, 0.0)
            case "slow-link":
                one, other = chance.shuffled(servers)[:2]
                factor = chance.between(10.0, 1000.0)
                cluster.network.slow(one, other, factor)
                return f"{one} {other} {factor:.0f} times", lambda: cluster.network.slow(one, other, 1.0)
            case "break":
                one, other = chance.shuffled(servers)[:2]
                broken = cluster.network.break_one(one, other)
                return (f"{one} {other}", lambda: None) if broken else None
            case "slow-disk":
                factor = chance.between(10.0, 500.0)
                cluster.machines[node].slowness = factor
                return f"{node} {factor:.0f} times", lambda: setattr(cluster.machines[node], "slowness", 1.0)
            case "full-disk":
                return self._fill(node)
            case "database-away":
                cluster.database.available = False
                return "", lambda: setattr(cluster.database, "available", True)
            case "lost-answers":
                cluster.database.lost_answers = chance.between(0.05, 0.5)
                return f"{cluster.database.lost_answers:.2f}", lambda: setattr(cluster.database, "lost_answers", 0.0)
            case "rot":
                return self._rot(node)
            case "lost-disk":
                return self._lose_disk(node)
            case "offline":
                return self._order(node, lambda begins: cluster.set_offline(node, begins))
            case "drain":
                return self._order(node, lambda begins: cluster.drain(node, begins))
            case "replicas":
                usual = cluster.settings.replicas
                other_r = chance.pick([r for r in (usual - 1, usual + 1) if 1 <= r < len(cluster.nodes)] or [usual])
                return self._order(f"{other_r}", lambda begins: cluster.change_settings(replicas=other_r if begins else usual))
            case "wall":
                server = chance.pick(servers)
                ahead_s = chance.between(-3600.0, 3600.0)
                cluster.set_wall(server, ahead_s)
                return f"{server} {ahead_s:+.0f} s", lambda: cluster.set_wall(server, 0.0)
            case _:
                raise AssertionError(kind)

    def _kill(self, name: str, *, power: bool, told: bool = False) -> tuple[str, Ending] | None:
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

    def _kill_all(self) -> tuple[str, Ending] | None:
        names = [name for name, machine in self._cluster.machines.items() if machine.life is not None]
        for name in names:
            self._cluster.cut_power(name)
        return " ".join(names), lambda: self._start(names)

    def _start(self, names: list[str]) -> None:
        for name in names:
            if self._cluster.machines[name].life is None:
                self._cluster.start(name)

    def _stop(self, name: str) -> tuple[str, Ending] | None:
        cluster = self._cluster
        machine = cluster.machines[name]
        life = machine.life
        if life is None or machine.paused:
            return None
        cluster.pause(name)
        return name, lambda: cluster.resume(name) if machine.life is life and machine.paused else None

    def _cut(self, pairs: list[tuple[str, str]]) -> tuple[str, Ending]:
        return self._block([way for one, other in pairs for way in ((one, other), (other, one))])

    def _block(self, ways: list[tuple[str, str]]) -> tuple[str, Ending]:
        network = self._cluster.network
        # What another fault has cut already is not this one's to heal.
        own = [way for way in ways if not network.is_blocked(*way)]
        for way in own:
            network.block(*way)

        def heal() -> None:
            for way in own:
                network.unblock(*way)

        return " ".join(f"{source}-{target}" for source, target in own), heal

    def _rot(self, name: str) -> tuple[str, Ending] | None:
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

    def _lose_disk(self, name: str) -> tuple[str, Ending] | None:
        """The machine breaks, and is mended with an empty disk."""
        if self.lost_disks or self.rotten or self._cluster.settings.copies_needed < 2:
            return None
        if self._cluster.machines[name].life is not None:
            self._cluster.cut_power(name)
        self.lost_disks.append(name)
        self._cluster.lose_disk(name)
        return name, lambda: self._start([name])

    def _order(self, what: str, order: Callable[[bool], Awaitable[bool]]) -> tuple[str, Ending]:
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

    def _fill(self, name: str) -> tuple[str, Ending]:
        files = self._cluster.machines[name].files
        taken = max(0, files.room - self._chance.below(20_000))
        files.room -= taken

        def empty() -> None:
            files.room += taken

        return name, empty

    # --- who reaches whom ---

    def note_reach(self) -> None:
        """Write it down after a change."""
        cluster = self._cluster
        up = [name for name, machine in cluster.machines.items() if machine.life is not None and not machine.paused]
        ways = frozenset((one, other) for one in up for other in up if one != other and not cluster.network.is_cut(one, other))
        self.reach.append(Reach(at=cluster.time.now, ways=ways, nodes=frozenset(cluster.nodes), admins=frozenset(cluster.admins)))
