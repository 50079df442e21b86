"""One server's trouble in one row is not another's, nor the next row's."""

from __future__ import annotations

from typing import Any

from benchmarks.__main__ import measure
from benchmarks.figures import Sample
from benchmarks.rows import Row

DONE = Sample(seconds=1.0, amount=1.0, cpu_s=0.1)


class Server:
    """A server of whom nothing is asked but to be cleared."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cleared = 0

    def clear(self) -> None:
        self.cleared += 1


class Works:
    """Work at which a server fails at a step: `prepare` or the number of a round."""

    def __init__(self, **fails: object) -> None:
        self._fails = fails
        self.done: list[tuple[str, object]] = []

    def prepare(self, target: Any) -> None:
        self._do(target, "prepare")

    def run(self, target: Any, number: int) -> Sample:
        self._do(target, number)
        return DONE

    def _do(self, target: Any, step: object) -> None:
        if self._fails.get(target.name) == step:
            raise OSError("it has gone away")
        self.done.append((target.name, step))


def row(work: Works) -> Row:
    return Row(name="row", title="A row", unit="/s", replicas=0, work=work, others=("nginx", "Swift"), goals=())


def test_who_fails_is_out_of_the_row_and_the_others_are_measured() -> None:
    """In whatever step it fails; and everybody is cleared, so that the next row finds nothing of this one."""
    targets = {name: Server(name) for name in ("nginx", "Swift", "SecuriFile")}
    work = Works(nginx="prepare", Swift=1)
    result = measure(row(work), targets, rounds=3)
    assert result.samples == {"SecuriFile": [DONE, DONE, DONE]}
    assert ("Swift", 0) in work.done
    assert ("Swift", 2) not in work.done
    assert ("nginx", 0) not in work.done
    assert [server.cleared for server in targets.values()] == [1, 1, 1]


def test_our_own_failure_spoils_nothing_of_the_others() -> None:
    """A row that we cannot do is reported as such; the run goes on."""
    targets = {name: Server(name) for name in ("nginx", "Swift", "SecuriFile")}
    assert set(measure(row(Works(SecuriFile=0)), targets, rounds=2).samples) == {"nginx", "Swift"}


def test_another_server_begins_each_round() -> None:
    """On a machine that becomes slower within a round nobody is always last."""
    targets = {name: Server(name) for name in ("nginx", "Swift", "SecuriFile")}
    work = Works()
    measure(row(work), targets, rounds=3)
    begun = [name for name, step in work.done if step != "prepare"]
    assert begun[::3] == ["nginx", "Swift", "SecuriFile"]
    assert all(set(begun[first : first + 3]) == set(targets) for first in (0, 3, 6))
