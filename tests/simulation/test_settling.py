"""A file is an atomic register also while a node is cut off, and a writer waits for it: told as a story, also without what sees to it."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from securifile.model.facts import Change
from securifile.simulation.cluster import Parts
from securifile.simulation.history import Operation, Outcome
from securifile.simulation.people import Habits
from securifile.simulation.run import Report, Run, Scene
from securifile.sql import directory
from tests.simulation.mutants import Eager

PATH = "ann/one"


def told(parts: Parts, lost: str | None = None) -> tuple[Report, list[Operation], list[Operation]]:
    """At the commit of a new version a holder of the file is cut off from all servers; meanwhile it is read.

    Args:
        lost: what befalls the origin just after the commit: `stop` or `crash`.

    Returns:
        What it came to, and the reads through a node that knows of the commit and through the one that is cut off, as they took turns.
    """
    run = Run(Scene(seed=0, nodes=5, people=1, devices=3, habits=Habits(slow=0.0), parts=parts))
    run.begin()
    cluster, (writer, reader, other) = run.cluster, run.people
    for person in run.people:
        cluster.wait(person.sign_in())
    cluster.wait(writer.write(PATH, "n1", 100))
    # Then everybody is certain of that.
    cluster.run(2.0)
    origin, cut_off, knowing = cluster.database.ask_now(lambda sql: directory.files_of(sql, "ann", b"", 1))[0].entry.version.holders
    ways = [way for name in (*cluster.nodes, *cluster.admins) if name != cut_off for way in ((name, cut_off), (cut_off, name))]
    watcher, committed = cluster.database.watcher, Deferred[None]()

    def cut(change: Change) -> None:
        watcher(change)
        if not committed.called:
            for way in ways:
                cluster.network.block(*way)
            committed.callback(None)

    cluster.database.watcher = cut
    run.start(lambda: writer.write(PATH, origin, 200))
    cluster.wait(committed)
    cluster.run(0.02)
    if lost == "stop":
        cluster.pause(origin)
    elif lost == "crash":
        cluster.crash(origin)
    there, here = [], []
    for _ in range(3):
        there.append(cluster.wait(reader.read(PATH, knowing, relay=True)))
        here.append(cluster.wait(other.read(PATH, cut_off, relay=True)))
    for way in ways:
        cluster.network.unblock(*way)
    if lost == "stop":
        cluster.resume(origin)
    elif lost == "crash":
        cluster.start(origin)
    return run.finish(), there, here


def versions(reads: list[Operation]) -> list[int | None]:
    """What was read, by number."""
    return [int(one.etag.strip('"').rpartition(".")[2]) if one.outcome is Outcome.DONE and one.etag else None for one in reads]


def test_nobody_is_given_the_older_version_after_the_newer_one() -> None:
    """While the writer waits for a node that is cut off, and may still give the version before, everybody is given that: at once."""
    report, there, here = told(Parts())
    assert not report.violations, report.summary
    assert versions(there) == versions(here) == [1, 1, 1]
    assert all(one.ended is not None and one.ended - one.began < 0.1 for one in there)


def test_servers_that_show_what_they_have_heard_of_are_found_out() -> None:
    """The same story: the newer version is read, and then the older one, and the judge says so."""
    report, there, here = told(Parts(node=Eager))
    assert versions(there)[0] == 2 and versions(here)[0] == 1
    assert any(violation.guarantee == "nothing older than what was acknowledged" for violation in report.violations), report.summary


def test_when_the_origin_is_silent_readers_wait() -> None:
    """Nobody can say whether it has answered the writer: so neither version is given before it is certain that the newer one has spread."""
    for lost in ("stop", "crash"):
        report, there, _ = told(Parts(), lost)
        assert not report.violations, report.summary
        assert versions(there) == [2, 2, 2]
        first = there[0]
        assert first.ended is not None and 1.0 < first.ended - first.began < 2.5, first.text
