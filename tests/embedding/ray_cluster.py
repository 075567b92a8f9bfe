"""A Ray cluster of two nodes on this machine, each a process tree of its own that can be killed like a machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.conftest import environment, kill

# Of clusters on this machine alone; a token would be written into the home of whoever runs the tests.
os.environ["RAY_AUTH_MODE"] = "disabled"
_RAY = str(Path(sys.executable).parent / "ray")
# Enough for descriptions of parts; Ray takes no less than 75 MB.
_OBJECT_STORE = str(100 << 20)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RayCluster:
    """A head and further nodes, one CPU each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.address = f"127.0.0.1:{_free_port()}"
        port = self.address.rpartition(":")[2]
        self.head = self._start("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}")
        self.nodes: list[subprocess.Popen[bytes]] = []
        self._await(1)

    def _start(self, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        command = [_RAY, "start", "--block", "--num-cpus=1", f"--object-store-memory={_OBJECT_STORE}", *arguments]
        # Ports of the system's choice: two nodes on one machine would take each other's.
        command += ["--min-worker-port=0", "--max-worker-port=0", "--node-ip-address=127.0.0.1"]
        env = {**environment(), "RAY_USAGE_STATS_ENABLED": "0", **variables}
        return subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def add(self, **variables: str) -> subprocess.Popen[bytes]:
        """One node more, once it is there."""
        before = self.alive()
        node = self._start(f"--address={self.address}", **variables)
        self.nodes.append(node)
        self._await(before + 1)
        return node

    def lose(self, node: subprocess.Popen[bytes]) -> None:
        """SIGKILL everything that runs on a node."""
        kill(node)
        self.nodes.remove(node)

    def alive(self) -> int:
        """How many nodes the cluster counts."""
        from ray._raylet import GcsClient

        try:
            return sum(each.state == 0 for each in GcsClient(address=self.address).get_all_node_info().values())
        except Exception:  # not up yet, in whichever words
            return 0

    def _await(self, count: int) -> None:
        deadline = time.monotonic() + 120
        while self.alive() != count:
            assert time.monotonic() < deadline, f"the cluster did not come to {count} nodes"
            time.sleep(0.2)

    def workers(self, node: subprocess.Popen[bytes] | None = None) -> list[psutil.Process]:
        """Processes that embed, on one node or all."""
        found = []
        for root in [node] if node is not None else [self.head, *self.nodes]:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in psutil.Process(root.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        if any("PartWorker" in word for word in process.cmdline()[:1]):
                            found.append(process)
        return found

    def stop(self) -> None:
        """End it, and leave nothing."""
        for node in [*self.nodes, self.head]:
            kill(node)
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def two_nodes() -> Iterator[RayCluster]:
    """A cluster of two nodes for what stands inside."""
    # A socket's path may not be as long as those of pytest's folders.
    cluster = RayCluster(Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp")))
    try:
        cluster.add()
        yield cluster
    finally:
        cluster.stop()
