"""JSON in requests and answers: strict in what comes in, and errors that say which field is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from securifile.model.errors import Code, Refusal

if TYPE_CHECKING:
    from securifile.http.request import Request

JSON_BYTES_MAX = 64 * 1024
"""A request's body; the largest we know, a CSR, takes 4 KiB."""
DEPTH_MAX = 16
"""Of objects and arrays in each other; ours are three deep."""
_INTEGER_MAX = 2**63 - 1
"""What both databases can hold."""

SomeEnum = TypeVar("SomeEnum", bound=StrEnum)


async def read_bytes(request: Request, limit: int) -> bytes:
    """The whole body of a request.

    Raises:
        Refusal: TOO_LARGE when it is longer than `limit` bytes; known from its length before it was read, if it has one.
        StreamBroken: the client has gone.
    """
    too_large = Refusal(Code.TOO_LARGE, f"The body may be {limit} bytes long here.", bytes_max=limit)
    if request.content_length is not None and request.content_length > limit:
        raise too_large
    pieces: list[bytes] = []
    length = 0
    while piece := await request.body.read():
        length += len(piece)
        if length > limit:
            raise too_large
        pieces.append(piece)
    return b"".join(pieces)


async def read_json(request: Request, limit: int = JSON_BYTES_MAX) -> dict[str, Any]:
    """The JSON object that is a request's body; its `Content-Type` does not matter, so that `curl -d` works.

    Raises:
        Refusal: TOO_LARGE, or BAD_JSON saying what is wrong.
        StreamBroken: the client has gone.
    """
    return parse_json(await read_bytes(request, limit))


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object, strictly: UTF-8, no name twice, no NaN, no half surrogates, not deep.

    Raises:
        Refusal: BAD_JSON.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise Refusal(Code.BAD_JSON, "The body must be UTF-8.") from None
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_doubles)
        _check(value, 0)
    except RecursionError:
        raise Refusal(Code.BAD_JSON, f"The JSON may be {DEPTH_MAX} deep.") from None
    except json.JSONDecodeError as error:
        raise Refusal(Code.BAD_JSON, f"The body is not JSON: {error.msg}.", line=error.lineno, column=error.colno) from None
    except ValueError:
        raise Refusal(Code.BAD_JSON, "The body is not JSON: a number is too long.") from None
    if not isinstance(value, dict):
        raise Refusal(Code.BAD_JSON, "The body must be a JSON object: {...}.")
    return value


def _no_constant(text: str) -> Any:
    raise Refusal(Code.BAD_JSON, f"{text} is no number in JSON.")


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise Refusal(Code.BAD_JSON, "A name is in one JSON object twice.")
    return members


def _check(value: Any, depth: int) -> None:
    if depth > DEPTH_MAX:
        raise Refusal(Code.BAD_JSON, f"The JSON may be {DEPTH_MAX} deep.")
    match value:
        case str():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise Refusal(Code.BAD_JSON, "A text holds half a surrogate pair.") from None
        case float():
            if value in (float("inf"), float("-inf")):
                raise Refusal(Code.BAD_JSON, "A number is too large.")
        case dict():
            for name, member in value.items():
                _check(name, depth)
                _check(member, depth + 1)
        case list():
            for member in value:
                _check(member, depth + 1)


class Fields:
    """Takes the fields of a JSON object one by one, each checked; `finish` refuses what is left.

        fields = Fields(await read_json(request))
        username, role = fields.text("user", max=64), fields.choice("role", Role)
        fields.finish()

    Every method raises `Refusal` BAD_JSON with the field's name. The `optional_…` ones return None when the field is absent or null.
    """

    def __init__(self, members: Mapping[str, Any]) -> None:
        self._members = dict(members)

    def has(self, name: str) -> bool:
        """Whether the field is there and not yet taken; `null` counts: that is how a value is removed."""
        return name in self._members

    def text(self, name: str, *, max: int = 1024, empty: bool = False) -> str:
        """A text, at most so many bytes of UTF-8; empty only when allowed."""
        value = self._take(name)
        if not isinstance(value, str):
            raise self._wrong(name, "a text")
        if not value and not empty:
            raise self._wrong(name, "a text that is not empty")
        if len(value.encode()) > max:
            raise self._wrong(name, f"a text of at most {max} bytes")
        return value

    def optional_text(self, name: str, *, max: int = 1024, empty: bool = False) -> str | None:
        """A text, or None."""
        return self.text(name, max=max, empty=empty) if self._is_given(name) else None

    def integer(self, name: str, *, minimum: int = 0, maximum: int = _INTEGER_MAX) -> int:
        """A whole number within bounds."""
        value = self._take(name)
        if type(value) is not int or not minimum <= value <= maximum:
            raise self._wrong(name, f"a whole number from {minimum} to {maximum}")
        return value

    def optional_integer(self, name: str, *, minimum: int = 0, maximum: int = _INTEGER_MAX) -> int | None:
        """A whole number, or None."""
        return self.integer(name, minimum=minimum, maximum=maximum) if self._is_given(name) else None

    def number(self, name: str, *, minimum: float = 0.0, maximum: float = float(_INTEGER_MAX)) -> float:
        """A number within bounds."""
        value = self._take(name)
        if type(value) not in (int, float) or not minimum <= value <= maximum:
            raise self._wrong(name, f"a number from {minimum:g} to {maximum:g}")
        return float(value)

    def optional_number(self, name: str, *, minimum: float = 0.0, maximum: float = float(_INTEGER_MAX)) -> float | None:
        """A number, or None."""
        return self.number(name, minimum=minimum, maximum=maximum) if self._is_given(name) else None

    def boolean(self, name: str, default: bool | None = None) -> bool:
        """True or false; `default` when it is absent and there is one."""
        if default is not None and not self._is_given(name):
            return default
        value = self._take(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def choice(self, name: str, choices: type[SomeEnum], allowed: Iterable[SomeEnum] | None = None) -> SomeEnum:
        """One word of an enumeration, or of those `allowed`."""
        value = self._take(name)
        words = {str(word): word for word in (choices if allowed is None else allowed)}
        if not isinstance(value, str) or value not in words:
            raise self._wrong(name, "one of " + ", ".join(words))
        return words[value]

    def optional_choice(self, name: str, choices: type[SomeEnum], allowed: Iterable[SomeEnum] | None = None) -> SomeEnum | None:
        """One word of an enumeration, or None."""
        return self.choice(name, choices, allowed) if self._is_given(name) else None

    def convert(self, name: str, convert: Callable[[str], Any], looks: str) -> Any:
        """A text that `convert` understands; its `ValueError` is refused with what the text must look like."""
        text = self.text(name, max=JSON_BYTES_MAX)
        try:
            return convert(text)
        except ValueError:
            raise self._wrong(name, looks) from None

    def finish(self) -> None:
        """All fields were taken; one that was not is a typing mistake, and refused."""
        if self._members:
            names = sorted(self._members)
            raise Refusal(Code.BAD_JSON, f"There is no field {names[0]!a} here.", fields=names)

    def _is_given(self, name: str) -> bool:
        if self._members.get(name) is None:
            self._members.pop(name, None)
            return False
        return True

    def _take(self, name: str) -> Any:
        if name not in self._members:
            raise Refusal(Code.BAD_JSON, f"The field {name!r} is missing.", field=name)
        return self._members.pop(name)

    @staticmethod
    def _wrong(name: str, looks: str) -> Refusal:
        return Refusal(Code.BAD_JSON, f"The field {name!r} must be {looks}.", field=name)


def answer_json(request: Request, status: int, value: Any, headers: Iterable[tuple[bytes | str, bytes | str]] = ()) -> bytes:
    """Set status and headers, and give the content to return from a route. Not to be cached, unless `headers` say so."""
    content = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    request.setResponseCode(status)
    request.setHeader(b"Content-Type", b"application/json")
    request.setHeader(b"Cache-Control", b"no-store")
    for name, text in headers:
        request.setHeader(name, text)
    return content
