"""Standing: who may serve, over every small cluster."""

from __future__ import annotations

from itertools import product

import pytest

from securifile.model.ids import BEGINNING, Position
from securifile.model.servers import ServerKind, Status
from securifile.model.standing import FRESH_INTERVALS, Acknowledgement, Standing, lasts_until, standing

NOW = 1000.0
INTERVAL = 0.5
FRESH = NOW - FRESH_INTERVALS * INTERVAL
HERE = Position(1, 7)


def acknowledged(
    kind: ServerKind = ServerKind.NODE, sent_at: float = NOW, held_for: Status = Status.RUNNING, position: Position = BEGINNING
) -> Acknowledgement:
    return Acknowledgement(kind=kind, sent_at=sent_at, held_for=held_for, position=position)


def judge(
    nodes: int,
    acknowledgements: dict[str, Acknowledgement],
    *,
    serve_alone: bool = False,
    known: Position = HERE,
    heard: Position = HERE,
    objectors: dict[str, Position] | None = None,
) -> Standing:
    return standing(
        NOW,
        acknowledgements,
        nodes=nodes,
        interval_s=INTERVAL,
        serve_alone=serve_alone,
        known=known,
        heard=heard,
        objectors=dict.fromkeys(acknowledgements, BEGINNING) if objectors is None else objectors,
    )


@pytest.mark.parametrize("nodes", range(1, 8))
def test_every_small_cluster(nodes: int) -> None:
    """An admin server's word is enough; without one it takes more than half of all nodes, this one included."""
    for fresh, stale, admin, stale_admin in product(range(nodes), range(nodes), [False, True], [False, True]):
        if fresh + stale >= nodes:
            continue
        known = {f"fresh{number}": acknowledged(sent_at=FRESH) for number in range(fresh)}
        known |= {f"stale{number}": acknowledged(sent_at=FRESH - 0.001) for number in range(stale)}
        if admin:
            known["admin"] = acknowledged(ServerKind.ADMIN)
        if stale_admin:
            known["gone"] = acknowledged(ServerKind.ADMIN, sent_at=FRESH - 0.001)
        judged = judge(nodes, known)
        assert judged.serves == (admin or 2 * (fresh + 1) > nodes), (nodes, known)
        assert judged.reason
        assert not judged.behind


def test_an_isolated_node_is_silent() -> None:
    """Whoever hears nothing from anybody serves nobody, unless it is alone in the world."""
    assert judge(1, {}).serves
    for nodes in range(2, 10):
        assert not judge(nodes, {}).serves


def test_two_halves_do_not_both_serve() -> None:
    """However nodes are cut in two without an admin server, at most one side has standing."""
    for left, right in product(range(1, 6), range(1, 6)):
        sides = [judge(left + right, {f"n{number}": acknowledged() for number in range(mine - 1)}).serves for mine in (left, right)]
        assert sum(sides) == (left != right)


def test_serve_alone_is_for_two_nodes() -> None:
    """The setting lets the other of two go on; in a larger cluster it means nothing, nor against an objection."""
    assert judge(2, {}, serve_alone=True).serves
    for nodes in range(3, 6):
        assert not judge(nodes, {}, serve_alone=True).serves
    assert not judge(2, {"n2": acknowledged(held_for=Status.DOWN)}, serve_alone=True).serves
    assert not judge(2, {}, serve_alone=True, known=BEGINNING).serves


@pytest.mark.parametrize("held_for", [Status.DOWN, Status.FAILED])
@pytest.mark.parametrize("kind", list(ServerKind))
def test_one_fresh_objection_is_enough(kind: ServerKind, held_for: Status) -> None:
    """Who is held for down or failed by anybody that answered lately serves nobody, and is told by whom; old words do not count."""
    others = {"a": acknowledged(ServerKind.ADMIN), "n2": acknowledged(), "n3": acknowledged()}
    judged = judge(3, others | {"x": acknowledged(kind, held_for=held_for)})
    assert not judged.serves
    assert "x hold" in judged.reason
    assert held_for.value in judged.reason
    assert judge(3, others | {"x": acknowledged(kind, sent_at=FRESH - 0.001, held_for=held_for)}).serves


def test_who_comes_back_silences_nobody() -> None:
    """A node that was cut off holds all others for down: that counts neither while it is down nor from before it was admitted again."""
    doubt = acknowledged(held_for=Status.DOWN, position=Position(1, 5))
    others = {"a": acknowledged(ServerKind.ADMIN), "n2": acknowledged()}
    everybody = dict.fromkeys([*others, "n3"], BEGINNING)
    assert judge(3, others | {"n3": doubt}, objectors={"a": BEGINNING, "n2": BEGINNING}).serves
    assert judge(3, others | {"n3": doubt}, objectors=everybody | {"n3": Position(1, 6)}).serves
    assert not judge(3, others | {"n3": doubt}, objectors=everybody | {"n3": Position(1, 5)}).serves


def test_who_is_behind_waits() -> None:
    """Having heard of changes that are not here is worth waiting for, if nothing else is missing."""
    ok = {"a": acknowledged(ServerKind.ADMIN)}
    behind = judge(3, ok, known=Position(1, 6))
    assert (behind.serves, behind.behind) == (False, True)
    assert "1.6" in behind.reason
    assert "1.7" in behind.reason
    assert judge(3, ok, known=Position(1, 8)).serves
    assert not judge(3, ok, known=Position(1, 99), heard=Position(2, 0)).serves
    assert not judge(3, {}, known=Position(1, 6)).behind


@pytest.mark.parametrize("nodes", range(1, 6))
@pytest.mark.parametrize("serve_alone", [False, True])
def test_a_standing_lasts_as_long_as_it_is_judged_to(nodes: int, serve_alone: bool) -> None:
    """Up to the moment that is told beforehand a node may serve, and not one moment longer, whoever has answered when."""
    ages = [None, 0.0, 0.4, 1.2, 2.0]
    for told in product(ages, repeat=nodes):
        # The first is an admin server's, the rest are those of the other nodes.
        acknowledgements = {
            f"server{number}": acknowledged(ServerKind.ADMIN if number == 0 else ServerKind.NODE, NOW - age)
            for number, age in enumerate(told)
            if age is not None
        }
        until = lasts_until(acknowledgements, nodes=nodes, interval_s=INTERVAL, serve_alone=serve_alone)
        for moment in (NOW, until - 0.001, until + 0.001):
            if abs(moment) == float("inf"):
                continue
            judged = standing(
                moment,
                acknowledgements,
                nodes=nodes,
                interval_s=INTERVAL,
                serve_alone=serve_alone,
                known=HERE,
                heard=HERE,
                objectors={},
            )
            assert judged.serves == (moment < until), (told, moment, until)
