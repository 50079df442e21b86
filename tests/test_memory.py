"""Memory that is given back when a process comes to rest."""

from __future__ import annotations

import subprocess
import sys

import pytest
from twisted.internet.task import Clock

from securifile.memory import LOOK_S, REST_SHARE, Rest, unchanged

GLIBC = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the C library decides by itself")


class Process:
    """CPU time that a test spends."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.cpu_s = 0.0
        self.rests = 0
        self.rest = Rest(self.clock, lambda: self.cpu_s, self.come)

    def come(self) -> None:
        self.rests += 1

    def until_next_look(self, *, share: float) -> int:
        """Spend so much of a processor; how often rest has come by then."""
        self.cpu_s += share * LOOK_S
        self.clock.advance(LOOK_S)
        return self.rests


def test_rest_comes_once_after_work() -> None:
    """Who has worked and works no more has come to rest, once; not who works on, and not who has done nothing yet."""
    process = Process()
    process.rest.start()
    little, much = REST_SHARE / 2, 1.0
    assert [process.until_next_look(share=share) for share in (little, little, much, much)] == [0, 0, 0, 0]
    assert [process.until_next_look(share=share) for share in (little, little, 0.0)] == [1, 1, 1]
    assert [process.until_next_look(share=share) for share in (much, little, little)] == [1, 2, 2]


def test_nobody_looks_after_the_end() -> None:
    """A process that stops has no timer left."""
    process = Process()
    process.rest.start()
    process.rest.stop()
    process.rest.stop()
    assert process.clock.getDelayedCalls() == []


SMAPS = """\
55d0c0000000-55d0c0001000 r--p 00000000 fe:00 1234                       /usr/bin/python3.11
Rss:                   4 kB
Anonymous:             0 kB
55d0c0001000-55d0c0003000 r-xp 00001000 fe:00 1234                       /usr/bin/python3.11
Rss:                   8 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me sd
7f0000000000-7f0000004000 r-xp 00000000 fe:00 77                         /usr/lib/it has breakpoints.so
Rss:                  16 kB
Anonymous:             4 kB
7f0000004000-7f0000008000 rw-p 00004000 fe:00 77                         /usr/lib/it has breakpoints.so
Rss:                  16 kB
Anonymous:             0 kB
7f0000008000-7f0000009000 r--p 00008000 fe:00 77                         /usr/lib/it was relocated.so
Rss:                   4 kB
Anonymous:             4 kB
7f0000010000-7f0000012000 r-xp 00000000 00:00 0
Rss:                   8 kB
Anonymous:             0 kB
7f0000020000-7f0000021000 r-xp 00000000 00:00 0                          [vdso]
Rss:                   4 kB
Anonymous:             0 kB
7f0000030000-7f0000031000 r-xp 00000000 fe:00 78                         /usr/lib/libz.so.1
Rss:                   4 kB
Anonymous:             0 kB
"""


def test_only_what_is_as_in_its_file_is_forgotten() -> None:
    """Not what may be written to, what nobody could read again, or what a debugger or the loader has changed."""
    assert list(unchanged(SMAPS)) == [
        (0x55D0C0000000, 0x55D0C0001000),
        (0x55D0C0001000, 0x55D0C0003000),
        (0x7F0000030000, 0x7F0000031000),
    ]


def told(program: str) -> str:
    """What a Python of its own prints."""
    ran = subprocess.run([sys.executable, "-c", _RESIDENT + program], capture_output=True, text=True, check=True, timeout=60)
    return ran.stdout.strip()


_RESIDENT = """
import re
from securifile.memory import forget_start, give_back, keep_large_apart

def resident(what):
    return int(re.search(what + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
"""


@GLIBC
def test_what_is_freed_between_other_things_goes_back() -> None:
    """80 MiB of buffers larger than a block are gone when they are freed, though small things between them stay."""
    program = """
keep_large_apart()
large = bytes(8 * 1024 * 1024)
del large
before = resident("RssAnon")
kept = [(b"x" * (400_000 + number), b"y" * (1000 + number)) for number in range(200)]
had = resident("RssAnon")
kept = [small for _, small in kept]
print(had - before > 60, resident("RssAnon") - before < 4)
"""
    assert told(program) == "True True"


@GLIBC
def test_holes_are_given_back_at_rest() -> None:
    """60 MiB of blocks are gone after `give_back`, though small things between them stay."""
    program = """
keep_large_apart()
before = resident("RssAnon")
kept = [(b"x" * (200_000 + number), b"y" * (1000 + number)) for number in range(300)]
kept = [small for _, small in kept]
had = resident("RssAnon")
give_back()
print(had - before > 40, resident("RssAnon") - before < 8)
"""
    assert told(program) == "True True"


@GLIBC
def test_what_was_forgotten_comes_again() -> None:
    """What only the start needed is not resident any more, and what is needed again is there again."""
    program = """
import cryptography.hazmat.bindings._rust, hashlib, sqlite3
before = resident("RssFile")
forget_start()
after = resident("RssFile")
print(after < before, hashlib.sha256(b"").hexdigest()[:4], sqlite3.connect(":memory:").execute("select 6 * 7").fetchone()[0])
"""
    assert told(program) == "True e3b0 42"
