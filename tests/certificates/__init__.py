"""Tests of names, authorities, identities and join tokens."""
