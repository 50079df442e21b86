"""The binary protocol between servers: msgpack frames over mutual TLS. `docs/protocol.md` is normative."""
