"""Tests of the storage node."""
