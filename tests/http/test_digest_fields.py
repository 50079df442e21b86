"""Digest fields of RFC 9530."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securifile.http.digest_fields import format_digest, parse_digests, parse_wants
from securifile.model.digests import FIELD_NAMES, DigestAlgorithm
from securifile.model.errors import Code, Refusal

EMPTY = hashlib.sha256(b"").digest()


@given(st.sampled_from(sorted(FIELD_NAMES.values())), st.binary())
def test_a_digest_is_read_back(algorithm: DigestAlgorithm, content: bytes) -> None:
    """What is written is read as the same digest."""
    hasher = algorithm.hasher()
    hasher.update(content)
    text = format_digest(algorithm, hasher.digest())
    assert text is not None
    assert parse_digests(text) == {algorithm: hasher.digest()}


def test_the_example_of_the_rfc() -> None:
    """Appendix B.1 of RFC 9530: the digest of `{"hello": "world"}` and a newline."""
    text = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"
    assert parse_digests(text) == {DigestAlgorithm.SHA256: hashlib.sha256(b'{"hello": "world"}\n').digest()}


def test_algorithms_without_a_name_go_without() -> None:
    """SHA-3 has no name in the registry."""
    assert format_digest(DigestAlgorithm.SHA3_256, b"x" * 32) is None


def test_unknown_keys_and_parameters_are_passed_over() -> None:
    """Other algorithms, and parameters of ours, do not disturb."""
    ours = format_digest(DigestAlgorithm.SHA256, EMPTY)
    assert parse_digests(f'crc32c=:AAAAAA==:, {ours};q=1;x="a,b" ,\tother=::') == {DigestAlgorithm.SHA256: EMPTY}
    assert parse_digests("") == {}


@pytest.mark.parametrize(
    "header",
    [
        "sha-256",
        "sha-256=",
        "sha-256=abc",
        "sha-256=:AA==:",
        "sha-256=:A:",
        "sha-256=:====:",
        "SHA-256=:AA==:",
        "sha-256=:AA==:,",
        ",",
        "x=:AA==: y=:AA==:",
    ],
)
def test_a_malformed_header_is_refused(header: str) -> None:
    """400, because who sends a digest wants it checked."""
    with pytest.raises(Refusal) as caught:
        parse_digests(header)
    assert caught.value.code is Code.BAD_REQUEST


def test_wants_in_order_of_preference() -> None:
    """Weights order them, 0 means never."""
    assert parse_wants("sha-512=3, sha-256=10, sha=0, unixsum=1") == [DigestAlgorithm.SHA256, DigestAlgorithm.SHA512]
    with pytest.raises(Refusal):
        parse_wants("sha-256=11")


@given(st.text(max_size=60))
def test_any_header_is_read_or_refused(text: str) -> None:
    """No text makes the readers fail otherwise."""
    for read in (parse_digests, parse_wants):
        try:
            read(text)
        except Refusal as refusal:
            assert refusal.code is Code.BAD_REQUEST
