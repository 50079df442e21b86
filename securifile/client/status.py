"""The cluster's status as a page of text: the table that `securifile status` and `twistd securifile-admin status` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")

NO_TLS = "TLS IS OFF: everything, passwords too, goes readable over the network. This is for debugging only."


def bytes_text(count: float | None) -> str:
    """A number of bytes for people: three digits and a unit; `-` when it is not known."""
    if count is None:
        return "-"
    size, unit = float(count), _UNITS[0]
    for unit in _UNITS:
        if abs(size) < 999.5 or unit == _UNITS[-1]:
            break
        size /= 1024
    if unit == "B":
        return f"{size:.0f} B"
    return f"{size:.1f} {unit}" if size < 99.95 else f"{size:.0f} {unit}"


def age_text(seconds: float | None) -> str:
    """A span of time for people; `never` when there was no beginning."""
    if seconds is None:
        return "never"
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    for limit, unit_s, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def printable(text: object) -> str:
    """Text that does nothing to a terminal: whatever is not printable is written as an escape."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode() for letter in str(text))


def table(titles: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> str:
    """Columns under titles, each as wide as its widest cell.

    Args:
        titles: one a column.
        rows: as many cells each.
        right: numbers of the columns that are aligned to the right.
    """
    cells = [[printable(cell) for cell in row] for row in (titles, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(titles))]
    lines = (
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )
    return "".join(line.rstrip() + "\n" for line in lines)


def warnings_of(cluster: Mapping[str, Any]) -> list[str]:
    """What an administrator must know about the cluster, TLS being off above all."""
    servers = cluster.get("servers", ())
    warnings = [str(warning) for warning in cluster.get("warnings", ())]
    if any(str(server.get("url", "")).startswith("http://") for server in servers) and not any("TLS" in warning for warning in warnings):
        warnings.insert(0, NO_TLS)
    return warnings


def verified_text(server: Mapping[str, Any]) -> str:
    """When the copies of a node were verified: the one that has waited longest, and what was found bad."""
    age_s, quarantined = server.get("oldest_check_age_s"), server.get("quarantined")
    if age_s is None and not quarantined:
        return "-"
    return ("-" if age_s is None else age_text(age_s) + " ago") + (f", {quarantined} bad blobs put aside" if quarantined else "")


def _soundness(nodes: Sequence[Mapping[str, Any]]) -> str:
    """A line about all copies; empty when no node has told of its own."""
    ages = [node["oldest_check_age_s"] for node in nodes if node.get("oldest_check_age_s") is not None]
    aside = [f"{printable(node.get('name', '?'))} {node['quarantined']}" for node in nodes if node.get("quarantined")]
    return (f"no copy unverified for longer than {age_text(max(ages))}\n" if ages else "") + (
        f"bad blobs put aside: {', '.join(aside)}\n" if aside else ""
    )


def status_table(cluster: Mapping[str, Any]) -> str:
    """The answer of `GET /api/v1/servers` as people read it: warnings, one line a server, and how many are running."""
    servers = sorted(cluster.get("servers", ()), key=lambda server: (server.get("kind") != "admin", str(server.get("name"))))
    banner = "".join(f"WARNING: {printable(warning)}\n" for warning in warnings_of(cluster))
    rows = [
        (
            server.get("name", "?"),
            server.get("kind", "?"),
            status_text(server),
            bytes_text(server.get("used_bytes")),
            bytes_text(server.get("available_bytes")),
            age_text(server.get("heartbeat_age_s")),
            server.get("url", ""),
        )
        for server in servers
    ]
    nodes = [server for server in servers if server.get("kind") == "node"]
    running = sum(server.get("status") == "running" for server in nodes)
    summary = f"{running} of {len(nodes)} nodes running"
    if cluster.get("cluster"):
        summary = f"cluster {printable(cluster['cluster'])}: {summary}"
    listing = table(("SERVER", "KIND", "STATUS", "USED", "AVAILABLE", "HEARTBEAT", "URL"), rows, right=(3, 4, 5)) if rows else ""
    return (banner + "\n" if banner else "") + (listing + "\n" if listing else "") + summary + "\n" + _soundness(nodes)


def status_text(server: Mapping[str, Any]) -> str:
    """The status, so written that one which is not `running` is seen in a long list, and what an administrator has in mind for it."""
    status = str(server.get("status", "?"))
    more = [
        word for word, holds in (("offline", "offline"), ("draining", "draining"), ("being verified", "verifying")) if server.get(holds)
    ]
    return (status if status == "running" else status.upper()) + (f" ({', '.join(more)})" if more else "")
