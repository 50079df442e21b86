"""Where the replicas of a new version go: on random running nodes that have room.

Random placement spreads load evenly and makes it likely that *some* file loses all copies when r+1 nodes fail at once;
zones, weights and copysets (Cidon et al., USENIX ATC 2013) can come behind the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping


def place(
    wanted: int,
    *,
    room: Mapping[str, int],
    size: int,
    preferred: Collection[str],
    below: Callable[[int], int],
) -> list[str]:
    """Choose up to `wanted` nodes for replicas, in order of priority.

    Args:
        wanted: r, or how many are still missing.
        room: bytes available on each node that may be chosen (running, not the origin, not tried already).
        size: bytes the blob will take, as far as is known.
        preferred: nodes that hold the version before this one; they come first, so that copies do not wander.
        below: draws a random integer from 0 to its argument - 1.
    """
    fitting = sorted(node for node, available in room.items() if available >= size)
    kept = [node for node in dict.fromkeys(preferred) if node in fitting]
    others = [node for node in fitting if node not in kept]
    chosen = kept[:wanted]
    while others and len(chosen) < wanted:
        chosen.append(others.pop(below(len(others))))
    return chosen
