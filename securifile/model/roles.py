"""Who may do what: the table of the design, and nothing else."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What a person is to an entry; the first is above all others."""

    OWNER = "owner"
    MASTER = "master"
    EDITOR = "editor"
    READER = "reader"


class Action(StrEnum):
    """What a person can want to do with an entry."""

    READ = "read"
    MODIFY = "modify"
    CREATE = "create"
    SHARE = "share"
    DELETE = "delete"
    MOVE = "move"


_ORDER = [Role.READER, Role.EDITOR, Role.MASTER, Role.OWNER]

_PERMITTED: dict[Role, frozenset[Action]] = {
    Role.READER: frozenset({Action.READ}),
    Role.EDITOR: frozenset({Action.READ, Action.MODIFY, Action.CREATE}),
    Role.MASTER: frozenset({Action.READ, Action.MODIFY, Action.CREATE, Action.SHARE}),
    Role.OWNER: frozenset(Action),
}

GRANTABLE = (Role.MASTER, Role.EDITOR, Role.READER)
"""Roles that can be given; ownership cannot."""


def permits(role: Role | None, action: Action) -> bool:
    """Whether `role` (None: no role at all) allows `action`."""
    return role is not None and action in _PERMITTED[role]


def strongest(roles: list[Role]) -> Role | None:
    """The strongest of some roles: what a person is who was granted several along a path."""
    return max(roles, key=_ORDER.index, default=None)
