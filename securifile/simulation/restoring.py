"""A run in which the catalogue loses its last commits: a backup is restored, or a standby promoted, under running nodes.

    weather, and a backup   more weather   all is well   the backup is restored: what was committed since is gone
                                                         the nodes hand in what they know, and the epoch is reconciled

What the catalogue had before is the truth: what was acknowledged is there again, whole and with its version, and nobody may read what they
might not read before. Rights that were given since may be gone: those the catalogue does not take back from nodes.
"""

from __future__ import annotations

from securifile.simulation.history import Outcome
from securifile.simulation.invariants import Judge
from securifile.simulation.run import DURABLE, RECOVERY_S, SETTLING_S, Run, Scene

RESTORED_S = 3.0
"""How long the admin servers are away meanwhile."""

AWAY = 0.2
"""Probability that a node is away when it happens, and comes back later."""

TAKEN = "what was taken does not come back"


class Restoration(Run):
    """Such a run."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._before: Judge | None = None
        self._begins_epoch = True
        self._chance = self.cluster.chance.stream("restoration")

    def _go(self) -> None:
        cluster = self.cluster
        cluster.time.callLater(self._chance.between(1.0, self.scene.seconds), self._back_up)
        super()._go()
        if not self._found:
            self._restore()

    def _back_up(self) -> None:
        self._image = self.cluster.database.image()
        self._say(f"a backup at {self.cluster.database.committed[-1][1]}")

    def _restore(self) -> None:
        cluster, database, chance = self.cluster, self.cluster.database, self._chance
        self._before = Judge(tuple(self.operations), database.changes(), tuple(database.committed), self.storm.reach)
        was_at = database.committed[-1][1]
        away = [name for name in cluster.nodes if chance.happens(AWAY)]
        for name in (*cluster.admins, *away):
            cluster.crash(name)
        promoted = not chance.happens(0.5)
        database.restore(self._image, "promoted" if promoted else database.identifier)
        self._say(f"the backup is restored, to {database.committed[-1][1]} from {was_at}; {', '.join(away) or 'no node'} is away")
        # A backup after which nothing was committed is the same catalogue again: nobody can notice, and nothing is to be done.
        self._begins_epoch = promoted or database.committed[-1][1] < was_at
        cluster.run(RESTORED_S)
        for name in cluster.admins:
            cluster.start(name)
        for name in away:
            cluster.time.callLater(chance.between(0.0, 2 * RESTORED_S), cluster.start, name)
        if not self._recovers(self._is_reconciled):
            self._accuse("the cluster recovers", f"{RECOVERY_S} s after the restoration: " + ", ".join(self._reasons()))
            return
        self._say(f"the epoch is reconciled at {database.committed[-1][1]}")
        cluster.run(SETTLING_S)
        cluster.wait(self._look(), RECOVERY_S * 10)

    def _is_reconciled(self) -> bool:
        database = self.cluster.database
        return (
            database.reconciled
            and (database.committed[-1][1].epoch > 1 or not self._begins_epoch)
            and self.cluster.takes_changes
            and all(self.cluster.node(name) is not None for name in self.cluster.nodes)
        )

    async def _look(self) -> None:
        """Each file that there ever was, through one node, by everybody."""
        assert self._before is not None
        truth = self._before.truth
        files = dict(truth.files)
        for person in self.people:
            # Sessions that began after the backup may be gone: that is one more sign-in.
            await person.read(f"{person.name}/session", self.cluster.nodes[0])
        for path in sorted({operation.path for operation in self.operations if operation.path and not operation.path.endswith("/")}):
            for person in self.people:
                if not await person.sign_in():
                    self._accuse("the cluster recovers", f"{person.name} cannot sign in")
                    return
                operation = await person.read(path, self._chance.pick(self.cluster.nodes))
                file = files.get(path)
                was = truth.sees(person.name, path)
                found = operation.outcome is Outcome.DONE
                if found and (was is None or operation.etag != f'"{was[0]}.{was[1]}"'):
                    self._accuse(TAKEN, f"{person.name} reads {operation.etag} at {path}, where there was {was}")
                elif not found and file is not None and person.name == path.partition("/")[0]:
                    self._accuse(DURABLE, f"{path} is gone with the restoration: {operation.text}")
        for person in self.people:
            operation = await person.write(f"{person.name}/after", self._chance.pick(self.cluster.nodes), 100)
            if operation.outcome is not Outcome.DONE:
                self._accuse("the cluster recovers", f"nothing can be written after the restoration: {operation.text}")

    def _judge(self) -> Judge:
        return super()._judge() if self._before is None else self._before
