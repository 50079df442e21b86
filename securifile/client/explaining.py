"""`securifile explain`: why a file's copies, or a node, are as they are, and what happens next, on a page of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from securifile.client.asking import Json
from securifile.client.context import Context
from securifile.client.status import bytes_text, printable, status_text, table


async def explain(context: Context) -> int:
    """Explain a file, by its path, or a node, by its name."""
    what = context.arguments.what
    if "/" in what:
        answer = await context.client.explain(context.place(what))
        context.console.result(answer, lambda: file_page(answer))
    else:
        answer = await context.client.explain_server(what)
        context.console.result(answer, lambda: node_page(answer))
    return 0


def file_page(told: Json) -> str:
    """The answer of `GET /api/v1/explain/…`."""
    copies = told.get("copies", ())
    serving = told.get("serving", ())
    lines = [
        ("path", told.get("path")),
        ("version", f"{told.get('version')}, {bytes_text(told.get('size'))}, since {told.get('committed_at')}"),
        ("copies", f"{sum(_counts(copy) for copy in copies)} good, {told.get('wanted')} wanted"),
        ("served by", serving[0] + (f", else {', '.join(serving[1:])}" if serving[1:] else "") if serving else "nobody now"),
        ("modified by", _lock(told)),
    ]
    rows = [
        (
            "origin" if copy.get("priority") == 0 else f"replica {copy.get('priority')}",
            copy.get("server"),
            copy.get("worth") if copy.get("durable") else "pending",
            copy.get("verified_at") or "not since it was made",
            copy.get("why"),
        )
        for copy in copies
    ]
    text = _fields(lines) + "\n" + table(("COPY", "SERVER", "WORTH", "VERIFIED", "BECAUSE"), rows)
    observed = {str(copy.get("server")): copy.get("observers", ()) for copy in copies}
    return text + _opinions(observed) + _next(told)


def node_page(told: Json) -> str:
    """The answer of `GET /api/v1/servers/NAME/explain`."""
    boot, admitted = told.get("boot"), told.get("boot_admitted")
    if boot is None:
        life = "no heartbeat lately"
    else:
        life = "the one that was admitted" if boot == admitted else "another one than was admitted"
    behind = "" if told.get("caught_up") else f", the catalogue at {told.get('catalogue_position')}"
    lines = [
        ("node", told.get("name")),
        ("status", f"{status_text(told)}, since {told.get('since')}"),
        ("because", told.get("why")),
        ("heartbeats", "answered" if told.get("answers") else "not answered"),
        ("process", life),
        ("index", f"at {told.get('position')}{behind}" if told.get("position") else "not known"),
        ("copies", f"{told.get('copies')}, {told.get('only_copies')} of them the only one on a running node"),
        ("verified", f"all of them since {told['oldest_check_at']}" if told.get("oldest_check_at") else None),
        ("put aside", f"{told['quarantined']} bad blobs" if told.get("quarantined") else None),
    ]
    text = _fields(lines) + _opinions({str(told.get("name")): told.get("observers", ())})
    trail = [
        (one.get("at"), one.get("event"), ": ".join(str(part) for part in (one.get("path") or one.get("entry"), one.get("detail")) if part))
        for one in told.get("trail", ())
    ]
    if trail:
        text += "\n" + table(("WRITTEN DOWN", "EVENT", ""), trail)
    return text + _next(told)


def _counts(copy: Mapping[str, Any]) -> bool:
    return bool(copy.get("durable")) and copy.get("worth") == "good"


def _lock(told: Json) -> str:
    lock = told.get("lock")
    if lock:
        return f"{lock.get('person')} through {lock.get('node')}, for {lock.get('expires_in_s')} s more unless that is renewed"
    return "nobody now" if told.get("lock_known") else "not known: no server that has the file can be asked"


def _fields(lines: Sequence[tuple[str, object]]) -> str:
    return "".join(f"{name + ':':<13}{printable(value)}\n" for name, value in lines if value is not None)


def _opinions(observed: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Who holds whom for what, a line a subject; those that agree are named together."""
    rows = []
    for subject, observers in observed.items():
        by_status: dict[str, list[str]] = {}
        for one in observers:
            by_status.setdefault(str(one.get("status")), []).append(str(one.get("observer")))
        if by_status:
            rows.append((subject, "; ".join(f"{status} by {', '.join(names)}" for status, names in sorted(by_status.items()))))
    return "\n" + table(("SERVER", "HELD FOR"), rows) if rows else ""


def _next(told: Json) -> str:
    return "\nnext:\n" + "".join(f"  {printable(sentence)}\n" for sentence in told.get("next", ()))
