"""Join tokens."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securifile.certificates.join import PREFIX, JoinToken

TOKEN = JoinToken(
    admins=("https://admin-1.example:8443", "https://[::1]:8443"), fingerprint="0f" * 32, cluster="c1", name="node-1", secret="hush-hush"
)


@given(st.lists(st.text().map("https://".__add__), min_size=1), st.text(min_size=1))
def test_round_trip(admins: list[str], secret: str) -> None:
    """A token is one word, and is read back as it was made."""
    token = attrs.evolve(TOKEN, admins=tuple(admins), secret=secret)
    text = token.encode()
    assert text.split() == [text]
    assert text.isascii()
    assert JoinToken.parse(text) == token


def test_white_space_does_no_harm() -> None:
    """A token that a mail program broke into lines is read all the same."""
    text = TOKEN.encode()
    assert JoinToken.parse(f"  {text[:30]}\r\n  {text[30:90]}\n{text[90:]}\n") == TOKEN


@given(st.data())
def test_damage_is_noticed(data: st.DataObject) -> None:
    """Cut short, or with another character in any one place, it is refused, and the message does not tell the secret."""
    text = TOKEN.encode()
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("abcXYZ019-_.").filter(lambda character: character != text[place]))
    for damaged in (text[:place], text[:place] + other + text[place + 1 :], text[:place] + text[place + 1 :]):
        with pytest.raises(ValueError, match="join token") as caught:
            JoinToken.parse(damaged)
        assert "hush" not in str(caught.value)


def test_each_mistake_has_its_sentence() -> None:
    """Something else, another version, and a cut token are told from each other."""
    with pytest.raises(ValueError, match="is no join token"):
        JoinToken.parse("https://example.com")
    with pytest.raises(ValueError, match="another version"):
        JoinToken.parse(TOKEN.encode().replace(PREFIX, "securifile-join-v2"))
    with pytest.raises(ValueError, match="not all of it was copied"):
        JoinToken.parse(TOKEN.encode()[:-5])


def test_the_secret_is_not_shown() -> None:
    """A token may be logged by accident without giving itself away."""
    assert "hush" not in repr(TOKEN)


@pytest.mark.parametrize(
    "wrong",
    [{"admins": ()}, {"admins": ("ftp://a",)}, {"fingerprint": "0F" * 32}, {"cluster": "C 1"}, {"name": "a/b"}, {"secret": ""}],
)
def test_a_token_is_complete(wrong: dict[str, Any]) -> None:
    """No token is made that could not be used."""
    with pytest.raises(ValueError, match=r"."):
        attrs.evolve(TOKEN, **wrong)
