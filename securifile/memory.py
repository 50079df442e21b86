"""What a process gives back to the system when it has started, and when it comes to rest after work.

The C library keeps memory that was freed, for later: where it can give back only from the end of a heap, one small thing that stays
holds all that lies before it. After sixteen uploads and downloads at once a node kept such holes, and the memory of eight threads: 100
MiB and more where it had 70.

So what is larger than a block lies outside the heap (`keep_large_apart`), and who has come to rest (`Rest`) lets its threads go, looks
for garbage and gives back what is free (`give_back`). All of this is a wish: what a system does not know (musl, macOS) is left out.
"""

from __future__ import annotations

import ctypes
import gc
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from twisted.internet.interfaces import IDelayedCall, IReactorTime

LARGE_BYTES = 272 * 1024
"""From so much on memory comes from the system by itself, and goes back when it is freed. A block (256 KiB) as `bytes` is less: those
come and go with each step of a transfer, and new pages would cost each as much as its encryption. OpenSSL's buffers (1/3 MiB) and a
thread's scratch memory are more: they stay for a while. Unless it is told, glibc takes the largest that it has seen freed."""

TOP_BYTES = 1024 * 1024
"""So much may be free at the end of the heap before it is given back at once: some blocks on their way."""

LOOK_S = 2.5
"""How often to look whether the process rests. Its connections take up to two seconds to find that they do."""

REST_SHARE = 0.1
"""Of one processor: who takes less has little more to do than heartbeats."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""What mallopt(3) calls M_…, from glibc's malloc.h."""
_DONT_NEED = 4
"""What madvise(2) calls MADV_…, from Linux's mman-common.h."""

_UNCHANGED = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) r-[x-]p \S+ \S+ [1-9]\d* +/.*\n"  # a file's content that is not written to
    r"(?:[A-Z].*\n)*?Anonymous: +0 kB$",
    re.MULTILINE,
)

_LIBRARY = ctypes.CDLL(None)


def keep_large_apart() -> None:
    """Have memory of at least `LARGE_BYTES` lie outside the heap from now on, and all else in one heap. Before threads are begun.

    Of several heaps only the first gives back its end. Most of what threads allocate they do under the interpreter's lock, so they hardly
    wait for each other.
    """
    # Other libraries may have a function of that name, with other numbers.
    if hasattr(_LIBRARY, "gnu_get_libc_version"):
        _LIBRARY.mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
        _LIBRARY.mallopt(_TRIM_THRESHOLD, TOP_BYTES)
        _LIBRARY.mallopt(_ARENA_MAX, 1)


def give_back() -> None:
    """Free what nobody can reach any more, and give back what is free: some ten milliseconds."""
    gc.collect()
    if hasattr(_LIBRARY, "malloc_trim"):
        _LIBRARY.malloc_trim(0)


def forget_start() -> None:
    """Have nothing in memory of programs and libraries that only their start needed. What is used again comes from the system's cache.

    Only while there are no threads: another one might be loading a library, whose pages are not what they were when this looked.
    """
    try:
        mappings = Path("/proc/self/smaps").read_text("utf-8", "surrogateescape")
    except OSError:
        return
    if threading.active_count() == 1:
        for start, stop in unchanged(mappings):
            _LIBRARY.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _DONT_NEED)


def unchanged(mappings: str) -> Iterable[tuple[int, int]]:
    """The addresses [start, stop) of code and constants that are in memory as they are in their files.

    Args:
        mappings: see proc_pid_smaps(5).
    """
    for mapping in _UNCHANGED.finditer(mappings):
        yield int(mapping[1], 16), int(mapping[2], 16)


class Rest:
    """Notices that a process has come to rest after work."""

    def __init__(self, clock: IReactorTime, cpu_s: Callable[[], float], come: Callable[[], None]) -> None:
        """Args:
        cpu_s: the CPU time of the process so far.
        come: called each time when it has.
        """
        self._clock = clock
        self._cpu_s = cpu_s
        self._come = come
        self._seen_s = 0.0
        self._worked = False
        self._next: IDelayedCall | None = None

    def start(self) -> None:
        """Look from now on."""
        self._seen_s = self._cpu_s()
        self._next = self._clock.callLater(LOOK_S, self._look)

    def stop(self) -> None:
        """Look no more. Harmless twice."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _look(self) -> None:
        works = self._cpu_s() - self._seen_s >= REST_SHARE * LOOK_S
        if self._worked and not works:
            self._come()
        self._worked = works
        self.start()


def give_back_at_rest(clock: IReactorTime, cpu_s: Callable[[], float], let_threads_go: Callable[[], None]) -> Rest:
    """Give back what there is whenever the process comes to rest; the looking has begun."""

    def come() -> None:
        let_threads_go()
        give_back()

    rest = Rest(clock, cpu_s, come)
    rest.start()
    return rest
