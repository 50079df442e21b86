"""Stands in for `twistd`: a server of either kind that does just enough for the harness to be tried in a second.

    python stub_server.py securifile-admin|securifile-node --data DIR --https-port N ...

It behaves as its `BEHAVIOUR` file beside the data says: nothing there, well; `die`, it ends at once with some last words;
`hang`, it never serves; `stubborn`, it ignores SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Admin:
    """What an admin server would remember."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.settings = {"replicas": 2}
        self.users: list[dict[str, Any]] = []
        self.invites: dict[str, str] = {}

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """The answer to a request: status, JSON."""
        match method, path.partition("?")[0]:
            case "POST", "/api/v1/servers/invites":
                return 201, {"name": body["name"], "token": f"join-{body['name']}"}
            case "GET", "/api/v1/servers":
                ready = [file.parent.name for file in self.data.parent.glob("*/ready.json")]
                return 200, {"servers": [{"name": name, "status": "running"} for name in ready]}
            case "GET", "/api/v1/settings":
                return 200, self.settings
            case "PATCH", "/api/v1/settings":
                self.settings |= body
                return 200, self.settings
            case "GET", "/api/v1/users":
                return 200, {"users": self.users}
            case "POST", "/api/v1/users":
                self.users.append(body)
                return 201, body
            case "POST", "/api/v1/sessions":
                known = any(body["username"] == user["username"] and body["password"] == user["password"] for user in self.users)
                return (201, {"token": f"token-{body['username']}"}) if known else (401, {})
            case _:
                return 200, {"path": path}


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--https-port", type=int)
    parser.add_argument("--join-file", type=Path)
    options, _ = parser.parse_known_args()
    behaviour = (options.data / "BEHAVIOUR").read_text() if (options.data / "BEHAVIOUR").exists() else ""
    if behaviour == "die":
        sys.exit("these are my last words")
    if options.join_file is not None and not (options.data / "identity.pem").exists():
        (options.data / "identity.pem").write_text(options.join_file.read_text())
    admin = Admin(options.data)

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = admin.answer(self.command, self.path, json.loads(raw) if raw else None)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        do_GET = do_POST = do_PATCH = answer

    server = ThreadingHTTPServer(("127.0.0.1", options.https_port), Handler)
    url = f"http://127.0.0.1:{options.https_port}"
    ready = options.data / "ready.json"

    def stop(*_: object) -> None:
        if behaviour != "stubborn":
            ready.unlink()
            os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    (options.data / "operator.json").write_text(json.dumps({"url": url, "token": "operator", "ca_file": ""}))
    if behaviour == "hang":
        signal.pause()
    ready.with_name("ready.new").write_text(json.dumps({"pid": os.getpid(), "name": options.data.name, "url": url}))
    ready.with_name("ready.new").replace(ready)
    print("serving", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
