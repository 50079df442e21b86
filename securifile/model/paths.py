"""Names and paths of entries: what may be one, and how it is written in a URL.

A path is an owner and a tuple of names. A name is Unicode text in normalisation form C, so that the same name typed
on two systems is the same name here. Only what cannot be a name anywhere is refused: nothing, `.` and `..`, a slash,
and control characters. A backslash is an ordinary character, as on every Unix file system; clients that write to
disks where it is a separator must replace it, and refusing it here would lock out files that people have.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from securifile.model.errors import Code, Refusal

NAME_BYTES_MAX = 255
"""As ext4, XFS and NTFS: a name that is kept here can be kept there."""
PATH_BYTES_MAX = 4096
"""PATH_MAX of Linux; counts owner, names and the slashes between them."""
DEPTH_MAX = 64
"""Names beneath the owner's root: bounds the walk that every look-up makes."""

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")
_USERNAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

_SAFE_IN_URL = "!$&'()*+,;=:@~"
"""The sub-delims that RFC 3986 allows in a segment beside the unreserved characters."""


def check_name(name: str) -> str:
    """`name` in normalisation form C, if it can be the name of an entry.

    Raises:
        Refusal: BAD_PATH, saying what is wrong with it.
    """
    try:
        normal = unicodedata.normalize("NFC", name)
        length = len(normal.encode())
    except UnicodeEncodeError:
        raise Refusal(Code.BAD_PATH, "A name must be valid Unicode text; this one holds half a surrogate pair.") from None
    if not normal:
        raise Refusal(Code.BAD_PATH, "The path holds an empty name; write single slashes between names.")
    if normal in (".", ".."):
        raise Refusal(Code.BAD_PATH, f"{normal!r} is not a name here; write the path from its owner on, without dots.", name=normal)
    if "/" in normal:
        raise Refusal(Code.BAD_PATH, "A name must not hold a slash, not even an encoded one.", name=normal)
    if _CONTROLS.search(normal):
        raise Refusal(Code.BAD_PATH, "A name must not hold control characters.", name=ascii(normal))
    if length > NAME_BYTES_MAX:
        raise Refusal(
            Code.BAD_PATH,
            f"A name may be {NAME_BYTES_MAX} bytes of UTF-8 long; this one has {length}.",
            bytes=length,
            bytes_max=NAME_BYTES_MAX,
        )
    return normal


def check_username(name: str) -> str:
    """`name`, if it can be a person's.

    Raises:
        Refusal: BAD_PATH, because a username is the first part of each path of that person.
    """
    if not _USERNAME.fullmatch(name):
        raise Refusal(
            Code.BAD_PATH,
            "A username is 1 to 64 of a-z, 0-9, dot, underscore and hyphen, beginning with a letter or digit.",
            name=ascii(name),
        )
    return name


def check_segments(segments: Iterable[str]) -> tuple[str, ...]:
    """The names of a path beneath its owner's root, each in normalisation form C.

    Raises:
        Refusal: BAD_PATH when a name cannot be one, or the path is too long or too deep.
    """
    names = tuple(check_name(segment) for segment in segments)
    if len(names) > DEPTH_MAX:
        raise Refusal(
            Code.BAD_PATH, f"A path may be {DEPTH_MAX} names deep; this one has {len(names)}.", depth=len(names), depth_max=DEPTH_MAX
        )
    length = sum(len(name.encode()) + 1 for name in names)
    if length > PATH_BYTES_MAX:
        raise Refusal(
            Code.BAD_PATH, f"A path may be {PATH_BYTES_MAX} bytes long; this one has {length}.", bytes=length, bytes_max=PATH_BYTES_MAX
        )
    return names


def split_path(text: str) -> tuple[tuple[str, ...], bool]:
    """Read `a/b/c` or `a/b/` as (names, whether it is written as a folder's); the empty text is the root folder.

    Raises:
        Refusal: BAD_PATH as `check_segments`.
    """
    folder = text == "" or text.endswith("/")
    body = text.removesuffix("/")
    return check_segments(body.split("/")) if body else _nothing_but_a_root(text), folder


def _nothing_but_a_root(text: str) -> tuple[str, ...]:
    if text:
        raise Refusal(Code.BAD_PATH, "The path holds an empty name; write single slashes between names.")
    return ()


def quote_path(owner: str, segments: Sequence[str], folder: bool = False) -> str:
    """The path as it stands in a URL after `/api/v1/files/`: percent-encoded UTF-8, a slash at the end of a folder's."""
    text = "/".join(quote(part, safe=_SAFE_IN_URL) for part in (owner, *segments))
    return f"{text}/" if folder else text
