"""The lines to paste into a shell while the demo runs; the README shows the same ones, and a test runs them.

Pure text: what a line does is said in the comment above it, in the order in which a newcomer would try things.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

FIRST_NODE_PORT = 9443


@attrs.frozen
class Lines:
    """A few lines for the shell, and what they do."""

    meaning: str
    commands: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([f"# {self.meaning}", *self.commands])


def curl_lines(*, ca_file: str | None, urls: Sequence[str], password: str) -> list[Lines]:
    """What to try, step by step, as alice.

    Args:
        ca_file: the CA to trust, as a shell in the current directory names it; None without TLS.
        urls: of the nodes.
        password: alice's.
    """
    trust = f' --cacert "{ca_file}"' if ca_file is not None else ""
    ports = " ".join(url.rpartition(":")[2] for url in urls)
    host = urls[0].rpartition(":")[0]
    return [
        Lines(
            "sign in as alice: a token for the next twelve hours",
            (
                f"NODE={urls[0]}",
                f"""TOKEN=$(curl -sS{trust} -d '{{"username": "alice", "password": "{password}"}}' $NODE/api/v1/sessions -L |""",
                """        sed -n 's/.*"token": *"\\([^"]*\\)".*/\\1/p')""",
                f"""api() {{ curl -sSL --fail-with-body{trust} -H "Authorization: Bearer $TOKEN" "$@"; }}""",
            ),
        ),
        Lines(
            "upload 200 MB of noise, whatever node it ends up on",
            ("head -c 200000000 /dev/urandom > noise.bin", "api -T noise.bin $NODE/api/v1/files/alice/noise.bin"),
        ),
        Lines("list the folder", ("api $NODE/api/v1/files/alice/",)),
        Lines("see its origin, its replicas and their priorities", ("api $NODE/api/v1/details/alice/noise.bin",)),
        Lines(
            "download it from every node: the same digest each time",
            (
                "sha256sum < noise.bin",
                f"for port in {ports}; do api {host}:$port/api/v1/files/alice/noise.bin | sha256sum; done",
            ),
        ),
        Lines(
            "upload a new version, unless somebody else was faster",
            (
                """ETAG=$(api -I $NODE/api/v1/files/alice/noise.bin | tr -d '\\r' | sed -n 's/^etag: //Ip' | tail -n 1)""",
                "echo 'quiet now' > quiet.txt",
                """api -T quiet.txt -H "If-Match: $ETAG" $NODE/api/v1/files/alice/noise.bin""",
            ),
        ),
        Lines(
            "let bob read it; he finds it under /api/v1/shared",
            ("""api -X PUT -d '{"user": "bob", "role": "reader"}' $NODE/api/v1/access/alice/noise.bin""",),
        ),
        Lines("delete it", ("api -X DELETE $NODE/api/v1/files/alice/noise.bin",)),
    ]
