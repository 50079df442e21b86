"""What happens to a packet on a wire that is cut, long or narrow."""

from __future__ import annotations

import pytest

from securifile.local.switch import QUEUE_MAX_S, Wire, Wires

HERE, THERE = b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02"


def test_a_wire_without_a_fault_takes_no_time() -> None:
    """Pairs that are not named have one."""
    assert Wires({}).arrival(5.0, HERE, THERE, 100) == 5.0
    assert Wires({(HERE, THERE): Wire()}).arrival(5.0, HERE, THERE, 100) == 5.0


def test_a_cut_is_one_way() -> None:
    """What is sent there vanishes, what is sent back arrives."""
    wires = Wires({(HERE, THERE): Wire(cut=True)})
    assert wires.arrival(5.0, HERE, THERE, 100) is None
    assert wires.arrival(5.0, THERE, HERE, 100) == 5.0


def test_a_long_wire_delays_all_packets_alike() -> None:
    """They do not wait for each other."""
    wires = Wires({(HERE, THERE): Wire(delay_s=0.5)})
    assert [wires.arrival(5.0, HERE, THERE, size) for size in (100, 1000)] == [5.5, 5.5]


def test_a_narrow_wire_takes_one_packet_after_the_other() -> None:
    """Each waits for those before it; when nobody has sent for a while nobody waits."""
    wires = Wires({(HERE, THERE): Wire(bytes_s=1000.0, delay_s=1.0)})
    assert [wires.arrival(5.0, HERE, THERE, 100) for _ in range(3)] == pytest.approx([6.1, 6.2, 6.3])
    assert wires.arrival(9.0, HERE, THERE, 100) == pytest.approx(10.1)


def test_a_narrow_wire_drops_what_would_wait_too_long() -> None:
    """As much waits as goes through in a quarter of a second, and as much gets through as before."""
    wires = Wires({(HERE, THERE): Wire(bytes_s=1000.0)})
    arrivals = [wires.arrival(5.0, HERE, THERE, 100) for _ in range(10)]
    assert [arrival is None for arrival in arrivals] == [False] * 3 + [True] * 7
    assert wires.arrival(5.0 + QUEUE_MAX_S, HERE, THERE, 100) == pytest.approx(5.4)
