"""The JSON shapes of what people see: entries, versions, servers, people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import attrs

from securifile.model.entries import Version
from securifile.model.facts import Entry, File, Person
from securifile.model.roles import Role
from securifile.model.settings import ClusterSettings


def time_text(seconds: float) -> str:
    """Wall-clock seconds as RFC 3339 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def path_text(owner: str, segments: tuple[str, ...]) -> str:
    """A path as people write it: `owner/folder/name`."""
    return "/".join((owner, *segments))


def entry_json(entry: Entry) -> dict[str, Any]:
    """An entry in a list."""
    if isinstance(entry, File):
        return {"name": entry.name, "kind": "file", "id": str(entry.id), **_content(entry.version)}
    return {"name": entry.name, "kind": "folder", "id": str(entry.id), "modified_at": time_text(entry.created_at)}


def _content(version: Version) -> dict[str, Any]:
    return {
        "version": version.number,
        "size": version.size,
        "digest": version.digest.hex(),
        "algorithm": version.algorithm.value,
        "modified_at": time_text(version.committed_at),
        "modified_by": version.committed_by,
    }


def verified_json(version: Version, checked: Mapping[str, float]) -> dict[str, Any]:
    """When a file was last verified: the copy that was last, and each copy (null: never since it was made)."""
    times = {holder: checked.get(holder) for holder in version.holders}
    return {
        "verified_at": _time_or_null(max((at for at in times.values() if at is not None), default=None)),
        "verified": [{"server": holder, "at": _time_or_null(at)} for holder, at in times.items()],
    }


def _time_or_null(at: float | None) -> str | None:
    return None if at is None else time_text(at)


def details_json(entry: Entry, path: str, role: Role, status_of: Callable[[str], str]) -> dict[str, Any]:
    """Everything about one entry; `status_of` gives a server's status."""
    common = {"path": path, "owner": entry.owner, "role": role.value}
    if not isinstance(entry, File):
        return {**entry_json(entry), **common}
    version = entry.version
    return {
        **entry_json(entry),
        **common,
        "origin": version.origin,
        "origin_status": status_of(version.origin),
        "replicas": [
            {"server": copy.node, "priority": copy.priority, "durable": copy.durable, "status": status_of(copy.node)}
            for copy in version.copies[1:]
        ],
    }


def uploaded_json(file: File, path: str, wanted: int) -> dict[str, Any]:
    """The answer to an upload: what was stored, and where."""
    version = file.version
    return {
        "path": path,
        "id": str(file.id),
        "version": version.number,
        "size": version.size,
        "digest": version.digest.hex(),
        "algorithm": version.algorithm.value,
        "origin": version.origin,
        "replicas": [{"server": copy.node, "priority": copy.priority, "durable": copy.durable} for copy in version.copies[1:]],
        "copies": {"wanted": wanted, "durable": sum(copy.durable for copy in version.copies)},
    }


def person_json(person: Person) -> dict[str, Any]:
    """An account."""
    return {
        "username": person.username,
        "email": person.email,
        "administrator": person.administrator,
        "valid_from": time_text(person.valid_from),
        "valid_until": None if person.valid_until is None else time_text(person.valid_until),
        "disabled": person.disabled,
        "quota_bytes": person.quota_bytes,
    }


def settings_json(settings: ClusterSettings) -> dict[str, Any]:
    """The cluster's settings, by name."""
    return attrs.asdict(settings)


def parse_time(text: str) -> float:
    """Wall-clock seconds from an RFC 3339 time; it must say its offset (`Z`, `+01:00`). Raises `ValueError`."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time needs its offset from UTC")
    return moment.timestamp()
