"""The pages of `securifile explain`."""

from __future__ import annotations

from typing import Any

from securifile.client.explaining import file_page, node_page


def observers(**held: str) -> list[dict[str, Any]]:
    return [{"observer": observer, "status": status, "since": None} for observer, status in held.items()]


def test_a_file() -> None:
    """All that was asked for, a line a copy, observers that agree together, and what happens next at the end."""
    told = {
        "path": "alice/a",
        "version": 3,
        "size": 2048,
        "committed_at": "2026-11-21T10:00:00.000Z",
        "wanted": 3,
        "serving": ["node1", "node3"],
        "lock_known": True,
        "lock": None,
        "copies": [
            {
                "server": "node1", "priority": 0, "durable": True, "worth": "good", "why": "node1 is running",
                "verified_at": "2026-11-21T09:00:00.000Z", "observers": observers(admin1="running", node2="running"),
            },
            {
                "server": "node2", "priority": 1, "durable": True, "worth": "away", "why": "node2 is down for 4 min, and waited for",
                "verified_at": None, "observers": observers(admin1="down", node1="down", node3="running"),
            },
            {
                "server": "node3", "priority": 2, "durable": False, "worth": "good", "why": "node3 is running, and does not have it yet",
                "verified_at": None, "observers": [],
            },
        ],
        "next": ["a copy is being made on node3", "node2 is down for 4 min; in 6 min its copy is made anew on another node"],
    }  # fmt: skip
    assert file_page(told) == (
        "path:        alice/a\n"
        "version:     3, 2.0 KiB, since 2026-11-21T10:00:00.000Z\n"
        "copies:      1 good, 3 wanted\n"
        "served by:   node1, else node3\n"
        "modified by: nobody now\n"
        "\n"
        "COPY       SERVER  WORTH    VERIFIED                  BECAUSE\n"
        "origin     node1   good     2026-11-21T09:00:00.000Z  node1 is running\n"
        "replica 1  node2   away     not since it was made     node2 is down for 4 min, and waited for\n"
        "replica 2  node3   pending  not since it was made     node3 is running, and does not have it yet\n"
        "\n"
        "SERVER  HELD FOR\n"
        "node1   running by admin1, node2\n"
        "node2   down by admin1, node1; running by node3\n"
        "\n"
        "next:\n"
        "  a copy is being made on node3\n"
        "  node2 is down for 4 min; in 6 min its copy is made anew on another node\n"
    )
    assert "modified by: bob through node1, for 4.5 s more" in file_page(
        {**told, "lock": {"person": "bob", "node": "node1", "expires_in_s": 4.5}}
    )
    assert "modified by: not known" in file_page({**told, "lock_known": False})
    assert "served by:   nobody now" in file_page({**told, "serving": []})


def test_a_node() -> None:
    """Status and why, the life of its process, its copies, what was written down, and what happens next."""
    told = {
        "name": "node3",
        "status": "failed",
        "since": "2026-11-21T10:00:00.000Z",
        "why": "its verification failed: node1 found 1 of 7 files bad",
        "answers": True,
        "boot": "two",
        "boot_admitted": "one",
        "caught_up": True,
        "position": "1.7",
        "copies": 7,
        "only_copies": 0,
        "quarantined": 1,
        "oldest_check_at": None,
        "observers": observers(admin1="failed", node1="failed"),
        "trail": [{"at": "T1", "event": "bad-copy", "path": "alice/a\x1b", "entry": "00ff", "detail": "corrupt: by node1"}],
        "next": ["it serves nobody"],
    }
    assert node_page(told) == (
        "node:        node3\n"
        "status:      FAILED, since 2026-11-21T10:00:00.000Z\n"
        "because:     its verification failed: node1 found 1 of 7 files bad\n"
        "heartbeats:  answered\n"
        "process:     another one than was admitted\n"
        "index:       at 1.7\n"
        "copies:      7, 0 of them the only one on a running node\n"
        "put aside:   1 bad blobs\n"
        "\n"
        "SERVER  HELD FOR\n"
        "node3   failed by admin1, node1\n"
        "\n"
        "WRITTEN DOWN  EVENT\n"
        "T1            bad-copy  alice/a\\x1b: corrupt: by node1\n"
        "\n"
        "next:\n"
        "  it serves nobody\n"
    )


def test_an_empty_answer_is_shown() -> None:
    """An answer of a server that tells less still makes a page."""
    assert "next:" in file_page({}) and "next:" in node_page({})
