"""Whether the Hub can be reached is found out once, in seconds; what is in the cache is used; slow is not absent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from rd_hf import network
from rd_hf.data.records import InputError
from tests.hub.server import FakeHub, Fault

forget_session: Callable[[], None] = getattr(huggingface_hub, "close_session", None) or huggingface_hub.reset_sessions  # type: ignore[attr-defined]
IS_HTTPX = hasattr(huggingface_hub.get_session(), "event_hooks")


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The client of a machine that is not told to be offline, which has asked nobody yet."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(network._hub, "reached", False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    forget_session()
    yield
    forget_session()


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that were asked whether they are there."""
    asked: list[str] = []
    real = network._Hub._why_unreachable

    def counted(hub: Any, url: str) -> str | None:
        asked.append(url)
        return real(hub, url)

    monkeypatch.setattr(network._Hub, "_why_unreachable", counted)
    return asked


@pytest.fixture
def nobody() -> str:
    """An address of this machine where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """Somebody who lets connections come, and takes up none."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        yield listener


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "config.json").write_text("{}")
    (tmp_path / "repo" / "vocab.txt").write_text("A\n")
    with FakeHub() as hub:
        hub.add("lab/model", tmp_path / "repo")
        yield hub


@network.asks_hub
def fetch(repo: str, endpoint: str, cache: Path, *names: str, revision: str | None = None) -> list[str]:
    files = names or ("config.json",)
    return [hf_hub_download(repo, name, endpoint=endpoint, cache_dir=cache, revision=revision) for name in files]


def test_a_refused_connection_is_one_sentence_after_one_attempt(nobody: str, probes: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        fetch("lab/model", nobody, tmp_path)
    assert "\n" not in str(caught.value)
    for words in ("lab/model is neither here nor complete in the cache", "refused", "HTTPS_PROXY", "rd-esm2-mini"):
        assert words in str(caught.value)
    assert len(probes) == 1


def test_within_one_command_a_hub_that_was_not_there_is_not_asked_again(
    nobody: str, probes: list[str], tmp_path: Path
) -> None:
    with network.one_answer():
        for repo in ("lab/a", "lab/b"):
            with pytest.raises(InputError, match="lab/a is neither here"):
                fetch(repo, nobody, tmp_path)
    assert len(probes) == 1
    with pytest.raises(InputError, match="lab/c is neither here"):
        fetch("lab/c", nobody, tmp_path)
    assert len(probes) == 2, "the cable may be in by now"


def test_a_hub_that_has_answered_is_not_asked_again(hub: FakeHub, probes: list[str], tmp_path: Path) -> None:
    fetch("lab/model", hub.endpoint, tmp_path / "a")
    fetch("lab/model", hub.endpoint, tmp_path / "b", "config.json", "vocab.txt")
    assert len(probes) == 1


def test_what_is_in_the_cache_is_used_without_a_hub(
    hub: FakeHub, nobody: str, probes: list[str], tmp_path: Path
) -> None:
    found = fetch("lab/model", hub.endpoint, tmp_path, "config.json", "vocab.txt")
    network._hub.reached = False
    assert fetch("lab/model", nobody, tmp_path, "config.json", "vocab.txt") == found
    assert len(probes) == 2


def test_a_file_of_a_commit_that_is_in_the_cache_is_used_without_asking(
    hub: FakeHub, nobody: str, probes: list[str], tmp_path: Path
) -> None:
    found = fetch("lab/model", hub.endpoint, tmp_path)
    network._hub.reached = False
    del probes[:]
    assert fetch("lab/model", nobody, tmp_path, revision=Path(found[0]).parent.name) == found
    assert probes == []


def test_a_server_that_is_slow_is_waited_for(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its answers take longer than a connection may."""
    monkeypatch.setattr(network, "CONNECT_SECONDS", 0.2)
    hub.faults = [Fault("HEAD", "", "late", times=9, seconds=0.8)]
    assert fetch("lab/model", hub.endpoint, tmp_path)


def test_limits_leave_time_for_a_slow_server_and_none_for_an_absent_one() -> None:
    assert network.CONNECT_SECONDS + 0.3 < 5
    assert network.ANSWER_SECONDS > 8


def test_whoever_told_the_client_to_wait_longer_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    assert network._connect_seconds() == network.CONNECT_SECONDS
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 30)
    assert network._connect_seconds() == 30


@pytest.mark.parametrize("full", [False, True], ids=["never takes up", "takes no more"])
def test_packets_that_go_nowhere_are_a_sentence(
    full: bool, silent: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(network, "CONNECT_SECONDS", 0.4)
    port = silent.getsockname()[1]
    waiting = []
    if full:
        silent.listen(0)
        for _ in range(3):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(("127.0.0.1", port))
    # Unless certificates are exchanged, one that takes up late looks the same.
    with pytest.raises(InputError, match=f"cannot be reached .*127.0.0.1:{port}: .*timed out"):
        fetch("lab/model", f"{'http' if full else 'https'}://127.0.0.1:{port}", tmp_path)
    for one in waiting:
        one.close()


def test_a_server_that_never_answers_is_a_sentence(
    silent: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(network, "ANSWER_SECONDS", 0.4)
    with pytest.raises(InputError, match=r"cannot be reached .*timed out"):
        fetch("lab/model", f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path)


@pytest.mark.skipif(not IS_HTTPX, reason="the client's releases before 1.0 do not tell when they are connected")
def test_a_name_that_is_looked_up_for_ever_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given_up = threading.Event()

    def look_up(*_: object, **__: object) -> None:
        given_up.wait(10)  # whoever waits for the end of it hears other words
        raise socket.gaierror("gave up")

    monkeypatch.setattr(network, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(InputError, match=r"hub.invalid: no connection within 0.2 s"):
        fetch("lab/model", "https://hub.invalid", tmp_path)
    given_up.set()


def test_a_name_that_nobody_knows_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def look_up(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(InputError, match=r"hub.invalid: .*Name or service not known"):
        fetch("lab/model", "https://hub.invalid", tmp_path)


def test_a_proxy_is_the_way_out(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The name of the Hub is one that this machine could not look up: only who asks the proxy gets an answer."""
    monkeypatch.setenv("HTTP_PROXY", hub.endpoint)
    monkeypatch.setenv("http_proxy", hub.endpoint)
    forget_session()
    assert fetch("lab/model", "http://hub.invalid", tmp_path)


def test_a_proxy_that_is_not_there_is_named(nobody: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HTTPS_PROXY", nobody)
    monkeypatch.setenv("https_proxy", nobody)
    forget_session()
    with pytest.raises(InputError, match=r"cannot be reached .*refused"):
        fetch("lab/model", "https://hub.invalid", tmp_path)


def test_a_hub_that_is_told_not_to_be_asked_is_not(
    nobody: str, probes: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget_session()
    with pytest.raises(InputError, match=r"lab/model is neither here .*HF_HUB_OFFLINE forbids"):
        fetch("lab/model", nobody, tmp_path)
    assert probes == []


def test_errors_of_a_hub_that_answers_are_its_own(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError):
        fetch("lab/nothing", hub.endpoint, tmp_path)
    hub.faults = [Fault("HEAD", "config", "status", times=99, status=403)]
    with pytest.raises((HfHubHTTPError, OSError)) as caught:
        fetch("lab/model", hub.endpoint, tmp_path)
    assert not isinstance(caught.value, InputError)


def test_a_connection_that_breaks_once_is_no_absent_hub(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults = [Fault("HEAD", "^/$", "refuse", times=1)]
    assert fetch("lab/model", hub.endpoint, tmp_path)


def test_an_error_that_has_nothing_to_do_with_the_hub_passes(nobody: str) -> None:
    with pytest.raises(ZeroDivisionError), network.hub_asked_once("lab/model"):
        _ = 1 / 0


def test_what_is_sent_needs_no_cache(nobody: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught, network.hub_asked_once("me/m", instead=None):
        huggingface_hub.HfApi(endpoint=nobody).whoami(token="hf_x")
    assert str(caught.value).startswith("the Hub cannot be reached")
    assert "cache" not in str(caught.value)


@pytest.mark.skipif(not IS_HTTPX, reason="the client's releases before 1.0 have a session a thread")
def test_the_client_is_left_as_it_was(nobody: str, tmp_path: Path) -> None:
    before = huggingface_hub.get_session().event_hooks
    with pytest.raises(InputError):
        fetch("lab/model", nobody, tmp_path)
    assert huggingface_hub.get_session().event_hooks == before
