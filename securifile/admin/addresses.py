"""Whether the addresses that a node tells of itself can be its own: everybody will be sent there."""

from __future__ import annotations

from collections.abc import Iterable

from securifile.model.errors import Code, Refusal
from securifile.model.facts import Server
from securifile.model.servers import ServerKind, Status, check_address, check_host, check_url, is_loopback


def check_addresses(node: Server, members: Iterable[Server]) -> None:
    """Refuse addresses that nobody could connect to: every server of the cluster will try.

    Raises:
        Refusal: BAD_REQUEST, also when the node has TLS and the admin servers have not, or the other way round.
    """
    try:
        scheme, _ = check_url(node.url)
        check_address(node.protocol_address)
    except ValueError as error:
        raise Refusal(Code.BAD_REQUEST, f"{node.name} cannot be reached like this: {error}.") from error
    schemes = {admin.url.partition("://")[0] for admin in members if admin.kind is ServerKind.ADMIN}
    if schemes and scheme not in schemes:
        raise Refusal(
            Code.BAD_REQUEST, "Either the admin server or the node runs with --no-tls, and the other does not. Start both the same way."
        )


def check_own(node: Server, members: Iterable[Server]) -> None:
    """Refuse addresses that are not the node's own: everybody would be sent there for its files.

    A running node's and an admin server's addresses are theirs. A loopback address leads each server to itself; it is good only where all
    servers are on one machine, which is where the admin servers have such addresses, too.

    Raises:
        Refusal: BAD_REQUEST.
    """
    others = [other for other in members if other.name != node.name]
    for host in sorted(_hosts_of(node)):
        far = [other.name for other in others if other.kind is ServerKind.ADMIN and not any(map(is_loopback, _hosts_of(other)))]
        if is_loopback(host) and far:
            raise Refusal(
                Code.BAD_REQUEST,
                f"{host} is every machine's own address, and {far[0]} is on another one: start {node.name} with --public and the name or"
                " address under which the other servers reach it.",
            )
    for other in others:
        taken = _addresses_of(node) & _addresses_of(other)
        if taken and (other.kind is ServerKind.ADMIN or other.status is Status.RUNNING):
            raise Refusal(Code.BAD_REQUEST, f"{min(taken)} is {other.name}; it cannot be an address of {node.name}.")


def _addresses_of(server: Server) -> set[str]:
    """Each as `host:port`."""
    told = (server.url.partition("://")[2].partition("/")[0], server.protocol_address, server.syslog_address)
    return {address.lower() for address in told if address}


def check_hosts(node: Server, hosts: Iterable[str], members: Iterable[Server]) -> None:
    """Refuse names in a node's certificate by which another server is known: people would take the node for that one.

    Two servers on one machine have the same host; so a node may have in its certificate what it is itself reached by.

    Raises:
        Refusal: BAD_REQUEST.
    """
    own = _hosts_of(node)
    for host in hosts:
        try:
            check_host(host)
        except ValueError as error:
            raise Refusal(Code.BAD_REQUEST, f"The certificate cannot be made: {error}.") from error
        if is_loopback(host) or host.lower() in own:
            continue
        for other in members:
            if other.name != node.name and host.lower() in {other.name, *_hosts_of(other)}:
                raise Refusal(Code.BAD_REQUEST, f"{host} is {other.name}; it cannot be in the certificate of {node.name}.")


def _hosts_of(server: Server) -> set[str]:
    return {text.rpartition(":")[0].strip("[]").lower() for text in (server.url.partition("://")[2], server.protocol_address)}
