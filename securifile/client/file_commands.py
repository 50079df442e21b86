"""The subcommands about files, folders and rights."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import attrs

from securifile.client.asking import Json
from securifile.client.context import Context
from securifile.client.errors import ClientError, Damaged, FileChanged, Problem
from securifile.client.local_files import StreamOutput
from securifile.client.resumable import RESUMABLE_BYTES
from securifile.client.status import bytes_text, printable, table
from securifile.http.targets import Target
from securifile.model.errors import Code, Refusal
from securifile.model.paths import check_name

_OWN_FAULT = (400, 403, 404, 409, 412, 413, 423)
"""Statuses that are about one file: the others of a folder may fare better."""


async def ls(context: Context) -> int:
    """List a folder; a file lists itself."""
    place = context.place(context.arguments.path)
    try:
        entries = [entry async for entry in context.client.entries(place)]
    except Problem as problem:
        if problem.code != Code.NOT_A_FOLDER:
            raise
        entries = [{"name": place.name, **await context.client.details(attrs.evolve(place, folder=False))}]
    context.console.result({"path": str(place), "entries": entries}, lambda: _listing(entries, context.arguments.long))
    return 0


def _listing(entries: list[Json], long: bool) -> str:
    if not long:
        return "".join(printable(_shown(entry)) + "\n" for entry in entries)
    rows = [
        (
            bytes_text(entry["size"]) if entry.get("size") is not None else "-",
            f"v{entry['version']}" if entry.get("version") else "",
            str(entry.get("modified_at", ""))[:19].replace("T", " "),
            entry.get("modified_by", ""),
            _shown(entry),
        )
        for entry in entries
    ]
    return table(("SIZE", "VERSION", "MODIFIED (UTC)", "BY", "NAME"), rows, right=(0, 1)) if rows else ""


def _shown(entry: Json) -> str:
    return f"{entry.get('name', '?')}/" if entry.get("kind") == "folder" else str(entry.get("name", "?"))


async def put(context: Context) -> int:
    """Upload files, and folders with `-r`."""
    arguments = context.arguments
    place = context.place(arguments.path)
    several = len(arguments.local) > 1
    if several and not place.folder:
        raise ClientError(f"More than one file goes into a folder: write {arguments.path}/ with a slash at its end.")
    # Refusals of a whole folder come before the first byte goes.
    folders = [local for local in arguments.local if local != "-" and _is_folder(local)]
    if folders and not arguments.recursive:
        raise ClientError(f"{folders[0]} is a folder; to upload it with all that is in it, add -r.")
    code = 0
    for local in arguments.local:
        if local == "-":
            await _put_stdin(context, place)
        elif local in folders:
            into = place.child(_name_of(_last_name(local)), folder=True) if place.folder else attrs.evolve(place, folder=True)
            code |= await _put_folder(context, local, into)
        else:
            await _put_file(context, local, place.child(_name_of(_last_name(local))) if place.folder else place)
    return code


def _is_folder(local: str) -> bool:
    return os.path.isdir(local)


def _last_name(local: str) -> str:
    """The name of a file or folder of this machine, of `.` too."""
    return os.path.basename(os.path.abspath(local))


def _name_of(local: str) -> str:
    """A name of this machine as one of the cluster. Raises `ClientError`."""
    try:
        return check_name(local)
    except Refusal as refusal:
        raise ClientError(f"{os.fsencode(local)!r} cannot be a name there: {refusal.detail}") from None


async def _put_file(context: Context, local: str, target: Target) -> None:
    answer = await context.client.upload(
        target,
        local,
        only_new=context.arguments.new,
        resumable_from=RESUMABLE_BYTES,
        progress=context.console.progress(local),
    )
    _report_stored(context, target, answer)


async def _put_stdin(context: Context, target: Target) -> None:
    if target.folder:
        raise ClientError("Standard input has no name; write the path of a file.")
    # How long it is must be known before it is sent, and it may have to be sent twice.
    with tempfile.TemporaryFile() as spool:
        await context.worker.do(shutil.copyfileobj, context.console.binary_in, spool)
        spool.flush()
        answer = await context.client.upload(target, spool, only_new=context.arguments.new, progress=context.console.progress("-"))
    _report_stored(context, target, answer)


def _report_stored(context: Context, target: Target, answer: Json) -> None:
    copies = answer.get("copies", {})
    durable, wanted = copies.get("durable"), copies.get("wanted")
    context.console.clear_line()
    version, size = answer.get("version", "?"), bytes_text(answer.get("size"))
    context.console.done(answer, f"{answer.get('path', target)}: version {version}, {size}, {durable} of {wanted} copies durable")


async def _put_folder(context: Context, local: str, target: Target) -> int:
    """Upload a folder; what cannot be is noted, and the rest goes on."""
    code = 0
    await _ensure_folder(context, target)
    taken: set[str] = set()
    for entry in sorted(os.scandir(local), key=lambda entry: entry.name):
        shown = os.path.join(local, entry.name)
        try:
            if entry.is_symlink():
                context.console.note(f"{shown}: a symbolic link, passed over")
                continue
            is_folder = entry.is_dir(follow_symlinks=False)
            if not is_folder and not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
                context.console.note(f"{shown}: not a regular file, passed over")
                continue
            name = _name_of(entry.name)
            if name in taken:
                raise ClientError("another name in this folder is the same text in other code points; rename one.")
            taken.add(name)
            child = target.child(name, folder=is_folder)
            if is_folder:
                code |= await _put_folder(context, shown, child)
            else:
                await _put_file(context, shown, child)
        except (ClientError, Refusal, OSError) as error:
            if not _about_one_file(error):
                raise
            context.console.note(f"{shown}: {_words(error)}")
            code = 1
    return code


def _about_one_file(error: Exception) -> bool:
    if isinstance(error, Problem):
        return error.status in _OWN_FAULT
    return isinstance(error, Refusal | OSError | FileChanged | Damaged) or type(error) is ClientError


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return error.detail if isinstance(error, Refusal) else str(error)


async def _ensure_folder(context: Context, folder: Target) -> None:
    if folder.is_root:
        return
    try:
        await context.client.make_folder(folder)
    except Problem as problem:
        if problem.code != Code.EXISTS or (await context.client.details(attrs.evolve(folder, folder=False))).get("kind") != "folder":
            raise


async def get(context: Context) -> int:
    """Download a file, or a folder with `-r`."""
    place, local = context.place(context.arguments.path), context.arguments.local
    if place.folder and not context.arguments.recursive:
        raise ClientError(f"{place} is a folder; to download it with all that is in it, add -r.")
    if context.arguments.recursive and (place.folder or (await context.client.details(place)).get("kind") == "folder"):
        if local == "-":
            raise ClientError("A folder cannot be written to standard output.")
        return await _get_folder(context, attrs.evolve(place, folder=True), _inside(local, place.name))
    if local == "-":
        await _write_out(context, place)
    else:
        await _get_file(context, place, _inside(local, place.name))
    return 0


def _inside(local: str, name: str) -> str:
    """Where to write: into a folder that is there, else under the name that was given."""
    return os.path.join(local, name) if os.path.isdir(local) else local


def _make_folder_here(local: str) -> None:
    # A link in the way could lead what is written out of the folder that was named.
    if os.path.islink(local):
        raise ClientError(f"{local} is a symbolic link, and would have to become a folder.")
    os.makedirs(local, exist_ok=True)


async def _get_file(context: Context, place: Target, local: str) -> None:
    if _is_folder(local):
        raise ClientError(f"{local} is a folder, and would have to become a file.")
    result = await context.client.download(place, local, progress=context.console.progress(str(place)))
    context.console.clear_line()
    context.console.done(
        {"path": str(place), "local": local, **attrs.asdict(result)},
        f"{local}: {bytes_text(result.size)} from {result.server}, {result.digest}",
    )


async def _get_folder(context: Context, place: Target, local: str) -> int:
    code = 0
    _make_folder_here(local)
    async for entry in context.client.entries(place):
        name = str(entry.get("name", ""))
        try:
            # `child` refuses what is no name: a server is not believed that `..` is one, and it leads nowhere.
            child, inside = place.child(name, folder=entry.get("kind") == "folder"), os.path.join(local, name)
            if child.folder:
                code |= await _get_folder(context, child, inside)
            else:
                await _get_file(context, child, inside)
        except (ClientError, Refusal, OSError) as error:
            if not _about_one_file(error):
                raise
            context.console.note(f"{place}{name}: {_words(error)}")
            code = 1
    return code


async def cat(context: Context) -> int:
    """Write files to standard output, one after the other."""
    for text in context.arguments.path:
        await _write_out(context, context.place(text))
    return 0


async def _write_out(context: Context, place: Target) -> None:
    await context.client.download_to(place, StreamOutput(context.console.binary_out, context.worker))


async def rm(context: Context) -> int:
    """Delete files and folders."""
    for place in [context.place(text) for text in context.arguments.path]:
        recursive = context.arguments.recursive
        if recursive and not place.folder:
            place = attrs.evolve(place, folder=(await context.client.details(place)).get("kind") == "folder")
        await context.client.delete(place, recursive=recursive and place.folder)
        context.console.done({"deleted": str(place)}, f"{place}: deleted")
    return 0


async def mv(context: Context) -> int:
    """Move or rename."""
    source, destination = context.place(context.arguments.source), context.place(context.arguments.destination)
    if destination.folder:
        destination = destination.child(source.name)
    answer = await context.client.move(source, destination)
    context.console.done(answer, f"{source} is now {answer.get('path', destination)}")
    return 0


async def mkdir(context: Context) -> int:
    """Make folders, with `-p` those they are in too."""
    for place in [context.place(text) for text in context.arguments.path]:
        if context.arguments.parents:
            for depth in range(1, len(place.segments)):
                await _ensure_folder(context, Target(place.owner, place.segments[:depth], True))
            await _ensure_folder(context, place)
            answer: Json = {"path": str(place), "kind": "folder"}
        else:
            answer = await context.client.make_folder(place)
        context.console.done(answer, f"{place}: made")
    return 0


async def info(context: Context) -> int:
    """All that is known of files or folders."""
    for text in context.arguments.path:
        details = await context.client.details(context.place(text))
        context.console.result(details, lambda details=details: _details(details))  # type: ignore[misc]
    return 0


def _details(details: Json) -> str:
    lines = [("path", details.get("path")), ("kind", details.get("kind")), ("id", details.get("id")), ("owner", details.get("owner"))]
    lines.append(("your role", details.get("role")))
    if details.get("kind") == "file":
        lines += [
            ("version", details.get("version")),
            ("size", f"{bytes_text(details.get('size'))} ({details.get('size')} bytes)"),
            ("digest", f"{details.get('algorithm')}:{details.get('digest')}"),
        ]
    lines += [("modified", details.get("modified_at")), ("by", details.get("modified_by"))]
    if "verified_at" in details:
        lines.append(("verified", details["verified_at"] or "not since it was uploaded"))
    lock = details.get("lock")
    if lock:
        lines.append(("locked by", f"{lock.get('person')} through {lock.get('node')}, for {lock.get('expires_in_s')} s more at most"))
    text = "".join(f"{name + ':':<12}{printable(value)}\n" for name, value in lines if value is not None)
    if details.get("origin"):
        rows = [("origin", details["origin"], "", details.get("origin_status", ""))]
        rows += [
            (f"replica {copy.get('priority')}", copy.get("server"), "durable" if copy.get("durable") else "pending", copy.get("status", ""))
            for copy in sorted(details.get("replicas", ()), key=lambda copy: copy.get("priority", 0))
        ]
        text += "\n" + table(("COPY", "SERVER", "STATE", "STATUS"), rows)
    return text


async def share(context: Context) -> int:
    """Give a role."""
    place, arguments = context.place(context.arguments.path), context.arguments
    answer = await context.client.grant(place, arguments.user, arguments.role)
    context.console.done(answer, f"{arguments.user} is now {arguments.role} of {place}")
    return 0


async def unshare(context: Context) -> int:
    """Take a role away."""
    place, user = context.place(context.arguments.path), context.arguments.user
    await context.client.revoke(place, user)
    context.console.done({"path": str(place), "user": user, "role": None}, f"{user} has no role of their own on {place} any more")
    return 0


async def access(context: Context) -> int:
    """Who may do what."""
    place = context.place(context.arguments.path)
    answer = await context.client.access(place)
    rows = [
        (
            grant.get("user"),
            grant.get("role"),
            grant.get("granted_by", ""),
            "" if _same(grant.get("path"), place) else f"from {grant.get('path')}",
        )
        for grant in answer.get("grants", ())
    ]
    context.console.result(
        answer,
        lambda: (
            f"You are {answer.get('role')}. "
            + ("Others:\n\n" + table(("USER", "ROLE", "GIVEN BY", ""), rows) if rows else "Nobody else has a role.\n")
        ),
    )
    return 0


def _same(path: Any, place: Target) -> bool:
    return path is None or str(path).rstrip("/") == str(place).rstrip("/")


async def shared(context: Context) -> int:
    """What others have shared with me."""
    found = await _all(context.client.shared())
    rows = [
        (one.get("role"), one.get("owner"), bytes_text(one["size"]) if one.get("size") is not None else "-", _with_slash(one))
        for one in found
    ]
    context.console.result(
        {"shared": found}, lambda: table(("ROLE", "OWNER", "SIZE", "PATH"), rows, right=(2,)) if rows else "Nothing is shared with you.\n"
    )
    return 0


def _with_slash(entry: Json) -> str:
    path = str(entry.get("path", "?"))
    return f"{path}/" if entry.get("kind") == "folder" and not path.endswith("/") else path


async def usage(context: Context) -> int:
    """Number of files and bytes a person owns."""
    user = context.arguments.user or context.username
    if context.arguments.files:
        files = await _all(context.client.owned(user))
        rows = [(bytes_text(one.get("size")), f"v{one.get('version', '?')}", one.get("path", "?")) for one in files]
        context.console.result({"files": files}, lambda: table(("SIZE", "VERSION", "PATH"), rows, right=(0, 1)) if rows else "No files.\n")
        return 0
    answer = await context.client.usage(user)
    quota = answer.get("quota_bytes")
    context.console.done(
        answer,
        f"{user}: {answer.get('files')} files, {bytes_text(answer.get('bytes'))}"
        + (f" of {bytes_text(quota)}" if quota is not None else ", no limit"),
    )
    return 0


async def _all(items: AsyncIterator[Json]) -> list[Json]:
    return [item async for item in items]
