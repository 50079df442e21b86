"""One run: a cluster, its people, its weather, and the judgement. The same seed gives the same history, byte for byte."""

from __future__ import annotations

import gc
import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from securifile.model.entries import Version
from securifile.model.facts import Change, File, Server
from securifile.model.servers import Status
from securifile.model.settings import ClusterSettings
from securifile.simulation.cluster import Parts, SimulatedCluster
from securifile.simulation.faults import CALM, Climate, Storm, blobs_among
from securifile.simulation.history import Kind, Operation, Outcome
from securifile.simulation.invariants import Judge, Violation
from securifile.simulation.people import Habits, Person
from securifile.sql import directory

SETTLING_S = 2.0

RECORDED = {
    Kind.READ: "read",
    Kind.WRITE: "write",
    Kind.DELETE: "delete",
    Kind.MOVE: "move",
    Kind.GRANT: "grant",
    Kind.REVOKE: "revoke",
}
"""How the audit trail calls what people do."""

OF_THE_BURIED = frozenset({"coroutine ignored GeneratorExit", "cannot reuse already awaited coroutine", "coroutine already executing"})
"""What Python says when it collects coroutines of processes that died in an earlier run, which a log's history may keep for long."""

OPERATOR_ROUNDS = 5
"""How often the operator looks after the nodes that failed, before it is held for a bug."""

RECOVERY_S = 120.0
"""Within which a cluster without faults runs again, and every wish has ended."""

SETTLES_S = 60.0
"""Within which each file has the right number of copies again, where nothing waits for a grace time."""

DURABLE = "what was acknowledged is durable"

NAMES = ("ann", "bob", "cleo", "dan", "eve", "fay", "gus", "hal")


@attrs.frozen(kw_only=True)
class Scene:
    """What a run is about."""

    seed: int
    nodes: int = 3
    admins: int = 1
    replicas: int | None = None
    """None: what the settings say, or as many as there are other nodes."""
    people: int = 3
    devices: int = 1
    """At how many computers each is at once."""
    seconds: float = 30.0
    """Of weather; before it the cluster begins, after it it recovers."""
    climate: Climate = CALM
    habits: Habits = attrs.field(factory=Habits)
    settings: ClusterSettings = attrs.field(factory=ClusterSettings)
    parts: Parts = attrs.field(factory=Parts)


@attrs.frozen(kw_only=True)
class Report:
    """What a run came to."""

    scene: Scene
    lines: tuple[str, ...]
    """The history, in order of time."""
    operations: tuple[Operation, ...]
    violations: tuple[Violation, ...]
    faults: dict[str, int]
    repaired: int
    """Nodes that failed and waited for the operator."""
    seconds: float
    """Virtual, from beginning to end."""
    events: int

    @property
    def digest(self) -> str:
        """Of the whole history: equal for equal runs."""
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()

    @property
    def summary(self) -> str:
        """A few lines for people."""
        counts: dict[str, int] = {}
        for operation in self.operations:
            key = f"{operation.kind} {operation.outcome}"
            counts[key] = counts.get(key, 0) + 1
        lines = [
            f"seed {self.scene.seed}: {self.scene.nodes} nodes, {self.scene.people} people,"
            f" {self.seconds:.1f} virtual seconds, {self.events} events",
            "operations: " + ", ".join(f"{count} {key}" for key, count in sorted(counts.items())),
            "faults: "
            + (", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items())) or "none")
            + f"; {self.repaired} nodes repaired by the operator",
            f"history: sha256 {self.digest}",
            f"violations: {len(self.violations)}",
        ]
        return "\n".join([*lines, *(violation.text for violation in self.violations)])


class Run:
    """A run under way."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        settings = scene.settings
        replicas = min(settings.replicas if scene.replicas is None else scene.replicas, scene.nodes - 1)
        self.cluster = SimulatedCluster(
            scene.seed, nodes=scene.nodes, admins=scene.admins, settings=attrs.evolve(settings, replicas=replicas), parts=scene.parts
        )
        self.operations: list[Operation] = []
        self._said: list[tuple[float, str]] = []
        self._names = NAMES[: scene.people]
        chance = self.cluster.chance
        self.people = [
            Person(name, host, self._names, self.cluster, chance.stream(f"person at {host}"), scene.habits, self._note)
            for device in range(1, scene.devices + 1)
            for name in self._names
            for host in (f"{name}-{device}",)
        ]
        self.storm = Storm(self.cluster, chance.stream("storm"), scene.climate, self._say)
        self._found: list[Violation] = []
        self.repaired = 0
        """How many nodes the operator had to repair."""
        self._statuses: dict[str, Status] = {}
        self.cluster.database.watcher = self._committed
        self._lives: list[Deferred[None]] = []
        self._logged: list[str] = []
        self.tracebacks: list[str] = []
        """Of the first surprises."""

    def _note(self, operation: Operation) -> int:
        self.operations.append(operation)
        return len(self.operations)

    def _say(self, line: str) -> None:
        self._said.append((self.cluster.time.now, line))

    def _accuse(self, guarantee: str, detail: str) -> None:
        self._found.append(Violation(guarantee=guarantee, detail=detail))

    def go(self) -> Report:
        """From beginning to judgement."""
        self.begin()
        try:
            self._go()
        finally:
            globalLogPublisher.removeObserver(cast(ILogObserver, self._hear))
        return self._end()

    def begin(self) -> None:
        """The cluster runs, and everybody has signed in. Whoever calls this, and not `go`, tells the story, and calls `finish`."""
        globalLogPublisher.addObserver(cast(ILogObserver, self._hear))
        self.cluster.begin(self._names)
        self._say("the cluster runs")
        self.storm.note_reach()
        self.cluster.wait(self._prepare())

    def start(self, wish: Callable[[], Any]) -> None:
        """Somebody begins something, and nobody waits for it before the end."""
        self._lives.append(self._live(wish))

    def finish(self) -> Report:
        """All faults end, everything is looked at, and it is judged."""
        try:
            self._recover_and_look()
        finally:
            globalLogPublisher.removeObserver(cast(ILogObserver, self._hear))
        return self._end()

    def _end(self) -> Report:
        report = self._report()
        self.cluster.bury()
        return report

    def _go(self) -> None:
        for person in self.people:
            self.start(person.live)
        self.start(self.storm.rage)
        self.cluster.run(self.scene.seconds)
        self._recover_and_look()

    def _recover_and_look(self) -> None:
        cluster = self.cluster
        self.storm.end_all()
        for person in self.people:
            person.stopped = True
        for name, machine in cluster.machines.items():
            if machine.life is None:
                cluster.start(name)
        self._say("all faults have ended")
        waiting = [*self._lives, *(command.addErrback(cluster.failures.append) for command in self.storm.commands)]
        if not self._recovers(lambda: all(one.called for one in waiting)):
            self._accuse("the cluster recovers", f"after {RECOVERY_S} s: " + ", ".join(self._reasons()))
            return
        self._say("the cluster runs again")
        # Clocks that were wrong until now are right for everybody after the next heartbeats.
        cluster.run(SETTLING_S)
        cluster.wait(self._look_at_everything(), RECOVERY_S * 10)
        if not cluster.run(SETTLES_S, lambda: self._unsettled() is None):
            self._accuse("the right number of copies comes back", self._unsettled() or "")
        self._check_copies()
        self._check_audit()

    def _recovers(self, is_over: Callable[[], bool]) -> bool:
        """Whether everything runs again by itself; but nodes that are held for failed wait for the operator, as they should."""
        cluster = self.cluster
        for _ in range(OPERATOR_ROUNDS):
            if cluster.run(RECOVERY_S, lambda: is_over() and (cluster.all_run or bool(self._failed()))):
                failed = self._failed()
                if not failed:
                    return True
                for name in failed:
                    self._say(f"the operator repairs {name}")
                    self.repaired += 1
                    cluster.wait(cluster.operate(name), RECOVERY_S)
        return False

    def _failed(self) -> list[str]:
        return [name for name, server in self.cluster.roster.items() if server.status is Status.FAILED]

    def _live(self, work: Callable[[], Any]) -> Deferred[None]:
        living: Deferred[None] = Deferred.fromCoroutine(work())
        living.addErrback(self.cluster.failures.append)
        return living

    async def _prepare(self) -> None:
        for person in self.people:
            while not await person.sign_in():
                pass
        for person in self.people[: self.scene.people]:
            for folder in self.scene.habits.folders:
                if folder:
                    await person.make_folder(f"{person.name}/{folder}", self.cluster.nodes[0])

    def _reasons(self) -> list[str]:
        return [
            f"{name}: {node.cluster.admission.standing().reason}"
            if (node := self.cluster.node(name)) is not None
            else f"{name} has not started"
            for name in self.cluster.nodes
        ]

    async def _look_at_everything(self) -> None:
        """Each file there is, read by its owner through each node: it must be there, whole and new."""
        truth = self._judge().truth
        owners = {person.name: person for person in self.people}
        for path, _ in truth.files:
            owner = owners[path.split("/", 1)[0]]
            if not await owner.sign_in():
                self._accuse("the cluster recovers", f"{owner.name} cannot sign in")
                return
            for node in self.cluster.nodes:
                operation = await owner.read(path, node)
                if operation.outcome is not Outcome.DONE:
                    detail = f"{path} cannot be read at the end"
                    self._found.append(Violation(guarantee=DURABLE, detail=detail, operation=operation))

    def _check_copies(self) -> None:
        """Each copy that the catalogue calls durable is on that node's disk, whole, if it did not rot there."""
        trees = {name: self.cluster.machines[name].files.tree() for name in self.cluster.nodes}
        for file in self._catalogued():
            for copy in file.version.copies:
                if copy.durable and copy.node in trees and self.storm.rotten.get(str(file.version.attempt)) != copy.node:
                    what = _what_is_wrong(trees[copy.node], file.version)
                    if what is not None:
                        told = f"{file.id} ({file.name}) version {file.version.number}: the copy on {copy.node} is {what}"
                        self._accuse(DURABLE, told)

    def _catalogued(self) -> list[File]:
        """Every file there is, as the catalogue has it now."""
        return self.cluster.database.ask_now(_files)

    def _unsettled(self) -> str | None:
        """A file without the right number of copies; None when there is none."""
        cluster = self.cluster
        running = {name for name, server in cluster.roster.items() if server.status is Status.RUNNING}
        wanted = min(cluster.settings.copies_wanted, len(running))
        for file in self._catalogued():
            durable = [copy.node for copy in file.version.copies if copy.durable]
            if len(file.version.copies) != wanted or len(durable) != wanted or not running.issuperset(durable):
                copies = ", ".join(f"{copy.node}{'' if copy.durable else ' (pending)'}" for copy in file.version.copies)
                return f"{file.id} ({file.name}) version {file.version.number} has {copies or 'no copy'} where {wanted} are wanted"
        return None

    def _committed(self, change: Change) -> None:
        """What has to be true at the instant at which the catalogue admits a node."""
        for fact in change.facts:
            if isinstance(fact, Server):
                if fact.status is Status.RUNNING and self._statuses.get(fact.name, Status.RUNNING) is not Status.RUNNING:
                    self._check_admitted(fact.name)
                self._statuses[fact.name] = fact.status

    def _check_admitted(self, name: str) -> None:
        """A node that is admitted has what it should have; what rots while it is verified it need not know.

        Nor what a catalogue that has gone back in time takes for the present.
        """
        if not self.cluster.database.reconciled:
            return
        tree = self.cluster.machines[name].files.tree()
        for file in self._catalogued():
            if any(copy.node == name and copy.durable for copy in file.version.copies) and file.version.attempt not in self.storm.rotting:
                what = _what_is_wrong(tree, file.version)
                if what is not None:
                    told = f"{name} was admitted, and its copy of {file.id} version {file.version.number} is {what}"
                    self._accuse("who is admitted has what it should have", told)

    def _check_audit(self) -> None:
        """Every change that was answered 2xx was written down once, before its answer; no access is written down twice.

        The records of one person's deeds of one kind are counted: all that were answered, at most those that may have been done.
        """
        records: Counter[tuple[str, str]] = Counter()
        for machine in self.cluster.machines.values():
            for record in machine.audit:
                if record.person is not None and record.status is not None and 200 <= record.status < 300:
                    records[record.person, record.event] += 1
        done: Counter[tuple[str, str]] = Counter()
        perhaps: Counter[tuple[str, str]] = Counter()
        for operation in self.operations:
            key = operation.person, RECORDED.get(operation.kind, "")
            done[key] += operation.outcome is Outcome.DONE
            perhaps[key] += operation.outcome is not Outcome.REFUSED
        for key in sorted(done):
            person, event = key
            # Reads are noted within a tenth of a second, and may be lost with the process.
            if event and not (done[key] if event != "read" else 0) <= records[key] <= perhaps[key]:
                told = (
                    f"{records[key]} records of {event} by {person}, where {done[key]} were answered and {perhaps[key]} may have been done"
                )
                self._accuse("every access is recorded once", told)

    def _judge(self) -> Judge:
        return Judge(self.operations, self.cluster.database.changes(), self.cluster.database.committed, self.storm.reach)

    def _hear(self, event: LogEvent) -> None:
        failure = event.get("log_failure")
        if not isinstance(failure, Failure) or failure.getErrorMessage() in OF_THE_BURIED:
            return
        if str(event.get("log_namespace", "")).startswith("securifile"):
            self._logged.append(f"{event.get('log_format')}: {failure.getErrorMessage()!r}")
            if len(self._logged) < 4:
                self.tracebacks.append(failure.getTraceback())

    def _report(self) -> Report:
        cluster = self.cluster
        for failure in [*cluster.time.failures, *cluster.failures]:
            self._accuse("no surprises", f"{failure.type.__name__ if failure.type else ''}: {failure.getErrorMessage()}")
        for logged in self._logged:
            self._accuse("no surprises", logged)
        violations = (*self._judge().judge(), *self._found)
        said = [(at, 0, f"{at:.6f} {line}") for at, line in self._said]
        said += [(one.ended if one.ended is not None else cluster.time.now, one.number, one.text) for one in self.operations]
        return Report(
            scene=self.scene,
            lines=tuple(text for _, _, text in sorted(said)),
            operations=tuple(self.operations),
            violations=violations,
            faults=dict(self.storm.counts),
            repaired=self.repaired,
            seconds=cluster.time.now,
            events=cluster.time.fired,
        )


async def _files(sql: Any) -> list[File]:
    rows = await sql.query("SELECT id FROM entries WHERE number IS NOT NULL ORDER BY id")
    return await directory.files(sql, [bytes(row[0]) for row in rows])


def _what_is_wrong(tree: dict[str, bytes], version: Version) -> str | None:
    """With a version's copy among the files of a disk; None when it is sound."""
    found = blobs_among(tree).get(str(version.attempt))
    if found is None:
        return "missing"
    return None if hashlib.sha256(found[2]).digest() == version.digest else "damaged"


def simulate(scene: Scene, kind: type[Run] = Run) -> Report:
    """Run it."""
    # What was there before the first run is not looked through again. While a run goes on nothing is collected: what stands in the
    # `finally` of a coroutine that nobody waits for would run at another moment in each process.
    if not gc.get_freeze_count():
        gc.freeze()
    collects = gc.isenabled()
    gc.disable()
    try:
        return kind(scene).go()
    finally:
        # What is left of the cluster ends now, and not in the middle of the next run.
        gc.collect()
        if collects:
            gc.enable()


def wishes_done(report: Report, kind: Kind) -> int:
    """How many wishes of a kind were granted."""
    return sum(one.kind is kind and one.outcome is Outcome.DONE for one in report.operations)
