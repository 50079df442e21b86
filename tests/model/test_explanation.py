"""Explanations: what is said about a file and a node is what the deciding functions decide."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given

from securifile.model.explanation import NodeView, Trace, next_for_file, next_for_node, span, view_of, why_status
from securifile.model.facts import Server
from securifile.model.repair import Failing, Holding
from securifile.model.servers import ServerKind, Status
from securifile.model.settings import ClusterSettings
from tests.model.test_repair import FAILING, NODES, SIZE, Case, cases, version

NOW = 10_000.0
SETTINGS = ClusterSettings(replicas=2, repair_after_s=600.0, repair_after_offline_s=3600.0)
ROOM = dict.fromkeys(NODES, SIZE)


def node(name: str, status: Status = Status.RUNNING, ago_s: float = 240.0, **more: Any) -> Server:
    """A node that has been so for some time."""
    members = {"url": f"https://{name}", "protocol_address": f"{name}:1", "public_key": b"", "boot": "one", **more}
    return Server(name=name, kind=ServerKind.NODE, status=status, since=NOW - ago_s, **members)


def said(copies: str, *changed: Server, room: dict[str, int] | None = None, settings: ClusterSettings = SETTINGS) -> list[str]:
    """What happens next to a version, in a cluster of eight nodes of which some are otherwise than running."""
    servers = {name: node(name) for name in NODES} | {server.name: server for server in changed}
    return next_for_file(version(*copies.split()), servers, settings, NOW, room=ROOM if room is None else room)


def test_spans() -> None:
    """Times are said in the unit that a person would choose."""
    assert [span(seconds) for seconds in (-5, 0.4, 59, 119, 240, 7199, 7200, 172799, 172800)] == [
        "a moment", "a moment", "59 s", "119 s", "4 min", "120 min", "2 h", "48 h", "2 days",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("server", "worth", "why"),
    [
        (node("n1"), Holding.GOOD, "n1 is running"),
        (node("n1", draining=True), Holding.LEAVING, "n1 is running, and being drained"),
        (node("n1", Status.DOWN), Holding.AWAY, "n1 is down for 4 min, and waited for"),
        (node("n1", Status.FAILED), Holding.AWAY, "n1 is failed for 4 min, and waited for"),
        (node("n1", Status.DOWN, offline=True, ago_s=1800), Holding.AWAY, "n1 is offline for 30 min, and waited for"),
        (node("n1", Status.DOWN, ago_s=1800), Holding.LOST, "n1 is down for 30 min, longer than it is waited for"),
        (None, Holding.LOST, "n1 is no member of the cluster any more"),
    ],
)
def test_what_a_copy_is_worth(server: Server | None, worth: Holding, why: str) -> None:
    """Each kind of worth comes with the state of the node that makes it so; a pending copy is said to be one."""
    held, pending = version("n1", "n1?").copies
    view = view_of(held, server, SETTINGS, NOW)
    assert (view.worth, view.why) == (worth, why)
    assert view_of(pending, server, SETTINGS, NOW).why != why


def test_what_happens_next_to_a_file() -> None:
    """The sentences of the situations that people ask about."""
    assert said("n1 n2 n3") == ["nothing: 3 of 3 copies are good"]
    assert said("n1 n2 n3", node("n2", Status.DOWN)) == ["n2 is down for 4 min; in 6 min its copy is made anew on another node"]
    assert said("n1 n2 n3 n4", node("n2", Status.DOWN)) == ["n2 is down for 4 min; 3 of 3 copies are good without it"]
    assert said("n1 n2 n4?") == ["a copy is being made on n4"]
    assert said("n1 n2 n3", node("n1", Status.DOWN, ago_s=700)) == [
        "1 copy is to be made on another node, after those of more endangered files",
        "the copy on n1 is forgotten when 3 others are good",
        "n2 becomes the origin in place of n1",
    ]
    assert said("n1 n2 n3", node("n3", draining=True)) == [
        "1 copy is to be made on another node, after those of more endangered files",
        "the copy on n3 is dropped when 3 others are good",
    ]
    assert said("n1 n2 n3 n4") == ["the copy on n4 is dropped soon: one more than wanted"]
    assert said("n1 n2", room={}) == ["1 copy is missing, and no other running node has room for it"]
    assert said("n1 n2 n3?", node("n3", Status.DOWN), room={}) == [
        "1 copy is missing, and no other running node has room for it",
    ]


def test_a_node_that_cannot_make_its_copy() -> None:
    """It is said what keeps it from it, how often it was tried, and when another node is to make the copy instead."""

    def said_of(failing: Failing, room: dict[str, int]) -> list[str]:
        servers = {name: node(name) for name in NODES}
        return next_for_file(version("n1", "n2", "n3?"), servers, SETTINGS, NOW, room=room, failing={"n3": failing})

    fresh = attrs.evolve(FAILING, since=NOW - 5, failures=2)
    assert said_of(fresh, ROOM) == [
        "n3 cannot make its copy: no room (tried 2 times in 5 s); if it goes on failing, another node is to make it in 10 s"
    ]
    stuck = attrs.evolve(FAILING, since=NOW - 40)
    assert said_of(stuck, ROOM) == [
        "n3 cannot make its copy: no room (tried 3 times in 40 s); another node makes it instead",
        "1 copy is to be made on another node, after those of more endangered files",
    ]
    assert said_of(stuck, {}) == [
        "n3 cannot make its copy: no room (tried 3 times in 40 s); it goes on trying",
        "1 copy is missing, and no other running node has room for it",
    ]


def test_what_cannot_be_read_is_said_first() -> None:
    """Without a copy to read, nothing is promised that would need one."""
    away = [node(name, Status.DOWN) for name in ("n1", "n2")]
    assert said("n1 n2 n3?", *away) == [
        "no copy can be read now: the content is not to be had until n1 or n2 is running again",
        "a copy is made on n3 when one can be read",
        "n1 is down for 4 min, and waited for",
        "n2 is down for 4 min, and waited for",
    ]
    assert said("n1? n2?")[0] == "no server is known to have the content"


def test_who_is_being_verified_is_waited_for() -> None:
    """However long it was down: no copy is promised that would be made if the verification were not under way."""
    servers = {name: node(name) for name in ("n1", "n2", "n3")} | {"n1": node("n1", Status.DOWN, ago_s=1e6)}
    held = version("n1", "n2")
    view = view_of(held.copies[0], servers["n1"], SETTINGS, NOW, verifying=["n1"])
    assert (view.worth, view.why) == (Holding.AWAY, "n1 has returned, and is being verified")
    room = dict.fromkeys(servers, 1 << 40)
    two = attrs.evolve(SETTINGS, replicas=1)
    assert next_for_file(held, servers, two, NOW, room=room, verifying=["n1"]) == [
        "n1 is being verified, and runs again when every copy there is sound"
    ]


@given(cases())
def test_it_says_nothing_exactly_when_nothing_is_done_or_waited_for(case: Case) -> None:
    """`nothing` is said of a file with all copies good and only then; whatever the planner changes is mentioned."""
    states = {
        Holding.GOOD: lambda name: node(name),
        Holding.LEAVING: lambda name: node(name, draining=True),
        Holding.AWAY: lambda name: node(name, Status.DOWN),
        Holding.LOST: lambda name: node(name, Status.FAILED, ago_s=601),
    }
    servers = {name: states[kind](name) for name, kind in case.holdings.items()}
    settings = attrs.evolve(SETTINGS, replicas=case.wanted - 1)
    failing = dict.fromkeys(case.stuck, attrs.evolve(FAILING, since=NOW - 1000))
    sentences = next_for_file(case.version, servers, settings, NOW, room=case.room, failing=failing)
    after = case.plan()
    all_good = all(copy.durable and case.holdings[copy.node] is Holding.GOOD for copy in case.version.copies)
    if sentences[0].startswith("nothing"):
        assert sentences == [f"nothing: {case.wanted} of {case.wanted} copies are good"]
        assert all_good and after is None and len(case.version.copies) == case.wanted
    elif all_good and len(case.version.copies) == case.wanted:
        raise AssertionError(sentences)
    if after is not None:
        text = " ".join(sentences)
        for gone in {copy.node for copy in case.version.copies} - {copy.node for copy in after}:
            assert f"{gone} is dropped" in text or " to be made" in text or f"{gone} cannot make its copy" in text
        if {copy.node for copy in after} - {copy.node for copy in case.version.copies}:
            assert " to be made on another node" in text


def view(server: Server, **more: Any) -> NodeView:
    """A node that answers, has caught up, and has nothing."""
    members: dict[str, Any] = {
        "now": NOW, "boot": server.boot, "ended": False, "answers": True, "verifying": False, "caught_up": True,
        "copies": 0, "only": 0, "holds": {}, "trail": [], **more,
    }  # fmt: skip
    return NodeView(server=server, **members)


def trace(event: str, detail: str, person: str | None = None) -> Trace:
    return Trace(at=NOW, event=event, person=person, detail=detail)


def test_why_a_node_has_its_status() -> None:
    """Who took it offline, what verification found, who hears nothing of it; the last one counts."""
    offline = node("n1", Status.DOWN, offline=True)
    assert why_status(view(offline)) == "it was taken offline"
    trail = [trace("offline", "n1: running -> down", "ann"), trace("offline", "n1: running -> down", "ben")]
    assert why_status(view(offline, trail=trail)) == "it was taken offline by ben"
    failed = node("n1", Status.FAILED)
    found = trace("status", "down -> failed: n2 found 1 of 7 files bad")
    assert why_status(view(failed, trail=[found])) == "its verification failed: n2 found 1 of 7 files bad"
    assert why_status(view(failed)).startswith("its verification failed")
    down = node("n1", Status.DOWN)
    assert why_status(view(down, answers=False, holds={"n2": Status.DOWN, "n3": Status.RUNNING})) == "n2 hears nothing of it"
    assert why_status(view(down, answers=False, holds={"n2": Status.DOWN, "n3": Status.DOWN})) == "n2, n3 hear nothing of it"
    assert "another" in why_status(view(down, boot="two"))
    assert why_status(view(down, ended=True)) == "its process has ended"
    assert "another" in why_status(view(down, ended=True, boot="two"))
    assert why_status(view(down)) == "it has not been verified since it was down"
    assert "good" in why_status(view(node("n1")))


@pytest.mark.parametrize(
    ("server", "more", "sentences"),
    [
        (node("n1"), {}, ["nothing: it is running"]),
        (node("n1", Status.DOWN), {"answers": False}, ["it is verified as soon as it answers again"]),
        (node("n1", Status.DOWN), {"caught_up": False}, ["it is verified as soon as it has caught up with the catalogue"]),
        (node("n1", Status.DOWN), {}, ["it is verified within seconds"]),
        (
            node("n1", Status.DOWN),
            {"fruitless": ("n2: away", 8.0)},
            ["its verification came to no verdict (n2: away); it begins again in 8 s, or when something changes"],
        ),
        (
            node("n1", Status.DOWN),
            {"verifying": True, "copies": 7, "only": 2},
            [
                "its copies are being verified: if all are good it is running, if one is bad it is failed",
                "in 6 min its 7 copies are made anew on other nodes",
                "but 2 files have no copy on a running node: they cannot be read until it, or another holder, is back",
            ],
        ),
        (
            node("n1", Status.DOWN, offline=True, ago_s=4000),
            {"copies": 7},
            ["it stays down until it is put back: securifile node online n1", "its 7 copies are made anew on other nodes"],
        ),
        (node("n1", draining=True), {"copies": 7}, ["its 7 copies are made on other nodes, and dropped here"]),
        (
            node("n1", draining=True),
            {},
            ["nothing is left on it; to take it out of the cluster: securifile node remove n1"],
        ),
    ],
)
def test_what_happens_next_to_a_node(server: Server, more: dict[str, Any], sentences: list[str]) -> None:
    """In each state: how it comes out of it, and what becomes of its copies meanwhile."""
    assert next_for_node(view(server, **more), SETTINGS) == sentences


def test_a_failed_node_is_told_how_to_be_repaired() -> None:
    """The three commands, in order."""
    (sentence,) = next_for_node(view(node("n1", Status.FAILED)), SETTINGS)
    assert sentence.index("offline n1") < sentence.index("repair n1") < sentence.index("online n1", sentence.index("repair n1"))
