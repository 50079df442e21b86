"""What may be said to the `securifile` command: its subcommands and their options.

`docs/command.md` shows them with examples. A password is never an argument: other people of the
machine can read the arguments of every process.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from datetime import date
from typing import Any

from securifile.simulation.arguments import add_simulate

PATHS = """\
PATH is OWNER/FOLDER/NAME, for instance alice/docs/a.txt, whoever you are; written with a slash in front it is your own:
for alice, /docs/a.txt is the same. A slash at the end says that it is a folder.

Exit codes: 0 done; 1 not, or not all, done (standard error says why); 2 not understood; 130 interrupted.
"""

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE)
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(?:Z|[+-][0-9]{2}:[0-9]{2})")

UNLIMITED = -1
"""A quota that is none, between the parser and the API (where it is null)."""


def size(text: str) -> int:
    """A number of bytes: `500M`, `10GiB`, `none`. Units are powers of 1024. Raises `ArgumentTypeError`."""
    if text.lower() == "none":
        return UNLIMITED
    matched = _SIZE.fullmatch(text.strip())
    if matched is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write for instance 500M, 10G or none")
    return int(float(matched[1]) * 1024 ** " KMGTP".index(matched[2].upper() or " "))


def first_moment(text: str) -> str:
    """A time, or a day for its beginning (UTC). Raises `ArgumentTypeError`."""
    return _moment(text, "T00:00:00Z")


def last_moment(text: str) -> str:
    """A time, or a day for its end (UTC), or `never`. Raises `ArgumentTypeError`."""
    return "never" if text == "never" else _moment(text, "T23:59:59Z")


def _moment(text: str, of_day: str) -> str:
    if _TIME.fullmatch(text):
        return text
    try:
        return date.fromisoformat(text).isoformat() + of_day
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 2026-12-31 or 2026-12-31T12:00:00Z") from None


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `verb` is the subcommand, of two words where it has two."""
    common = argparse.ArgumentParser(add_help=False)
    # SUPPRESS: given before the subcommand, it must not be undone by the subcommand's default.
    common.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print the servers' answers as JSON, one value a line"
    )
    common.add_argument(
        "--operator",
        metavar="DATA_DIR",
        default=argparse.SUPPRESS,
        help="act as the operator of the admin server with this data folder (default: $SECURIFILE_ADMIN_DATA)",
    )
    top = argparse.ArgumentParser(
        prog="securifile",
        description="Store, share and fetch files in a SecuriFile cluster.",
        epilog=PATHS,
        parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = top.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    group = _Group(verbs, common)
    for add in (_session, _files, _rights, _administration):
        add(group)
    # Of no cluster: it needs no session, and its options are its own.
    add_simulate(verbs.add_parser("simulate", help="Run a simulated cluster under faults, or forecast what a cluster can promise."))
    return top


class _Group:
    """Subcommands under one heading; `prefix` is their first word, if they have two."""

    def __init__(self, verbs: Any, common: argparse.ArgumentParser, prefix: str = "") -> None:
        self._verbs = verbs
        self._common = common
        self._prefix = prefix

    def verb(self, name: str, text: str) -> argparse.ArgumentParser:
        """A new subcommand."""
        made: argparse.ArgumentParser = self._verbs.add_parser(
            name, help=text, description=text, parents=[self._common], epilog=PATHS, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        made.set_defaults(action=f"{self._prefix} {name}".strip())
        return made

    def group(self, name: str, text: str) -> _Group:
        """Subcommands whose first word is `name`."""
        made = self._verbs.add_parser(name, help=text, description=text, parents=[self._common])
        return _Group(made.add_subparsers(dest="second", metavar="COMMAND", required=True), self._common, name)


def _password(verb: argparse.ArgumentParser, what: str) -> None:
    either = verb.add_mutually_exclusive_group()
    either.add_argument("--password-file", metavar="FILE", help=f"{what} is the first line of this file")
    either.add_argument("--password-stdin", action="store_true", help=f"{what} is the first line of standard input")


def _session(group: _Group) -> None:
    login = group.verb("login", "Sign in; the session is kept for the next commands.")
    login.add_argument("url", metavar="URL", help="of any server of the cluster, for instance https://files.example.org:8443")
    login.add_argument("user", metavar="USER", help="username or e-mail address")
    login.add_argument("--ca", metavar="FILE", help="the cluster's root certificate (PEM); only servers it signed are trusted")
    _password(login, "the password")
    group.verb("logout", "Sign out; the session is void.")
    group.verb("whoami", "Who is signed in, and until when.")


def _files(group: _Group) -> None:
    ls = group.verb("ls", "List a folder.")
    ls.add_argument("path", metavar="PATH", nargs="?", default="/", help="default: your own root folder")
    ls.add_argument("-l", "--long", action="store_true", help="with size, version, time and who modified it")
    put = group.verb("put", "Upload files.")
    put.add_argument("local", metavar="LOCAL", nargs="+", help="files of this machine; - for standard input")
    put.add_argument("path", metavar="PATH", help="where to; a folder (with a slash at its end) for more than one")
    put.add_argument("-r", "--recursive", action="store_true", help="folders too, with all that is in them; symbolic links are passed over")
    put.add_argument("--new", action="store_true", help="only if there is nothing at that path")
    get = group.verb("get", "Download a file, or a folder.")
    get.add_argument("path", metavar="PATH")
    get.add_argument(
        "local", metavar="LOCAL", nargs="?", default=".", help="file or folder to write, or - for standard output (default: here)"
    )
    get.add_argument("-r", "--recursive", action="store_true", help="a folder, with all that is in it")
    cat = group.verb("cat", "Write files to standard output.")
    cat.add_argument("path", metavar="PATH", nargs="+")
    rm = group.verb("rm", "Delete files, or empty folders.")
    rm.add_argument("path", metavar="PATH", nargs="+")
    rm.add_argument("-r", "--recursive", action="store_true", help="folders with all that is in them")
    mv = group.verb("mv", "Move or rename a file or folder.")
    mv.add_argument("source", metavar="FROM")
    mv.add_argument("destination", metavar="TO", help="with a slash at its end: into that folder, under its name")
    mkdir = group.verb("mkdir", "Make folders.")
    mkdir.add_argument("path", metavar="PATH", nargs="+")
    mkdir.add_argument("-p", "--parents", action="store_true", help="and those they are in; no error if there are such folders")
    info = group.verb("info", "Version, digest, origin and replicas of a file.")
    info.add_argument("path", metavar="PATH", nargs="+")
    explain = group.verb("explain", "Why a file's copies, or a node, are as they are, and what happens next.")
    explain.add_argument("what", metavar="PATH|NODE", help="a path has a slash in it; a node (for administrators) is a name without one")


def _rights(group: _Group) -> None:
    share = group.verb("share", "Give a person a role on a file, or on a folder and all beneath it.")
    share.add_argument("path", metavar="PATH")
    share.add_argument("user", metavar="USER")
    share.add_argument("role", metavar="ROLE", choices=("master", "editor", "reader"), help="master, editor or reader")
    unshare = group.verb("unshare", "Take a person's role away.")
    unshare.add_argument("path", metavar="PATH")
    unshare.add_argument("user", metavar="USER")
    access = group.verb("access", "Who may do what with a file or folder.")
    access.add_argument("path", metavar="PATH")
    group.verb("shared", "What others have shared with you.")
    usage = group.verb("usage", "Number of files and bytes a person owns.")
    usage.add_argument("user", metavar="USER", nargs="?", help="default: yourself")
    usage.add_argument("--files", action="store_true", help="list every file")


def _administration(top: _Group) -> None:
    top.verb("status", "The servers: status, storage, last heartbeat.")
    _people(top.group("user", "People (for administrators; `password` for everybody)."))
    _nodes(top.group("node", "Servers of the cluster."))
    _settings(top.group("cluster", "Settings of the cluster."))
    _catalogue(top.group("admin", "The catalogue as a whole: its backup, and what to do when something of it was lost."))


def _people(user: _Group) -> None:
    user.verb("list", "Everybody.")
    add = user.verb("add", "Create a person; without a password option, a password is made and shown once.")
    add.add_argument("name", metavar="NAME")
    add.add_argument("email", metavar="EMAIL")
    add.add_argument("--administrator", action="store_true", help="who may manage people and servers")
    _validity(add)
    _password(add, "the password")
    change = user.verb("set", "Change a person's fields.")
    change.add_argument("name", metavar="NAME")
    change.add_argument("--email", metavar="EMAIL")
    change.add_argument("--administrator", choices=("yes", "no"))
    _validity(change)
    for name, text in (
        ("show", "One person."),
        ("disable", "Close an account; it can be opened again."),
        ("enable", "Open a closed account."),
    ):
        user.verb(name, text).add_argument("name", metavar="NAME")
    password = user.verb("password", "Change a password; your own asks for the current one (with --password-stdin: the line before).")
    password.add_argument("name", metavar="NAME", nargs="?", help="default: yourself")
    _password(password, "the new password")
    remove = user.verb("remove", "Remove a person; refused while they own files.")
    remove.add_argument("name", metavar="NAME")
    remove.add_argument("--files", action="store_true", help="delete their files too")


def _nodes(node: _Group) -> None:
    node.verb("list", "The servers, as `securifile status`.")
    invite = node.verb("invite", "Let a new node join; prints the token for its first start.")
    invite.add_argument("name", metavar="NAME")
    node.verb("invites", "Invitations that were not used yet.")
    for name, text in (
        ("show", "One server, and who holds it for what."),
        ("offline", "Take a node out of service."),
        ("online", "Put a node back; it is verified first."),
        ("repair", "Let a node that is offline or failed read all it has, and fetch again what is missing or corrupt."),
    ):
        node.verb(name, text).add_argument("name", metavar="NAME")
    for name, text in (
        ("drain", "Have a node's files kept elsewhere, so that it can be removed; it goes on serving meanwhile."),
        ("undrain", "Keep files on a node again that was to be drained."),
        ("remove", "Remove a node for good; refused while a file would have no copy left on a running node."),
    ):
        verb = node.verb(name, text)
        verb.add_argument("name", metavar="NAME")
        _dry_run(verb)
        if name == "remove":
            verb.add_argument(
                "--force", action="store_true", help="even if files are left with one copy; with none, it is refused all the same"
            )
    replace = node.verb(
        "replace", "Put a new node in an old one's place: invites the new one; given again when that runs, drains the old one."
    )
    replace.add_argument("name", metavar="OLD")
    replace.add_argument("new", metavar="NEW")
    _dry_run(replace)


def _settings(cluster: _Group) -> None:
    cluster.verb("show", "Every setting.")
    change_settings = cluster.verb("set", "Change settings.")
    change_settings.add_argument("setting", metavar="KEY=VALUE", nargs="+", help="for instance replicas=2 digest=sha256")


def _catalogue(admin: _Group) -> None:
    admin.verb("epoch", "How the catalogue's present epoch is, which nodes have handed in what was lost, and what is left to you.")
    accept = admin.verb("accept-epoch", "Go on without the nodes that have not handed in what the catalogue lost.")
    accept.add_argument("--without", metavar="NODE", action="append", default=[], help="leave aside what this node handed in")
    accept.add_argument("--trust", metavar="NODE", action="append", default=[], help="believe this node, though others do not know it")
    _dry_run(accept)
    admin.verb("dismiss-left", "Forget what was left to you, after you have seen to it.")
    admin.verb("rebuild-catalogue", "When the database is gone for good: have the catalogue made anew from the nodes at the next start.")
    admin.verb("backup", "Copy the data folder of the running admin server of this machine, with its database.").add_argument(
        "directory", metavar="DIR", help="where to; made by this command"
    )


def _dry_run(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--dry-run", action="store_true", help="change nothing; say what would be done, or why it would be refused")


def _validity(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--valid-from", metavar="TIME", type=first_moment, help="2026-01-31 or 2026-01-31T12:00:00Z")
    verb.add_argument("--valid-until", metavar="TIME", type=last_moment, help="likewise; never: no end")
    verb.add_argument("--quota", metavar="SIZE", type=size, help="for instance 10G; none: no limit")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Understand a command line; exits with 2 when it cannot be, with 0 for `--help`."""
    parsed = parser().parse_args(arguments)
    for name in ("json", "operator"):
        if not hasattr(parsed, name):
            setattr(parsed, name, None)
    return parsed
