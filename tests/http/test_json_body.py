"""JSON from people: strict, bounded, and with errors that name the field."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securifile.http.json_body import Fields, parse_json
from securifile.model.errors import Code, Refusal
from securifile.model.roles import GRANTABLE, Role

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.dictionaries(st.text(), scalars | st.lists(scalars)))
def test_objects_are_read(value: dict[str, object]) -> None:
    """What JSON says is what comes out."""
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"null", b"1", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1e999}', b'{"a": 1, "a": 2}', b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b"[" * 100_000, b'{"a":' * 20 + b"1" + b"}" * 20, b"\xef\xbb\xbf{}",
        b'{"a": ' + b"9" * 5000 + b"}", b"{'a': 1}", b'{"a": 1,}', b'{"\\ud800": 1}',
    ],
)  # fmt: skip
def test_what_is_refused(data: bytes) -> None:
    """Not JSON, not an object, or read in two ways."""
    with pytest.raises(Refusal) as caught:
        parse_json(data)
    assert caught.value.code is Code.BAD_JSON


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """No bytes make the reader fail otherwise."""
    try:
        parse_json(data)
    except Refusal as refusal:
        assert refusal.code is Code.BAD_JSON


def test_fields_are_taken_one_by_one() -> None:
    """Texts, numbers, booleans, words; absent and null ones are None where that is allowed."""
    fields = Fields({"user": "ada", "size": 3, "rate": 1, "on": True, "role": "editor", "gone": None, "empty": ""})
    assert fields.text("user") == "ada"
    assert fields.integer("size") == 3
    assert fields.number("rate") == 1.0
    assert fields.boolean("on") is True
    assert fields.boolean("off", default=False) is False
    assert fields.choice("role", Role, GRANTABLE) is Role.EDITOR
    assert fields.has("gone")
    assert fields.optional_text("gone") is None
    assert fields.optional_integer("never") is None
    assert fields.text("empty", empty=True) == ""
    fields.finish()


@pytest.mark.parametrize(
    ("value", "take"),
    [
        (None, lambda fields: fields.text("x")),
        (1, lambda fields: fields.text("x")),
        ("", lambda fields: fields.text("x")),
        ("é" * 3, lambda fields: fields.text("x", max=5)),
        (True, lambda fields: fields.integer("x")),
        (1.0, lambda fields: fields.integer("x")),
        (-1, lambda fields: fields.integer("x")),
        (2**63, lambda fields: fields.integer("x")),
        (True, lambda fields: fields.number("x")),
        (0, lambda fields: fields.boolean("x")),
        ("owner", lambda fields: fields.choice("x", Role, GRANTABLE)),
        ([], lambda fields: fields.choice("x", Role)),
        ("zz", lambda fields: fields.convert("x", bytes.fromhex, "hexadecimal digits")),
        (1, lambda fields: fields.finish()),
        (1, lambda fields: fields.text("y")),
    ],
)
def test_a_wrong_field_is_named(value: object, take: object) -> None:
    """The refusal says which field, and what it must be."""
    with pytest.raises(Refusal) as caught:
        take(Fields({"x": value}))  # type: ignore[operator]
    assert caught.value.code is Code.BAD_JSON
    assert "'x'" in caught.value.detail or "'y'" in caught.value.detail
