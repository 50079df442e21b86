"""Hypothesis strategies for every value that travels, made from the classes' annotations."""

from __future__ import annotations

import sys
import types
import typing
from enum import Enum
from functools import cache
from typing import Any

import attrs
from hypothesis import strategies as st

from securifile.model.ids import AttemptId, EntryId, Position
from securifile.model.settings import ClusterSettings

_INTEGERS = st.integers(min_value=1, max_value=2**63 - 1)
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_ANY = st.recursive(
    st.none() | st.booleans() | _INTEGERS | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)


@cache
def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of an annotation."""
    simple: dict[Any, st.SearchStrategy[Any]] = {
        str: _TEXT,
        bytes: st.binary(max_size=20),
        bool: st.booleans(),
        int: _INTEGERS,
        float: st.floats(allow_nan=False, allow_infinity=False),
        type(None): st.none(),
        Any: _ANY,
        EntryId: st.builds(EntryId, st.binary(min_size=16, max_size=16)),
        AttemptId: st.builds(AttemptId, st.binary(min_size=16, max_size=16)),
        Position: st.builds(Position, _INTEGERS, _INTEGERS),
        ClusterSettings: st.builds(ClusterSettings, replicas=st.integers(0, 9), serve_alone=st.booleans()),
    }
    if hint in simple:
        return simple[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(values, arguments))
    if origin is tuple and arguments[1:] == (...,):
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, arguments))
    if origin is dict:
        return st.dictionaries(_TEXT, values(arguments[1]), max_size=3)
    if issubclass(hint, Enum):
        return st.sampled_from(hint)
    hints = typing.get_type_hints(hint, vars(sys.modules[hint.__module__]), {})
    return st.builds(hint, **{field.name: values(hints[field.name]) for field in attrs.fields(hint)})
