"""Which floor each module lives on; the plan is `docs/decisions/0001-shape-of-the-house.md`.

Imports go down or sideways on the same floor, never up, never in a circle: `tests/test_floors.py`.

    floor 0  words      values, errors, interfaces: standard library, attrs, zope.interface
    floor 1  decisions  pure: time, randomness and bytes come in, effects go out as values; no reactor, no open(), no async
    floor 2  hands      disk, sockets, SQL; reactor, clock, random are arguments
    floor 3  voices     services, HTTP routes, composition; only here the global reactor has a name

The table is read from the top and the first pattern that matches a module's name wins. So a room has a line for what
is usual in it, at the end of the table, and a module of its own kind has a line of its own, above. A new module needs
a line only if it is not what is usual in its room.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

WORDS, DECISIONS, HANDS, VOICES = 0, 1, 2, 3

FLOORS: dict[str, int] = {
    # Voices, by the names they have in every room.
    "securifile.*.service": VOICES,
    "securifile.*.plugin": VOICES,
    "securifile.*_api": VOICES,
    "securifile.client.command": VOICES,
    "securifile.client.__main__": VOICES,
    "securifile.node.fronts.__main__": VOICES,
    "securifile.local.*": VOICES,
    "securifile.simulation.history": WORDS,
    "securifile.simulation.invariants": DECISIONS,
    "securifile.simulation.linearizability": DECISIONS,
    "securifile.simulation.chance": DECISIONS,
    "securifile.simulation.arguments": DECISIONS,
    "securifile.simulation.clock": HANDS,
    "securifile.simulation.disk": HANDS,
    "securifile.simulation.network": HANDS,
    "securifile.simulation.planning": DECISIONS,
    "securifile.simulation.*": VOICES,
    # what both kinds of server are as processes
    "securifile.process": HANDS,
    "securifile.workers": HANDS,
    "securifile.batches": HANDS,
    "securifile.memory": HANDS,
    "securifile.world": HANDS,
    # model: everything in it is pure; the words are those that other words are made of.
    "securifile.floors": WORDS,
    "securifile.model.digests": WORDS,
    "securifile.model.entries": WORDS,
    "securifile.model.errors": WORDS,
    "securifile.model.facts": WORDS,
    "securifile.model.ids": WORDS,
    "securifile.model.interfaces": WORDS,
    "securifile.model.paths": WORDS,
    "securifile.model.proofs": WORDS,
    "securifile.model.records": WORDS,
    "securifile.model.roles": WORDS,
    "securifile.model.servers": WORDS,
    "securifile.model.settings": WORDS,
    "securifile.model.staged": WORDS,
    "securifile.model.tickets": WORDS,
    "securifile.model.*": DECISIONS,
    # protocol
    "securifile.protocol.messages": WORDS,
    "securifile.protocol.codec": DECISIONS,
    "securifile.protocol.connection": DECISIONS,
    "securifile.protocol.frames": DECISIONS,
    "securifile.protocol.*": HANDS,
    # http
    "securifile.http.digest_fields": DECISIONS,
    "securifile.http.draft_uploads": DECISIONS,
    "securifile.http.problems": DECISIONS,
    "securifile.http.ranges": DECISIONS,
    "securifile.http.targets": DECISIONS,
    "securifile.http.tickets": DECISIONS,
    "securifile.http.tus": DECISIONS,
    "securifile.http.wire": DECISIONS,
    "securifile.http.zip_format": DECISIONS,
    "securifile.http.*": HANDS,
    # audit
    "securifile.audit.framing": DECISIONS,
    "securifile.audit.records": DECISIONS,
    "securifile.audit.*": HANDS,
    # certificates
    "securifile.certificates.join": DECISIONS,
    "securifile.certificates.names": DECISIONS,
    "securifile.certificates.*": HANDS,
    # client
    "securifile.client.errors": DECISIONS,
    "securifile.client.status": DECISIONS,
    "securifile.client.wire": DECISIONS,
    # the rooms where work is done by hand
    "securifile.admin.addresses": DECISIONS,
    "securifile.admin.*": HANDS,
    "securifile.client.*": HANDS,
    "securifile.node.pack_format": DECISIONS,
    "securifile.node.sidecars": DECISIONS,
    "securifile.node.*": HANDS,
    "securifile.sql.*": HANDS,
}


def floor_of(module: str, packages: Sequence[str] = ()) -> int | None:
    """The floor of a module by its dotted name; None when the table does not say.

    Args:
        module: The dotted name, without `.__init__` for a package.
        packages: The names that are packages: their `__init__.py` is on floor 0.
    """
    if module in packages:
        return WORDS
    return next((floor for pattern, floor in FLOORS.items() if fnmatchcase(module, pattern)), None)
