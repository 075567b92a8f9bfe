"""Whether the Hub can be reached: found out once, within seconds, before the first request to it.

The Hub's client waits for a network that is not there for minutes, since it asks again and again, for every file. What
is decorated with :func:`asks_hub` looks first: one question, by the client's own session (so that its proxies,
certificates and mirror count). What is no answer is taken as ``HF_HUB_OFFLINE`` is: what lies in the cache is used, and
what does not is one sentence. Of files that are named by a commit and lie in the cache, the Hub is not asked at all.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from rd_hf.data.records import InputError

# Seconds until a connection stands: names looked up, all of a host's addresses tried, certificates exchanged. A packet
# that is lost is sent again after one second, and after three.
CONNECT_SECONDS = 4.0
# Seconds until a server that is there has answered: longer than the Hub's client waits at first.
ANSWER_SECONDS = 60.0
# Errors of a server that is there, and ends the connection: the client asks again.
_CONNECTED = ("RemoteProtocolError", "LocalProtocolError", "ReadError", "WriteError")
_WITHOUT = "take rd-esm2-mini, which needs none"

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def asks_hub(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a function that may fetch files, its first argument being what for: see :func:`hub_asked_once`."""

    @wraps(function)
    def asking(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        named: Any = args[0] if args else next(iter(kwargs.values()), None)
        words = named if isinstance(named, list | tuple) else [named]
        is_named = all(isinstance(word, str | os.PathLike) for word in words)
        with hub_asked_once(" or ".join(map(str, words)) if is_named else "a backbone"):
            return function(*args, **kwargs)

    return asking


@contextmanager
def hub_asked_once(wanted: str, instead: str | None = _WITHOUT) -> Iterator[None]:
    """Within it, requests to the Hub are made only if it can be reached, which the first of them finds out.

    An InputError if it cannot be, and something is needed that is not in the cache.

    Args:
        wanted: what is fetched, for the sentence; the repo that was asked for first takes its place.
        instead: what else to do where the cache lacks a file; None of what is sent, which no cache helps.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    with one_answer(), _hub.watched():
        try:
            yield
        except Exception as error:
            offline = _is_offline_mode()
            # The client's own error of offline mode is a ConnectionError, and so is what datasets makes of it.
            if not (offline or _hub.trouble) or not _has_cause(error, (LocalEntryNotFoundError, ConnectionError)):
                raise
            named = _hub.wanted or _backbone(error) or wanted
            raise InputError(_sentence(named, None if offline else _hub.trouble, instead)) from error


@contextmanager
def one_answer() -> Iterator[None]:
    """Within it, a Hub that could not be reached is not asked again; the next one asks anew."""
    _hub.depth += 1
    try:
        yield
    finally:
        _hub.depth -= 1
        if not _hub.depth:
            _hub.trouble = _hub.wanted = None


class _Hub:
    """What is known of the Hub.

    It was ``reached`` if it has answered, or ended a connection, in this process; else ``trouble`` is why it cannot be,
    if that is known, and ``wanted`` what could not be asked for first. ``depth`` of :func:`one_answer` are open.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.reached = False
        self.trouble: str | None = None
        self.wanted: str | None = None
        self._asking: threading.Thread | None = None
        self._lock = threading.Lock()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Let each request of the client's session come by :meth:`admit` first."""
        from huggingface_hub import get_session

        session: Any = get_session()
        if hasattr(session, "event_hooks"):
            before = session.event_hooks
            # First, so that nothing is sent of a request that is refused.
            own = [] if self._watch in before["request"] else [self._watch]
            session.event_hooks = {**before, "request": [*own, *before["request"]]}
            try:
                yield
            finally:
                session.event_hooks = before
            return
        # Releases before 1.0 are made on requests, which asks adapters.
        adapters = dict(session.adapters)
        for prefix, adapter in adapters.items():
            session.mount(prefix, _watching(adapter, self.admit))
        try:
            yield
        finally:
            session.adapters.update(adapters)

    def _watch(self, request: Any) -> None:
        self.admit(str(request.url))

    def admit(self, url: str) -> None:
        """Raise the client's own OfflineModeIsEnabled where the Hub cannot be reached: it then turns to its cache."""
        from huggingface_hub.errors import OfflineModeIsEnabled

        if threading.current_thread() is self._asking or self.reached or _is_offline_mode():
            return
        with self._lock:
            if self.trouble is None and not self.reached:
                self.trouble = self._why_unreachable(url)
                self.reached = self.trouble is None
        if self.trouble is not None:
            self.wanted = self.wanted or _repo(url)
            raise OfflineModeIsEnabled(f"the Hub cannot be reached ({self.trouble})")

    def _why_unreachable(self, url: str) -> str | None:
        """Ask a host for nothing but an answer; in a thread, since to look up its name may take as long as it likes."""
        from huggingface_hub import get_session

        session: Any = get_session()
        parts = urlsplit(url)
        seconds = _connect_seconds()
        connected, trouble = threading.Event(), [""]

        def trace(event: str, _: Any) -> None:
            if "send_request" in event:
                connected.set()

        if hasattr(session, "event_hooks"):
            timeout = (seconds, ANSWER_SECONDS, ANSWER_SECONDS, seconds)
            how: dict[str, Any] = {"timeout": timeout, "follow_redirects": False, "extensions": {"trace": trace}}
        else:
            # Which does not tell when it is connected: an answer is all that can be waited for.
            how = {"timeout": (seconds, ANSWER_SECONDS), "allow_redirects": False}
            connected.set()

        def ask() -> None:
            try:
                session.head(f"{parts.scheme}://{parts.netloc}/", **how)
            except Exception as error:
                if type(error).__name__ not in _CONNECTED:
                    trouble[0] = " ".join(str(error).split()) or type(error).__name__
            connected.set()

        self._asking = threading.Thread(target=ask, daemon=True)
        self._asking.start()
        # A little more than the connection's own limit, whose words say more.
        if not connected.wait(seconds + 0.3):
            return f"{parts.netloc}: no connection within {seconds:g} s"
        self._asking.join(ANSWER_SECONDS + 1)
        if self._asking.is_alive():
            return f"{parts.netloc}: connected, and no answer within {ANSWER_SECONDS:g} s"
        return f"{parts.netloc}: {trouble[0]}" if trouble[0] else None


_hub = _Hub()


def _watching(inner: Any, admit: Callable[[str], None]) -> Any:
    """An adapter of requests that asks ``admit`` first."""
    from requests.adapters import BaseAdapter

    class Watching(BaseAdapter):
        def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            admit(str(request.url))
            return inner.send(request, *args, **kwargs)

        def close(self) -> None:
            inner.close()

    return Watching()


def _is_offline_mode() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _connect_seconds() -> float:
    """Longer where a user has told the Hub's client to wait for longer."""
    from huggingface_hub import constants

    told = constants.HF_HUB_ETAG_TIMEOUT
    return float(told) if told > constants.DEFAULT_ETAG_TIMEOUT else CONNECT_SECONDS


def _has_cause(error: BaseException | None, kinds: tuple[type[BaseException], ...]) -> bool:
    """Whether an error is one of these, or came of one."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, kinds):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def _backbone(error: BaseException) -> str | None:
    """The repo of a backbone that could not be loaded, as the model says it; None of anything else."""
    found = re.match(r"(\S+), the backbone of \S+ cannot be loaded", str(error))
    return None if found is None else found[1]


def _repo(url: str) -> str | None:
    """The repo that a request is about, None where it is about something else."""
    path = urlsplit(url).path
    found = re.search(r"/api/(?:models|datasets)/([^/]+/[^/]+)|([^/]+/[^/]+)/resolve/", path)
    return None if found is None else found[1] or found[2]


def _sentence(wanted: str, trouble: str | None, instead: str | None) -> str:
    from huggingface_hub import constants

    if trouble is None:
        where = "HF_HUB_OFFLINE forbids to ask the Hub"
        mend = "unset it to fetch what is missing"
    else:
        where = f"the Hub cannot be reached ({trouble})"
        mend = "name a way out (HTTPS_PROXY) or a mirror (HF_ENDPOINT)"
        mend += ", fetch it where there is a network and copy the cache (HF_HOME)" if instead else ""
    if instead is None:
        return f"{where}: {mend}"
    missing = f"{wanted} is neither here nor complete in the cache ({constants.HF_HUB_CACHE})"
    return f"{missing}, and {where}: {mend}, or {instead}"
