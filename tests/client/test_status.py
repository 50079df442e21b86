"""The table of servers, and how numbers and names are written for people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securifile.client.status import age_text, bytes_text, printable, status_table, status_text, table, verified_text


def server(**members: object) -> dict[str, object]:
    return {
        "name": "node1",
        "kind": "node",
        "status": "running",
        "url": "https://10.0.0.1:9443",
        "used_bytes": 3 << 30,
        "available_bytes": 700 << 20,
        "heartbeat_age_s": 0.2,
        **members,
    }


def test_the_table() -> None:
    """Admin servers come first, columns are aligned, numbers have units, and what is not running is seen."""
    servers = [server(name="node2", status="down", heartbeat_age_s=240), server(), server(name="admin1", kind="admin", used_bytes=None)]
    assert status_table({"cluster": "c1", "servers": servers, "warnings": []}) == (
        "SERVER  KIND   STATUS      USED  AVAILABLE  HEARTBEAT  URL\n"
        "admin1  admin  running        -    700 MiB      0.2 s  https://10.0.0.1:9443\n"
        "node1   node   running  3.0 GiB    700 MiB      0.2 s  https://10.0.0.1:9443\n"
        "node2   node   DOWN     3.0 GiB    700 MiB      4 min  https://10.0.0.1:9443\n"
        "\n"
        "cluster c1: 1 of 2 nodes running\n"
    )


def test_how_long_copies_went_unverified() -> None:
    """Below the table stands the longest time of all nodes, and who has put bad blobs aside; nothing while no node has told."""
    servers = [
        server(oldest_check_age_s=7200.0, quarantined=0),
        server(name="node2", oldest_check_age_s=86400.0, quarantined=2),
        server(name="node3", oldest_check_age_s=None, quarantined=None),
    ]
    assert status_table({"servers": servers}).splitlines()[-2:] == [
        "no copy unverified for longer than 24 h",
        "bad blobs put aside: node2 2",
    ]
    assert [verified_text(one) for one in servers] == ["2 h ago", "24 h ago, 2 bad blobs put aside", "-"]


def test_what_is_done_with_a_node_stands_beside_its_status() -> None:
    """Offline, draining, being verified: who looks at the list sees that a status is meant so, or will change by itself."""
    assert status_text(server()) == "running"
    assert status_text(server(draining=True)) == "running (draining)"
    assert status_text(server(status="down", offline=True, draining=True)) == "DOWN (offline, draining)"
    assert status_text(server(status="down", verifying=True)) == "DOWN (being verified)"


def test_tls_off_is_said_first() -> None:
    """A cluster without TLS says so above everything else, also when the server itself has not warned; warnings follow."""
    lines = status_table({"servers": [server(url="http://10.0.0.1:9443")], "warnings": ["No standby."]}).splitlines()
    assert lines[0].startswith("WARNING: TLS IS OFF") and lines[1] == "WARNING: No standby."
    assert status_table({"servers": [server(url="http://a")], "warnings": ["TLS is off"]}).count("TLS") == 1


def test_an_empty_answer_is_shown() -> None:
    """An answer that lacks everything still makes a page."""
    assert status_table({}) == "0 of 0 nodes running\n"
    assert "?" in status_table({"servers": [{}]})


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (102400, "100 KiB"),
        (1023 * 1024, "1.0 MiB"),
        (5 << 40, "5.0 TiB"),
    ],
)
def test_bytes(count: int | None, text: str) -> None:
    """Bytes have three digits and a unit."""
    assert bytes_text(count) == text


@given(st.integers(0, 1 << 70))
def test_bytes_are_short(count: int) -> None:
    """No number of bytes that there can be makes a column wide."""
    assert len(bytes_text(count)) <= 9


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "never"), (-1, "0.0 s"), (0.31, "0.3 s"), (60, "60 s"), (600, "10 min"), (7200, "2 h"), (864000, "10 d")]
)
def test_ages(seconds: float | None, text: str) -> None:
    """A span of time is in the unit that a person would say."""
    assert age_text(seconds) == text


@given(st.text())
def test_no_name_moves_the_cursor(name: str) -> None:
    """Whatever a name holds, what is shown is printable and stays on its line."""
    assert printable(name).isprintable()
    assert table(("A",), [[name]]).count("\n") == 2
