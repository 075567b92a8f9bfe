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
from rd_hf.embedding.ray import RaySettings
from rd_hf.version import __version__

# What is passed around are descriptions of parts: Ray's own share of memory may be small.
_OBJECT_STORE = 256 << 20
# The node that this process started is there, however busy.
_ANSWERS_WITHIN, _OWN_ANSWERS_WITHIN = 30.0, 300.0
# Ray reads these when it is imported, and hands them on to what it starts.
_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}
_ANOTHER_ADDRESS = "give the address that ray start --head printed, or leave --address away to use this machine alone"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that was joined."""

    name: str  # for messages
    nodes: dict[str, str]  # address of each node that is alive, by Ray's id of it
    gpus: float  # of one actor
    actors: int  # that fit now
    patience: float  # seconds within which a node answers


@contextmanager
def joined(settings: RaySettings) -> Iterator[Cluster]:
    """Join or start a cluster for what stands inside; raises a JobError where it cannot be had, or has too little."""
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    import ray

    own = not ray.is_initialized()
    if own:
        handler = signal.getsignal(signal.SIGTERM)
        with _silenced():
            _join(settings)
        # Ray's own handler ends the process without a word.
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    try:
        _quiet()
        yield _look_over(settings)
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
    _check_address(address)
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, RayError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise JobError(
            f"no Ray cluster can be joined at {address} ({message[:200]}): start one (ray start --head), or leave "
            "--address away to use this machine alone"
        ) from error


def _check_address(address: str) -> None:
    """Raise where no cluster answers: Ray itself would try for minutes, or for ever where something else listens."""
    if "://" in address:
        raise JobError(
            f"{address} is an address of Ray's client, which the job cannot use: start it on a machine of the cluster "
            "(ray job submit does that) with --address auto"
        )
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise JobError(f"the address {address!r} is neither auto nor host:port, as ray start prints it")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise JobError(f"nothing listens at {address} ({error}): {_ANOTHER_ADDRESS}") from error
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--skip-version-check"]
    try:
        # In a process that can be ended. What it finds to be wrong otherwise, joining says in words.
        subprocess.run([*command, "--address", address], capture_output=True, timeout=_ANSWERS_WITHIN, check=False)
    except subprocess.TimeoutExpired as error:
        raise JobError(
            f"no Ray cluster answers at {address} within {_ANSWERS_WITHIN:.0f} s: {_ANOTHER_ADDRESS}"
        ) from error


@contextmanager
def _silenced() -> Iterator[None]:
    """Nothing on standard error: what Ray's own libraries write there in C++ has no other switch."""
    sys.stderr.flush()
    with open(os.devnull, "wb") as nowhere, os.fdopen(os.dup(2), "wb") as stderr:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr.fileno(), 2)


def _quiet() -> None:
    """Leave messages to the job's own bar and sentences."""
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


def _look_over(settings: RaySettings) -> Cluster:
    """What the cluster has; raises where it has too little for one actor."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    sizes = [tuple(node["Resources"].get(kind, 0) for kind in ("CPU", "GPU")) for node in alive]
    name = "this machine" if settings.address is None else f"the cluster at {settings.address}"
    most = max((gpus for _, gpus in sizes), default=0)
    wanted = settings.gpus if settings.gpus is not None else int(most > 0)
    if wanted > most:
        raise JobError(
            f"a worker is to have {wanted:g} GPU{'s' if wanted != 1 else ''}, and no node of {name} has more than "
            f"{most:g}: add nodes with GPUs, or give --gpus-per-worker {most:g}"
        )
    actors = sum(int(min(cpus // settings.cpus, gpus // wanted if wanted else cpus)) for cpus, gpus in sizes)
    if actors == 0:
        raise JobError(
            f"a worker is to have {settings.cpus} CPUs and {wanted:g} GPUs, and no node of {name} has both: give a "
            f"smaller --cpus-per-worker; its nodes have {', '.join(f'{cpus:g}' for cpus, _ in sizes)} CPUs"
        )
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in alive}
    patience = _ANSWERS_WITHIN if settings.address else _OWN_ANSWERS_WITHIN
    return Cluster(name, nodes, wanted, min(actors, settings.workers or actors), patience)


def ask_every_node(cluster: Cluster, question: Callable[..., Any], *arguments: Any) -> list[tuple[str, Any]]:
    """What a function returns on each node, beside whatever runs there: pairs of the node's address and the answer.

    A node that does not answer is left out: Ray may not yet have noticed that it is lost, and goes on without it.
    Raises a JobError where a node cannot import this package, or none answers.
    """
    # A function of the standard library needs no package of ours to arrive; ours is named by it.
    _ask(cluster, importlib.import_module, question.__module__)
    return _ask(cluster, question, *arguments)


def _ask(cluster: Cluster, question: Callable[..., Any], *arguments: Any) -> list[tuple[str, Any]]:
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(question)
    asked = {}
    for node, address in cluster.nodes.items():
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        asked[task.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(*arguments)] = address
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=cluster.patience)
    answers = []
    for reference in done:
        try:
            answers.append((asked[reference], ray.get(reference)))
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, ImportError):
                raise JobError(
                    f"the worker at {asked[reference]} cannot import rd_hf ({cause}): install rd_hf {__version__} in "
                    "the Python that ray start runs there, or start it with PYTHONPATH set"
                ) from error
            raise
        except RayError:
            continue
    if not answers:
        raise JobError(
            f"no node of {cluster.name} answers within {cluster.patience:.0f} s: look at ray status and at the logs in "
            "/tmp/ray, or start the cluster again"
        )
    return answers
