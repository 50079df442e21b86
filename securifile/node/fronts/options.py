"""What a front is given by its node process when it is started: descriptors, and the words of its command line."""

from __future__ import annotations

from pathlib import Path

import attrs

CONTROL, HANDOVER, SCOREBOARD, LIFELINE = 3, 4, 5, 6
"""The descriptors that a front finds when it starts. It has nothing to do with the last one but to have it: see `node/sentinel`."""


@attrs.frozen(kw_only=True)
class FrontOptions:
    """What a front is told by its node process."""

    data: Path
    number: int
    """Its place on the scoreboard."""
    fronts: int
    """How many places there are."""
    parent: int
    """The node process."""
    tls: bool
    connections_max: int

    @property
    def arguments(self) -> list[str]:
        """As the arguments of a command line."""
        return [
            str(self.data),
            str(self.number),
            str(self.fronts),
            str(self.parent),
            "tls" if self.tls else "plain",
            str(self.connections_max),
        ]

    @classmethod
    def of(cls, arguments: list[str]) -> FrontOptions:
        """What `arguments` gave."""
        data, number, fronts, parent, tls, connections_max = arguments
        return cls(
            data=Path(data),
            number=int(number),
            fronts=int(fronts),
            parent=int(parent),
            tls=tls == "tls",
            connections_max=int(connections_max),
        )
