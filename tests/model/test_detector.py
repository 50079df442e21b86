"""The failure detector: so many unanswered in a row, neither fewer nor ones with an answer in between."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securifile.model.detector import Pulse, answered, sending, verified
from securifile.model.servers import Status


def beats(pulse: Pulse, count: int, missed_max: int, first: int = 1) -> Pulse:
    """So many heartbeats go out, and none is answered."""
    for number in range(first, first + count):
        pulse = sending(pulse, number, missed_max)
    return pulse


@pytest.mark.parametrize("missed_max", [1, 2, 3, 7])
def test_down_after_exactly_so_many(missed_max: int) -> None:
    """A heartbeat is missed when the next is due; the peer is down at the last missed one and not before."""
    almost = beats(Pulse(status=Status.RUNNING), missed_max, missed_max)
    assert almost.status is Status.RUNNING
    assert almost.unanswered == missed_max - 1
    assert sending(almost, missed_max + 1, missed_max).status is Status.DOWN


def test_one_answer_begins_the_count_anew() -> None:
    """Two missed, one answered, two missed: still running."""
    pulse = answered(beats(Pulse(status=Status.RUNNING), 3, 3), Status.RUNNING)
    assert pulse == Pulse(status=Status.RUNNING)
    assert beats(pulse, 3, 3).status is Status.RUNNING
    assert beats(pulse, 4, 3).status is Status.DOWN


def test_a_heartbeat_under_way_is_not_missed() -> None:
    """The first one is not overdue while it is merely unanswered; at the next it is."""
    first = sending(Pulse(status=Status.RUNNING), 1, 3)
    assert not first.doubtful
    assert sending(first, 2, 3).doubtful


def test_who_is_not_running_is_doubtful() -> None:
    """Down and failed peers are passed over where there is a choice."""
    assert Pulse(status=Status.DOWN).doubtful
    assert Pulse(status=Status.FAILED).doubtful


def test_heartbeats_go_on_to_the_dead() -> None:
    """A peer that is down goes on being asked; answers do not bring it back while the cluster holds it for down, too."""
    down = beats(Pulse(status=Status.RUNNING), 100, 3)
    assert down.status is Status.DOWN
    assert answered(down, Status.DOWN).status is Status.DOWN
    assert answered(down, Status.FAILED).status is Status.DOWN


def test_who_was_alone_with_its_doubts_believes_at_once() -> None:
    """A peer that the cluster never put down is running again with its first answer."""
    down = beats(Pulse(status=Status.RUNNING), 4, 3)
    assert answered(down, Status.RUNNING) == Pulse(status=Status.RUNNING)


def test_a_failed_peer_does_not_come_back_by_answering() -> None:
    """Failed stays failed through answers, and becomes down when the peer falls silent."""
    failed = Pulse(status=Status.FAILED, waiting=1)
    for cluster in Status:
        assert answered(failed, cluster).status is Status.FAILED
    assert beats(failed, 3, 3, first=2).status is Status.DOWN


@pytest.mark.parametrize("verdict", [Status.FAILED, Status.RUNNING])
def test_a_verdict_ends_the_count(verdict: Status) -> None:
    """Who was away and has just been verified is put down only by so many new misses, not by what it missed before."""
    returned = verified(beats(Pulse(status=Status.RUNNING), 9, 3), verdict)
    assert beats(returned, 3, 3, first=10).status is verdict
    assert beats(returned, 4, 3, first=10).status is Status.DOWN


def test_what_is_said_again_changes_nothing() -> None:
    """A peer that is held for running, misses heartbeats, and is told about once more goes on missing them."""
    missing = beats(Pulse(status=Status.RUNNING), 3, 3)
    assert verified(missing, Status.RUNNING) == missing


@given(st.lists(st.sampled_from(["send", "answer", "answer of a returning node"]), max_size=40), st.integers(1, 5))
def test_as_a_dumb_count_says(events: list[str], missed_max: int) -> None:
    """In any order of events the peer is down exactly if so many heartbeats in a row were overdue and it has not been believed since."""
    pulse = Pulse(status=Status.RUNNING)
    out, overdue, down = False, 0, False
    for number, event in enumerate(events):
        if event == "send":
            overdue += out
            out = True
            down = down or overdue >= missed_max
            pulse = sending(pulse, number, missed_max)
        else:
            out, overdue = False, 0
            believed = event == "answer"
            down = down and not believed
            pulse = answered(pulse, Status.RUNNING if believed else Status.DOWN)
        assert (pulse.status is Status.DOWN) == down
        assert pulse.doubtful == (down or overdue > 0)
