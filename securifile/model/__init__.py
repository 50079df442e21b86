"""The words and rules that both kinds of server share; no I/O, no clock, no randomness."""
