"""Clusters of which one guarantee's code has been taken out, each with the scene in which that is missed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import attrs
from twisted.internet.defer import succeed

from securifile.admin.catalogue import Catalogue
from securifile.admin.commits import Judging
from securifile.model.errors import CorruptBlock
from securifile.model.facts import File
from securifile.model.proofs import Report
from securifile.model.settings import ClusterSettings
from securifile.model.standing import Standing
from securifile.node.blobs import DiskBlobs
from securifile.node.composition import Node
from securifile.protocol import messages as m
from securifile.simulation.cluster import Parts
from securifile.simulation.faults import Climate
from securifile.simulation.history import Kind
from securifile.simulation.people import Habits
from securifile.simulation.run import Scene

CROWDED = Habits(folders=("",), names=("one",))
"""One file each."""

CONTENTION = Scene(
    seed=0,
    people=1,
    devices=5,
    climate=Climate(pause_s=1.0, lasts_s=2.0, weights=(("stop", 2), ("break", 2), ("slow-link", 1), ("lost-answers", 1))),
    habits=Habits(folders=("",), names=("one",), large=0.4, weights=((Kind.WRITE, 6), (Kind.READ, 2))),
    settings=ClusterSettings(lease_s=1.0),
    seconds=15,
)
"""Everybody writes the same file, and servers stop for about as long as a lease lasts: too short for others to hold them for down."""

ROTTEN = Scene(
    seed=0,
    seconds=20,
    climate=Climate(pause_s=0.5, lasts_s=1.0, weights=(("rot", 1),)),
    habits=Habits(folders=("",), weights=((Kind.READ, 5), (Kind.WRITE, 1), (Kind.GRANT, 1))),
    settings=ClusterSettings(scrub_bytes_s=0.0),
)
"""Nobody but the readers looks at the disks."""

RETURNING = Scene(
    seed=0,
    seconds=20,
    climate=Climate(pause_s=1.0, lasts_s=3.0, weights=(("lost-disk", 1), ("power", 2))),
    habits=Habits(folders=("",), weights=((Kind.READ, 1), (Kind.WRITE, 3))),
    settings=ClusterSettings(scrub_bytes_s=0.0),
)
"""A machine comes back with an empty disk."""

AWAY = Scene(
    seed=0,
    seconds=20,
    devices=2,
    climate=Climate(pause_s=0.5, lasts_s=1.4, least_s=0.3, weights=(("isolate", 1), ("cut", 2), ("one-way", 2))),
    habits=attrs.evolve(CROWDED, think_s=0.2),
)
"""Nodes are cut off for as long as their standing lasts, and come back without having heard what changed."""

SLOWLY_BACK = attrs.evolve(
    AWAY,
    devices=4,
    habits=attrs.evolve(AWAY.habits, think_s=0.05),
    climate=attrs.evolve(AWAY.climate, weights=(("isolate", 1), ("cut", 2), ("one-way", 2), ("slow-link", 4))),
)
"""What changed meanwhile comes to them by slow links, and many people read."""


class Servile(Node):
    """Serves people whatever others hold it for."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        admission: Any = self.cluster.admission
        admission.standing = lambda: Standing(serves=True, reason="always")


class Premature(Node):
    """Serves people before it has caught up with what it has heard of."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        admission: Any = self.cluster.admission
        standing = admission.standing

        def premature() -> Standing:
            judged: Standing = standing()
            return Standing(serves=True, reason="others say that it runs") if judged.behind else judged

        admission.standing = premature


class Credulous(Node):
    """A challenger who finds everything good."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        verification: Any = self._verification
        name = arguments[2].name

        async def verify(peer: Any, asked: m.Verify) -> m.Verified:
            return m.Verified(report=Report(challenger=name, files=1, bytes=1, whole=True))

        verification._verify = verify


class Blind(DiskBlobs):
    """Hands out blocks as they are on the disk."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        folder: Any = self._folder

        def blocks(descriptor: int, loaded: Any, start: int, stop: int) -> tuple[list[bytes], CorruptBlock | None]:
            return [folder.files.read(descriptor, stop - start, start)], None

        folder.blocks = blocks


class Hasty(Node):
    """Answers before other servers know."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        spreading: Any = self.cluster.spreading
        spreading.spread = lambda position, facts, known_by=(): succeed(None)


class Hopeful(Node):
    """Takes a node for ended whose connection is lost."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        cluster: Any = self.cluster
        cluster.endings.lives.is_over = lambda name, admitted, epoch: not cluster.is_available(name)


class Hearsay(Node):
    """Takes a node for ended when any process of it has, and not only that which was admitted."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        lives: Any = self.cluster.endings.lives
        lives.is_over = lambda name, admitted, epoch: bool(lives._over.get(name))


class Eager(Node):
    """Shows people what it has just heard of, though others may not have."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        settling: Any = self.cluster.settling

        async def shown(file: File) -> File:
            return file

        settling.shown = shown


class Unlocked(Node):
    """Lets any number of people modify a file at once."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        locks: Any = self.cluster.locks
        locks.take = lambda key, attempt, person, first: succeed(NoLock())


class NoLock:
    """What an unlocked node has for a lock."""

    async def confirm(self) -> None:
        """Nothing."""

    def release(self, known_by: Collection[str] = ()) -> None:
        """Nothing."""


class LastWins(Judging):
    """Takes any commit for the version that it says: no compare-and-swap."""

    async def _writable(self, asked: m.Commit) -> File | None:
        entry = self._entries.get(asked.file)
        if not isinstance(entry, File):
            return await super()._writable(asked)
        self._sql.later("DELETE FROM versions WHERE file = :file AND number = :number", {"file": asked.file.value, "number": asked.number})
        return entry


class Careless(Catalogue):
    """A catalogue of such files."""

    def __init__(self, database: Any, **keywords: Any) -> None:
        super().__init__(database, **keywords)
        files: Any = self.files
        files._commits._judging = LastWins


MUTANTS = {
    "block check on reads": attrs.evolve(ROTTEN, parts=Parts(blobs=Blind)),
    "catch-up": attrs.evolve(SLOWLY_BACK, parts=Parts(node=Premature)),
    "evidence of an end": attrs.evolve(AWAY, parts=Parts(node=Hopeful)),
    "fsync": Scene(seed=0, seconds=20, climate=Climate(weights=(("power", 3), ("power-all", 1))), parts=Parts(obeys_fsync=False)),
    "locks and compare-and-swap": attrs.evolve(CONTENTION, parts=Parts(node=Unlocked, catalogue=Careless)),
    "settling": attrs.evolve(AWAY, parts=Parts(node=Eager)),
    "spreading": attrs.evolve(AWAY, parts=Parts(node=Hasty)),
    "standing": Scene(seed=0, seconds=20, climate=Climate(), parts=Parts(node=Servile)),
    "verification": attrs.evolve(RETURNING, parts=Parts(node=Credulous)),
}
"""By what is missing. For the compare-and-swap alone, and what a lock alone is good for, `test_runs.py` tells a story each; and
`test_sentinels.py` of whose life has ended."""
