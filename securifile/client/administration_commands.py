"""The subcommands for signing in, and about people, servers and settings."""

from __future__ import annotations

import json
from typing import Any

from securifile.client import configuration
from securifile.client.arguments import UNLIMITED
from securifile.client.asking import Json, KnownServer
from securifile.client.configuration import Session
from securifile.client.context import Context
from securifile.client.errors import ClientError, Problem, Uncertain, Unreachable
from securifile.client.status import NO_TLS, age_text, bytes_text, printable, status_table, status_text, table, verified_text
from securifile.client.wire import split_url


async def login(context: Context) -> int:
    """Sign in and keep the session."""
    arguments = context.arguments
    url = arguments.url if "://" in arguments.url else f"https://{arguments.url}"
    try:
        origin, _ = split_url(url)
    except ValueError as error:
        raise ClientError(f"{error}.") from None
    root_pem = _text_of(arguments.ca) if arguments.ca else None
    if origin.scheme == "http":
        context.console.note(NO_TLS)
    first = KnownServer(name="", url=str(origin), kind="admin")
    client = context.connect((first,), root_pem, None)
    answer = await client.sign_in(arguments.user, _password(context, f"Password for {arguments.user}: "))
    # The address that was given stays known: the servers' own may not be reachable from everywhere.
    servers = client.servers if any(server.url.rstrip("/") == first.url for server in client.servers) else (*client.servers, first)
    user = answer.get("user", {})
    username = str(user.get("username", arguments.user))
    configuration.save(
        context.folder,
        Session(username=username, token=client.token or "", servers=servers, root_pem=root_pem, expires_at=answer.get("expires_at")),
    )
    shown = {name: value for name, value in answer.items() if name != "token"}
    nodes = sum(server.kind == "node" for server in servers)
    context.console.done(shown, f"Signed in as {username} until {answer.get('expires_at', 'further notice')}; {nodes} nodes are known.")
    return 0


def _text_of(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read()


async def logout(context: Context) -> int:
    """End the session, here and on the servers."""
    if context.operator_folder:
        raise ClientError("The operator's key is the admin server's, and cannot be signed out.")
    try:
        await context.client.sign_out()
    except Problem as problem:
        if problem.status != 401:
            raise
    except (Unreachable, Uncertain) as error:
        configuration.forget(context.folder)
        raise ClientError(
            f"The session is forgotten here, but goes on at the servers until {context.session.expires_at}. {error}"
        ) from error
    configuration.forget(context.folder)
    context.console.done({"signed_in": False}, "Signed out.")
    return 0


async def whoami(context: Context) -> int:
    """Who is signed in."""
    session = context.session
    if session.username is None:
        context.console.done({"operator": session.servers[0].url}, f"The operator of the admin server at {session.servers[0].url}.")
        return 0
    person = await context.client.user(session.username)
    context.console.result(person, lambda: _person(person) + f"signed in:  until {printable(session.expires_at)}\n")
    return 0


def _password(context: Context, prompt: str) -> str:
    arguments = context.arguments
    if arguments.password_file:
        with open(arguments.password_file, encoding="utf-8") as file:
            password = file.readline().rstrip("\r\n")
    elif arguments.password_stdin:
        password = context.console.line()
    else:
        password = context.console.secret(prompt)
    if not password:
        raise ClientError("The password is empty.")
    return password


async def status(context: Context) -> int:
    """The servers' status."""
    cluster = await context.client.cluster()
    context.console.result(cluster, lambda: status_table(cluster))
    return 0


# People.


async def user_list(context: Context) -> int:
    """Everybody."""
    people = [person async for person in context.client.users()]
    rows = [
        (
            person.get("username"),
            person.get("email"),
            "administrator" if person.get("administrator") else "",
            "DISABLED" if person.get("disabled") else "",
            str(person.get("valid_until") or "")[:10],
            bytes_text(person["quota_bytes"]) if person.get("quota_bytes") is not None else "",
        )
        for person in people
    ]
    context.console.result({"users": people}, lambda: table(("USER", "E-MAIL", "", "", "VALID UNTIL", "QUOTA"), rows, right=(5,)))
    return 0


async def user_add(context: Context) -> int:
    """Create a person."""
    arguments = context.arguments
    fields: Json = {"username": arguments.name, "email": arguments.email, **_validity(context)}
    if arguments.administrator:
        fields["administrator"] = True
    if arguments.password_file or arguments.password_stdin:
        fields["password"] = _password(context, "")
    answer = await context.client.add_user(**fields)
    made = answer.get("password") if "password" not in fields else None
    context.console.done(answer, f"{arguments.name} is added." + (f" The password, shown only this once: {made}" if made else ""))
    return 0


async def user_set(context: Context) -> int:
    """Change a person's fields."""
    arguments = context.arguments
    changes: Json = _validity(context)
    if arguments.email is not None:
        changes["email"] = arguments.email
    if arguments.administrator is not None:
        changes["administrator"] = arguments.administrator == "yes"
    if not changes:
        raise ClientError("Nothing to change was given; see securifile user set --help.")
    return await _change_person(context, arguments.name, changes)


def _validity(context: Context) -> Json:
    arguments = context.arguments
    fields: Json = {}
    if arguments.valid_from is not None:
        fields["valid_from"] = arguments.valid_from
    if arguments.valid_until is not None:
        fields["valid_until"] = None if arguments.valid_until == "never" else arguments.valid_until
    if arguments.quota is not None:
        fields["quota_bytes"] = None if arguments.quota == UNLIMITED else arguments.quota
    return fields


async def _change_person(context: Context, name: str, changes: Json) -> int:
    person = await context.client.change_user(name, **changes)
    context.console.result(person, lambda: _person(person) if person else f"{printable(name)} is changed.\n")
    return 0


async def user_show(context: Context) -> int:
    """One person."""
    person = await context.client.user(context.arguments.name)
    context.console.result(person, lambda: _person(person))
    return 0


def _person(person: Json) -> str:
    quota = person.get("quota_bytes")
    lines = (
        ("user", person.get("username")),
        ("e-mail", person.get("email")),
        ("rights", "administrator" if person.get("administrator") else "person"),
        ("account", "DISABLED" if person.get("disabled") else "open"),
        ("valid", f"{person.get('valid_from') or ''} until {person.get('valid_until') or 'further notice'}"),
        ("quota", bytes_text(quota) if quota is not None else "none"),
    )
    return "".join(f"{name + ':':<12}{printable(value)}\n" for name, value in lines)


async def user_disable(context: Context) -> int:
    """Close an account."""
    return await _change_person(context, context.arguments.name, {"disabled": True})


async def user_enable(context: Context) -> int:
    """Open an account again."""
    return await _change_person(context, context.arguments.name, {"disabled": False})


async def user_password(context: Context) -> int:
    """Change a password."""
    name = context.arguments.name or context.username
    changes: Json = {}
    if name == context.session.username:
        changes["current_password"] = (
            context.console.line() if context.arguments.password_stdin else context.console.secret("Your current password: ")
        )
    changes["password"] = _password(context, f"New password for {name}: ")
    asked = not (context.arguments.password_stdin or context.arguments.password_file)
    if asked and context.console.secret("The same again: ") != changes["password"]:
        raise ClientError("The two are not the same; nothing was changed.")
    await context.client.change_user(name, **changes)
    context.console.done({"username": name}, f"The password of {name} is changed.")
    return 0


async def user_remove(context: Context) -> int:
    """Remove a person."""
    await context.client.remove_user(context.arguments.name, files=context.arguments.files)
    context.console.done({"removed": context.arguments.name}, f"{context.arguments.name} is removed.")
    return 0


# Servers.


async def node_show(context: Context) -> int:
    """One server, and who holds it for what."""
    server = await context.client.server(context.arguments.name)
    rows = [(one.get("observer"), one.get("status"), one.get("since", "")) for one in server.get("observers", ())]
    lines = [("name", server.get("name")), ("kind", server.get("kind")), ("status", status_text(server)), ("since", server.get("since"))]
    lines += [(name, server.get(name)) for name in ("url", "protocol_address", "position")]
    lines.append(("storage", f"{bytes_text(server.get('used_bytes'))} used, {bytes_text(server.get('available_bytes'))} available"))
    lines.append(("heartbeat", age_text(server.get("heartbeat_age_s")) + " ago" if server.get("heartbeat_age_s") is not None else "never"))
    if server.get("kind") == "node":
        lines.append(("oldest check", verified_text(server)))
    context.console.result(
        server,
        lambda: (
            "".join(f"{name.replace('_', ' ') + ':':<18}{printable(value)}\n" for name, value in lines if value is not None)
            + ("\n" + table(("OBSERVER", "HOLDS IT FOR", "SINCE"), rows) if rows else "")
        ),
    )
    return 0


async def node_invite(context: Context) -> int:
    """Let a new node join."""
    answer = await context.client.invite(context.arguments.name)
    context.console.result(answer, lambda: _invitation(answer))
    return 0


def _invitation(answer: Json) -> str:
    return (
        f"{printable(answer.get('token'))}\n\n"
        f"Until {printable(answer.get('expires_at'))}, on the new machine, with this token in a file:\n"
        f"  twistd -n securifile-node --data DIR --join-file FILE --listen 0.0.0.0 --public ADDRESS\n"
    )


async def node_invites(context: Context) -> int:
    """Invitations that were not used yet."""
    answer = await context.client.invites()
    rows = [(one.get("name"), one.get("expires_at")) for one in answer.get("invites", ())]
    context.console.result(answer, lambda: table(("NAME", "UNTIL"), rows) if rows else "No invitations are open.\n")
    return 0


async def node_remove(context: Context) -> int:
    """Remove a node from the cluster."""
    name, force = context.arguments.name, context.arguments.force
    if context.arguments.dry_run:
        answer = await context.client.remove_server(name, dry_run=True, force=force)
        copies = answer.get("copies")
        context.console.done(answer, f"{name} can be removed: each of its {copies} copies has another on a running node. Nothing was done.")
        return 0
    await context.client.remove_server(name, force=force)
    context.console.done({"removed": name}, f"{name} is no member of the cluster any more.")
    return 0


async def node_command(context: Context) -> int:
    """Take a node offline, or put it online."""
    name, command = context.arguments.name, context.arguments.second
    answer = await context.client.command_server(name, command)
    if command == "offline":
        told = f"{name} is offline: it serves nobody, and its copies are made anew elsewhere only if it stays so for long."
    elif answer.get("status") == "running":
        told = f"{name} is running already."
    else:
        told = f"{name} is verified by the others as soon as it answers and has caught up, and is running then."
    context.console.done(answer, f"{told} To watch: securifile explain {name}")
    return 0


async def node_repair(context: Context) -> int:
    """Let a node repair itself, and wait until it has."""
    name = context.arguments.name
    answer = await context.client.command_server(name, "repair")
    if answer.get("under_way"):
        context.console.note(f"{name} is still reading what it has; it goes on if this command is interrupted.")
    while answer.get("under_way"):
        answer = await context.client.command_server(name, "repair")
    lost = answer.get("lost", ())
    told = f"{name}: {answer.get('checked')} copies checked, {answer.get('fetched')} fetched again, {len(lost)} could not be had."
    if not lost:
        context.console.done(answer, f"{told} To put it back: securifile node online {name}")
        return 0
    listed = "".join(f"  {printable(file)}\n" for file in lost)
    context.console.result(answer, lambda: f"{printable(told)} Files, by id, that no running server could give whole:\n{listed}")
    return 1


async def node_drain(context: Context) -> int:
    """Have a node's files kept elsewhere, or no longer."""
    name, draining, dry_run = context.arguments.name, context.arguments.second == "drain", context.arguments.dry_run
    answer = await context.client.drain_server(name, draining, dry_run=dry_run)
    if draining:
        told = _drained(name, answer)
    elif dry_run:
        told = f"Files would be kept on {name} again. Nothing was done."
    else:
        told = f"Files are kept on {name} again; it has {answer.get('copies')} copies."
    context.console.done(answer, told)
    return 0


def _drained(name: str, answer: Json) -> str:
    copies, only = answer.get("copies"), answer.get("only_copies")
    if answer.get("dry_run"):
        return f"{copies} copies would be made on other nodes, {only} of them the only one on a running node. Nothing was done."
    if not copies:
        return f"Nothing is left on {name}. To take it out of the cluster: securifile node remove {name}"
    return f"{copies} copies are made on other nodes now, and {name} goes on serving. To watch: securifile explain {name}"


async def node_replace(context: Context) -> int:
    """Invite a new node; once that runs, drain the old one. The same command does whichever is next."""
    old, new, dry_run = context.arguments.name, context.arguments.new, context.arguments.dry_run
    if old == new:
        raise ClientError("The new node needs another name: files are known to be on a node by its name.")
    servers = {server.get("name"): server for server in (await context.client.cluster()).get("servers", ())}
    if servers.get(old, {}).get("kind") != "node":
        raise ClientError(f"There is no node {old}.")
    joined = servers.get(new)
    if joined is None:
        for invited in (await context.client.invites()).get("invites", ()):
            if invited.get("name") == new:
                raise ClientError(
                    f"{new} is invited until {invited.get('expires_at')}, and has not joined yet: start it with its token."
                    f" If that is lost, another one: securifile node invite {new}"
                )
        if dry_run:
            context.console.done(
                {"next": "invite"}, f"{new} would be invited to join. When it runs, {old} would be drained. Nothing was done."
            )
            return 0
        answer = await context.client.invite(new)
        again = f"When {new} is running, give this command again, and {old} is drained: securifile node replace {old} {new}\n"
        context.console.result({"next": "start", **answer}, lambda: _invitation(answer) + again)
        return 0
    if joined.get("status") != "running":
        raise ClientError(f"{new} is {joined.get('status')}; {old} is drained when {new} is running. To see why: securifile explain {new}")
    answer = await context.client.drain_server(old, True, dry_run=dry_run)
    context.console.done({"next": "remove" if not answer.get("copies") else "wait", **answer}, _drained(old, answer))
    return 0


# Settings.


async def cluster_show(context: Context) -> int:
    """Every setting."""
    _show_settings(context, await context.client.settings())
    return 0


async def cluster_set(context: Context) -> int:
    """Change settings."""
    changes: Json = {}
    for text in context.arguments.setting:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ClientError(f"{text!r} is not KEY=VALUE, as replicas=2.")
        changes[name] = _setting(value)
    _show_settings(context, await context.client.change_settings(changes))
    return 0


def _setting(text: str) -> Any:
    """A number, true, false or null as JSON has it; anything else is text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, dict | list) else value


def _show_settings(context: Context, settings: Json) -> None:
    rows = [(name, json.dumps(value) if not isinstance(value, str) else value) for name, value in sorted(settings.items())]
    context.console.result(settings, lambda: table(("SETTING", "VALUE"), rows))
