"""OpenStack Swift, all in one: three replicas on this machine, TLS by hitch in front, sign-in by tempauth.

Between its own servers it speaks plain HTTP, as is usual with it.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from benchmarks.targets import HOST, CannotMeasure, certify, end, free_port, wait_until_it_listens

ACCOUNT = "AUTH_bench"
CONTAINER = "bench"
MACHINE_WIDE = Path("/etc/swift/swift.conf")

_COMMON = """
[DEFAULT]
bind_ip = {host}
bind_port = {port}
workers = {workers}
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
log_level = WARNING
log_udp_host = {host}
log_udp_port = {nowhere}
"""
_STORAGE = """
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""
_PROXY = """
[pipeline:main]
pipeline = catch_errors cache tempauth proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:tempauth]
use = egg:swift#tempauth
user_bench_bench = secret .admin
token_life = 86400
[filter:cache]
use = egg:swift#memcache
memcache_servers = {host}:{memory}
"""
_HITCH = """
frontend = "[{host}]:{port}"
backend = "[{host}]:{behind}"
pem-file = "{pem}"
workers = {workers}
tls-protos = TLSv1.2 TLSv1.3
alpn-protos = "http/1.1"
daemon = off
user = "{user}"
group = "{group}"
backlog = 511
"""


class Swift:
    """Swift, started."""

    name = "Swift"

    def __init__(self, folder: Path) -> None:
        """Make its rings and start it. Raises `CannotMeasure`."""
        missing = [name for name in ("swift-proxy-server", "swift-ring-builder", "memcached", "hitch") if not _program(name)]
        if missing:
            raise CannotMeasure(f"not installed: {', '.join(missing)}")
        folder.mkdir(parents=True)
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._user = pwd.getpwuid(os.geteuid())
        self.ca, key = certify(folder)
        try:
            self._start(key)
        except BaseException:
            self.stop()
            raise

    def _start(self, key: Path) -> None:
        folder, cores = self._folder, os.cpu_count() or 1
        if not MACHINE_WIDE.exists():
            # Swift has no option for another place; the package brings one.
            raise CannotMeasure(f"{MACHINE_WIDE} is missing: it has to hold [swift-hash] with swift_hash_path_suffix")
        memory, proxy, self._port = free_port(), free_port(), free_port()
        self._run("memcached", "-l", HOST, "-p", str(memory), "-m", "64", "-u", self._user.pw_name)
        for kind, workers in (("account", 1), ("container", 1), ("object", cores)):
            port = free_port()
            for device in range(3):
                (folder / "devices" / f"d{device}").mkdir(parents=True, exist_ok=True)
            self._ring(kind, port)
            self._serve(kind, port, workers, _STORAGE.format(kind=kind))
        self._serve("proxy", proxy, cores, _PROXY.format(host=HOST, memory=memory))
        pem = folder / "both.pem"
        pem.write_bytes(key.read_bytes() + self.ca.read_bytes())
        pem.chmod(0o600)
        hitch, group = folder / "hitch.conf", grp.getgrgid(os.getegid()).gr_name
        hitch.write_text(
            _HITCH.format(
                host=HOST,
                port=self._port,
                behind=proxy,
                pem=pem,
                workers=cores,
                user=self._user.pw_name,
                group=group,
            )
        )
        self._run("hitch", f"--config={hitch}")
        wait_until_it_listens(self._port, 20, self._complaint)
        asked = urllib.request.Request(f"http://{HOST}:{proxy}/auth/v1.0", headers={"X-Auth-User": "bench:bench", "X-Auth-Key": "secret"})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            self.headers: Mapping[str, str] = {"X-Auth-Token": answer.headers["X-Auth-Token"]}
        made = urllib.request.Request(f"http://{HOST}:{proxy}/v1/{ACCOUNT}/{CONTAINER}", method="PUT", headers=dict(self.headers))
        with urllib.request.urlopen(made, timeout=30):
            pass

    def _ring(self, kind: str, port: int) -> None:
        builder = str(self._folder / f"{kind}.builder")
        # 2^10 partitions, three replicas, an hour before one may be moved again.
        self._once("swift-ring-builder", builder, "create", "10", "3", "1")
        for device in range(3):
            self._once("swift-ring-builder", builder, "add", f"r1z{device + 1}-{HOST}:{port}/d{device}", "1")
        self._once("swift-ring-builder", builder, "rebalance")

    def _serve(self, kind: str, port: int, workers: int, rest: str) -> None:
        configuration = self._folder / f"{kind}.conf"
        common = _COMMON.format(host=HOST, port=port, workers=workers, user=self._user.pw_name, folder=self._folder, nowhere=free_port())
        configuration.write_text(common + rest)
        self._run(f"swift-{kind}-server", str(configuration), "-v")
        wait_until_it_listens(port, 20, self._complaint)

    def _run(self, name: str, *arguments: str) -> None:
        with (self._folder / "output.log").open("ab") as log:
            command = [_program(name), *arguments]
            self._processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True))

    def _once(self, name: str, *arguments: str) -> None:
        ran = subprocess.run([_program(name), *arguments], capture_output=True, text=True, check=False)
        if ran.returncode > 1:  # 1: with a warning
            raise CannotMeasure(f"{name}: {ran.stdout}{ran.stderr}")

    def _complaint(self) -> str:
        return (self._folder / "output.log").read_text(errors="replace")[-2000:]

    def url(self, path: str) -> str:
        """See `Target`."""
        return f"https://{HOST}:{self._port}/v1/{ACCOUNT}/{CONTAINER}/{path}"

    def roots(self) -> list[int]:
        """See `Target`."""
        return [process.pid for process in self._processes]

    def clear(self) -> None:
        """See `Target`: the objects go from the disks, their names stay in the container; it is not asked for them again."""
        for device in (self._folder / "devices").iterdir():
            shutil.rmtree(device / "objects", ignore_errors=True)

    def stop(self) -> None:
        """See `Target`."""
        for process in reversed(self._processes):
            end(process)


def _program(name: str) -> str:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin") or ""
