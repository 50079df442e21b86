"""A whole cluster as real processes on one machine."""
