"""A cluster to work on: joined or started, looked over, and kept quiet."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from rd_hf.embedding.folder import JobError
from rd_hf.version import __version__

# What is passed around are descriptions of parts: Ray's own share of memory may be small.
_OBJECT_STORE = 256 << 20
_ANSWERS_WITHIN, _OWN_ANSWERS_WITHIN = 30.0, 300.0


@dataclass(frozen=True, slots=True)
class RaySettings:
    """Where and how widely a job runs.

    Attributes:
        address: of a cluster, ``host:port``, or ``auto`` for the one that this machine belongs to; None starts one on
            this machine, which ends with the job.
        workers: most actors at once; by default as many as the cluster holds, now or later.
        cpus, gpus: of one actor; by default one GPU where the cluster has any, and none elsewhere.
        deduplicate: compute sequences that several parts share once, for all of them.
    """

    address: str | None = None
    workers: int | None = None
    cpus: int = 1
    gpus: float | None = None
    deduplicate: bool = False

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be positive, not {self.workers}")
        if self.cpus < 1:
            raise ValueError(f"cpus must be positive, not {self.cpus}")
        if self.gpus is not None and self.gpus < 0:
            raise ValueError(f"gpus must not be negative, got {self.gpus:g}")


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster: Ray's id of it, its address, and what it offers."""

    id: str
    address: str
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that is there.

    Attributes:
        name: for sentences.
        nodes: that are alive.
        gpus: of one actor.
        actors: that fit now.
        patience: seconds within which a node answers; the one that this process started is there, however busy.
    """

    name: str
    nodes: tuple[Node, ...]
    gpus: float
    actors: int
    patience: float = _ANSWERS_WITHIN


@contextmanager
def joined(settings: RaySettings) -> Iterator[Cluster]:
    """Join or start a cluster for what stands inside.

    Raises:
        JobError: there is none, it is another version's, or it has not what an actor needs.
    """
    # Ray reads these when it is imported, and hands them on to what it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    import ray

    own = not ray.is_initialized()
    if own:
        kept = signal.getsignal(signal.SIGTERM)
        with _hushed():
            _join(settings)
        # Ray's own handler ends the process without a word.
        if callable(kept) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, kept)
    try:
        _quiet()
        yield _looked_over(settings)
    finally:
        if own:
            ray.shutdown()


def _join(settings: RaySettings) -> None:
    import ray
    from ray.exceptions import RayError

    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    address = settings.address
    if address is None:
        wanted: dict[str, Any] = {} if settings.workers is None else {"num_cpus": settings.workers * settings.cpus}
        # "local": whatever RAY_ADDRESS says, no address means this machine.
        ray.init(address="local", include_dashboard=False, object_store_memory=_OBJECT_STORE, **wanted, **quiet)
        return
    if "://" in address:
        raise JobError(
            f"{address} is an address of Ray's client, which the job cannot use: start it on a machine of the cluster "
            "(ray job submit does that) with --address auto"
        )
    if address != "auto":
        _ask(address)
    _await_answer(address)
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, RayError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise JobError(
            f"no Ray cluster can be joined at {address} ({said[:200]}): start one (ray start --head), or leave "
            "--address away to use this machine alone"
        ) from error


def _ask(address: str) -> None:
    """Raise unless something listens there: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise JobError(f"the address {address!r} is neither auto nor host:port, as ray start prints it")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise JobError(
            f"nothing listens at {address} ({error}): give the address that ray start --head printed, or leave "
            "--address away to use this machine alone"
        ) from error


def _await_answer(address: str) -> None:
    """Raise where a cluster does not answer in time: where something else listens, Ray itself would wait for ever."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--skip-version-check"]
    try:
        # In a process that can be ended. What it finds to be wrong otherwise, joining says in words.
        subprocess.run([*command, "--address", address], capture_output=True, timeout=_ANSWERS_WITHIN, check=False)
    except subprocess.TimeoutExpired as error:
        raise JobError(
            f"no Ray cluster answers at {address} within {_ANSWERS_WITHIN:.0f} s: give the address that ray start "
            "--head printed, or leave --address away to use this machine alone"
        ) from error


@contextmanager
def _hushed() -> Iterator[None]:
    """Nothing on standard error: what Ray's own libraries write there in C++ has no other switch."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _quiet() -> None:
    """Leave what is said to the job's own bar and sentences."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # News of lost workers, a paragraph each, is printed by a handler that has no switch of its own.
    with suppress(ImportError, AttributeError, KeyError):
        from ray._private.ray_logging import global_worker_stdstream_dispatcher

        global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")


def _looked_over(settings: RaySettings) -> Cluster:
    import ray

    nodes = tuple(
        Node(
            each["NodeID"],
            each["NodeManagerAddress"],
            each["Resources"].get("CPU", 0),
            each["Resources"].get("GPU", 0),
        )
        for each in ray.nodes()
        if each["Alive"]
    )
    name = "this machine" if settings.address is None else f"the cluster at {settings.address}"
    gpus = settings.gpus
    if gpus is None:
        gpus = 1 if any(node.gpus for node in nodes) else 0
    if gpus > max((node.gpus for node in nodes), default=0):
        most = max((node.gpus for node in nodes), default=0)
        raise JobError(
            f"a worker is to have {gpus:g} GPU{'s' if gpus != 1 else ''}, and no node of {name} has more than "
            f"{most:g}: add nodes with GPUs, or give --gpus-per-worker {most:g}"
        )
    actors = sum(int(min(node.cpus // settings.cpus, node.gpus // gpus if gpus else node.cpus)) for node in nodes)
    if actors == 0:
        raise JobError(
            f"a worker is to have {settings.cpus} CPUs and {gpus:g} GPUs, and no node of {name} has both: give a "
            f"smaller --cpus-per-worker; its nodes have {', '.join(f'{node.cpus:g}' for node in nodes)} CPUs"
        )
    patience = _ANSWERS_WITHIN if settings.address else _OWN_ANSWERS_WITHIN
    return Cluster(name, nodes, gpus, min(actors, settings.workers or actors), patience)


def ask_every_node(cluster: Cluster, question: Callable[..., Any], *arguments: Any) -> dict[Node, Any]:
    """What a function answers on each node, beside whatever runs there.

    A node that does not answer is left out: Ray may not yet have noticed that it is lost, and goes on without it.

    Raises:
        JobError: a node cannot import this package, or none answers.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # A function of the standard library needs no package of ours to arrive; ours is named by it.
    found: dict[Node, Any] = {}
    for asked, given in ((importlib.import_module, (question.__module__,)), (question, arguments)):
        found.clear()
        task = ray.remote(asked)
        references = {
            task.options(
                num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
            ).remote(*given): node
            for node in cluster.nodes
        }
        done, _ = ray.wait(list(references), num_returns=len(references), timeout=cluster.patience)
        for reference in done:
            node = references[reference]
            try:
                found[node] = ray.get(reference)
            except RayTaskError as error:
                cause = error.cause if isinstance(error.cause, Exception) else error
                if isinstance(cause, ImportError):
                    raise JobError(
                        f"the worker at {node.address} cannot import rd_hf ({cause}): install rd_hf {__version__} in "
                        "the Python that ray start runs there, or start it with PYTHONPATH set"
                    ) from error
                raise
            except RayError:
                continue
        if not found:
            raise JobError(
                f"no node of {cluster.name} answers within {cluster.patience:.0f} s: look at ray status and at the "
                "logs in /tmp/ray, or start the cluster again"
            )
    return found
