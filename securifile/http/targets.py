"""What a request's URL names: the entry at `/api/v1/<kind>/{owner}/{path}`.

The router has decoded the path before a route sees it, and then `a%2Fb` and `a/b` are the same. So the names are read
here from the raw target: split first, decode each part once, then judge.
"""

from __future__ import annotations

import re

import attrs

from securifile.model.errors import Code, Refusal
from securifile.model.paths import check_segments, check_username, quote_path, split_path

_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})?")


@attrs.frozen
class Target:
    """An entry by its path: owner, names beneath the root, and whether it was written as a folder (`/` at the end)."""

    owner: str
    segments: tuple[str, ...]
    folder: bool

    @property
    def is_root(self) -> bool:
        """Whether it is the root folder of its owner."""
        return not self.segments

    @property
    def name(self) -> str:
        """The last name; the owner's for the root folder."""
        return self.segments[-1] if self.segments else self.owner

    @property
    def parent(self) -> Target:
        """The folder it is in; of the root folder, itself."""
        return Target(self.owner, self.segments[:-1], True)

    def child(self, name: str, folder: bool = False) -> Target:
        """What `name` in this folder is. Raises `Refusal` BAD_PATH when it cannot be."""
        return Target(self.owner, check_segments((*self.segments, name)), folder)

    def url(self, kind: str = "files") -> str:
        """Its path in the API, percent-encoded."""
        return f"/api/v1/{kind}/{quote_path(self.owner, self.segments, self.folder)}"

    def __str__(self) -> str:
        return "/".join((self.owner, *self.segments)) + ("/" if self.folder else "")


def percent_decode(raw: bytes) -> str:
    """The text that `raw` is the percent-encoded UTF-8 of.

    Raises:
        Refusal: BAD_PATH when a `%` is not followed by two hexadecimal digits, or the bytes are not UTF-8.
    """
    try:
        return _PERCENT.sub(lambda match: bytes((int(match[1], 16),)), raw).decode()
    except TypeError:
        raise Refusal(Code.BAD_PATH, "A percent sign in a path must be followed by two hexadecimal digits; write %25 for itself.") from None
    except UnicodeDecodeError:
        raise Refusal(Code.BAD_PATH, "The path must be percent-encoded UTF-8.") from None


def parse_target(raw_path: bytes, kind: str = "files") -> Target:
    """Read the raw path of a request (`request.path`, no query) under `/api/v1/<kind>/`.

    Raises:
        Refusal: BAD_PATH saying what is wrong; NOT_FOUND when it is not of that kind at all.
    """
    prefix = b"/api/v1/" + kind.encode() + b"/"
    if not raw_path.startswith(prefix):
        raise Refusal(Code.NOT_FOUND, f"There is nothing here; paths of this kind begin with {prefix.decode()}.")
    owner, *rest = [percent_decode(part) for part in raw_path.removeprefix(prefix).split(b"/")]
    folder = not rest or rest[-1] == ""
    return Target(check_username(owner), check_segments(rest[:-1] if folder else rest), folder)


def parse_place(text: str) -> Target:
    """Read `owner/a/b` or `owner/a/b/` as it is written in JSON bodies: plain text, nothing encoded.

    Raises:
        Refusal: BAD_PATH as `parse_target`.
    """
    owner, _, rest = text.partition("/")
    segments, folder = split_path(rest)
    return Target(check_username(owner), segments, folder)
