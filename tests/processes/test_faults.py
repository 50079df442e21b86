"""Nodes are killed, stopped and cut off at random under a load of readers and writers; what people were told stays true."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable

import pytest

from securifile.local.cluster import ADMIN, LocalCluster
from securifile.local.network import Network, missing
from tests.processes.load import Load

ROUNDS = int(os.environ.get("SECURIFILE_FAULT_ROUNDS", "6"))
SETTLED_S = 60.0
READ_WITHIN_S = 8.0
"""Three heartbeats until a node is down, the answer of each node waited for, and a loaded machine."""


class Trouble:
    """What can happen to the nodes of a cluster, and its end.

    Never to more than two at a time, so that of three holders one is running.
    """

    def __init__(self, cluster: LocalCluster, network: Network | None, chance: random.Random) -> None:
        self._cluster = cluster
        self._network = network
        self._chance = chance
        self._victims: list[str] = []

    def begin(self) -> str:
        """Let one or two nodes suffer; what was done to them."""
        nodes = list(self._cluster.nodes)
        self._victims = self._chance.sample(nodes, self._chance.choice([1, 1, 2]))
        spared = [name for name in nodes if name not in self._victims]
        if self._network is not None and len(self._victims) == 2 and self._chance.random() < 0.4:
            beyond = self._chance.choice([spared, [*spared, ADMIN]])
            self._network.cut(self._victims, beyond)
            return f"split {' and '.join(self._victims)} from {', '.join(beyond)}"
        return ", ".join(self._strike(victim, self._chance.choice(spared)) for victim in self._victims)

    def _strike(self, victim: str, other: str) -> str:
        peers = [name for name in self._cluster.nodes if name != victim]
        process, network = self._cluster.nodes[victim], self._network
        possible: dict[str, Callable[[], None]] = {f"kill {victim}": process.kill, f"stop {victim}": process.pause}
        if network is not None:
            possible |= {
                f"cut {victim} from {other}": lambda: network.cut([victim], [other]),
                f"cut what {victim} sends to {other}": lambda: network.cut([victim], [other], one_way=True),
                f"cut what {victim} sends to servers": lambda: network.cut([victim], [*peers, ADMIN], one_way=True),
                f"cut {victim} from nodes": lambda: network.cut([victim], peers),
                f"cut {victim} from {ADMIN}": lambda: network.cut([victim], [ADMIN]),
                f"cut {victim} from servers": lambda: network.cut([victim], [*peers, ADMIN]),
                f"slow {victim}": lambda: network.slow([victim], [*peers, ADMIN], delay_s=0.05, bytes_s=2e6),
            }
        # As many processes as wires: half of what happens.
        kinds = list(possible)
        what = self._chance.choice(kinds[:2] if network is None or self._chance.random() < 0.4 else kinds[2:])
        possible[what]()
        return what

    def end(self) -> None:
        """All is well again, or will be by itself."""
        if self._network is not None:
            self._network.mend()
        for victim in self._victims:
            if self._cluster.nodes[victim].is_running:
                self._cluster.nodes[victim].resume()
            else:
                self._cluster.nodes[victim].start()
        self._cluster.wait_status("running", *self._cluster.nodes, timeout_s=SETTLED_S)


@pytest.mark.timeout(120 + 60 * ROUNDS)
def test_random_faults_under_load(request: pytest.FixtureRequest, cuttable_cluster: LocalCluster) -> None:
    """Nothing acknowledged is lost, no byte wrong, each file's history linearizable, and each file can be read in each round."""
    cluster = cuttable_cluster
    network: Network | None = None if missing() else request.getfixturevalue("network")
    seed = int(os.environ.get("SECURIFILE_SEED", random.randrange(1 << 32)))
    print(f"\nSECURIFILE_SEED={seed} (its choices, not its timing)" + ("" if network else f"; no cuts: {missing()}"))
    chance = random.Random(seed)
    trouble = Trouble(cluster, network, chance)
    rounds: list[str] = []
    tries: Counter[int] = Counter()
    slowest = 0.0
    with Load(cluster, readers=3, writers=2, paths=8, seed=seed) as load:
        for _ in range(ROUNDS):
            what = trouble.begin()
            until = time.monotonic() + chance.uniform(0.3, 3.0)
            for path in load.paths:
                begun = time.monotonic()
                nodes = chance.sample(list(cluster.nodes), len(cluster.nodes))
                tries[load.read_on_retry(path, nodes, READ_WITHIN_S)] += 1
                slowest = max(slowest, time.monotonic() - begun)
            time.sleep(max(0.0, until - time.monotonic()))
            trouble.end()
            rounds.append(f"{time.monotonic():.1f} {what}")
    for path in load.paths:
        load.read_on_retry(path, list(cluster.nodes), SETTLED_S)
    good = sum(one.status in {200, 201} for one in load.history)
    kinds = Counter(word for what in rounds for word in ("kill", "stop", "cut", "slow", "split") if word in what)
    print(f"{ROUNDS} rounds ({dict(kinds)}): {len(load.history)} operations, {good} good; load {os.getloadavg()}")
    print(f"tries of a read during a fault {sorted(tries.items())}, the slowest {slowest:.1f} s; rounds: {rounds}")
    assert load.violations() == []
    assert good > len(load.history) / 2
