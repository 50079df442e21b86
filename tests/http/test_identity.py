"""Credentials in headers, tokens, and the short memory for passwords."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from securifile.http import identity
from securifile.http.identity import BasicCache, BasicPassword, BearerToken, new_token, parse_authorization, token_hash
from securifile.model.errors import Code, Refusal


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_both_kinds_of_credentials() -> None:
    """Bearer and Basic in UTF-8, whatever the case of the word; a password may hold colons."""
    assert parse_authorization(None) is None
    assert parse_authorization("bearer  abc.DEF-_~+/= ") == BearerToken("abc.DEF-_~+/=")
    assert parse_authorization(basic("ada:a:bü")) == BasicPassword("ada", "a:bü")
    assert parse_authorization(basic("ada:")) == BasicPassword("ada", "")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer a b",
        "Bearer é",
        "Basic",
        "Basic !",
        basic("ada"),
        basic(":x"),
        basic("a\0:x"),
        "Digest x",
        "Bearer " + "x" * 5000,
    ],
)
def test_what_is_no_credentials(header: str) -> None:
    """Anything else is refused as wrong credentials, not ignored."""
    with pytest.raises(Refusal) as caught:
        parse_authorization(header)
    assert caught.value.code is Code.BAD_CREDENTIALS


def test_secrets_are_not_shown() -> None:
    """Neither value shows its secret."""
    assert "secret" not in repr(BearerToken("secret")) + repr(BasicPassword("ada", "secret"))


def test_tokens() -> None:
    """256 bits as text that is a token; the hash is plain SHA-256."""
    token = new_token(lambda count: b"\xfb" * count)
    assert len(token) == 43
    assert parse_authorization(f"Bearer {token}") == BearerToken(token)
    assert token_hash("abc").hex().startswith("ba7816bf")


def cache() -> tuple[Clock, BasicCache]:
    clock = Clock()
    return clock, BasicCache(clock, lambda count: b"k" * count)


ADA = BasicPassword("ada@x.org", "secret")


def test_a_password_is_remembered_for_ten_minutes() -> None:
    """Only that password, only for a while."""
    clock, memory = cache()
    memory.remember(ADA, "ada", 3)
    assert memory.look(ADA, {"ada": 3}.get) == "ada"
    assert memory.look(BasicPassword("ada@x.org", "Secret"), {"ada": 3}.get) is None
    assert memory.look(BasicPassword("ada@x.orgs", "ecret"), {"ada": 3}.get) is None
    clock.advance(600)
    assert memory.look(ADA, {"ada": 3}.get) is None
    assert len(memory) == 0


def test_a_changed_password_is_forgotten() -> None:
    """Another number, or no such person: ask again; also when the old number came back."""
    for now in ({"ada": 4}, {}):
        _, memory = cache()
        memory.remember(ADA, "ada", 3)
        assert memory.look(ADA, now.get) is None
        assert memory.look(ADA, {"ada": 3}.get) is None
    _, memory = cache()
    memory.remember(ADA, "ada", 3)
    memory.forget("ada")
    assert memory.look(ADA, {"ada": 3}.get) is None


def test_the_memory_is_bounded() -> None:
    """The oldest goes."""
    _, memory = cache()
    for number in range(identity.REMEMBERED_MAX + 1):
        memory.remember(BasicPassword("ada", str(number)), "ada", 1)
    assert len(memory) == identity.REMEMBERED_MAX
    assert memory.look(BasicPassword("ada", "0"), {"ada": 1}.get) is None


@given(st.text(max_size=50))
def test_any_header_is_read_or_refused(text: str) -> None:
    """No text makes the reader fail otherwise."""
    for header in (text, "Basic " + text, "Bearer " + text):
        try:
            parse_authorization(header)
        except Refusal as refusal:
            assert refusal.code is Code.BAD_CREDENTIALS
