"""A Hub to test against: enough of the Hub's HTTP API for the real huggingface_hub client, on the loopback only.

A repo is known by its id, one of a dataset by ``datasets/`` and its id.

Repos, commits, branches and pull requests live in memory. Weights and pictures are stored as LFS objects and
served, as the Hub does, through a redirect to a second address with range requests; everything else is a regular
git blob. Every request is logged with the bytes that its body sent, and faults can be put in front of any path.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".png", ".parquet")

# Of the Hub's own, those that tests use.
LICENSES = {"mit", "apache-2.0", "cc-by-4.0", "other", "unknown"}
SIZES = {"n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B"}


@dataclass
class Request:
    """One answered request."""

    method: str
    path: str
    status: int
    sent: int  # bytes of the body
    token: bool = False  # whether it came with the token


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests of ``method`` whose path matches.

    ``kind``: "status" answers with ``status``; "cut" closes the connection after half of the body; "short" answers with
    half of it, and says so; "slow" sends it in small pieces with pauses, ``seconds`` in all; "late" waits for
    ``seconds`` first; "refuse" closes without an answer.
    """

    method: str
    pattern: str
    kind: str
    times: int = 1
    status: int = 503
    seconds: float = 1.0


@dataclass(frozen=True)
class Large:
    """A file that stays on disk: its bytes are read when they are sent."""

    path: Path

    def __len__(self) -> int:
        return self.path.stat().st_size

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        """Bytes from ``start`` to ``end`` (exclusive), a little at a time."""
        with open(self.path, "rb") as file:
            file.seek(start)
            while start < end and (piece := file.read(min(1 << 22, end - start))):
                start += len(piece)
                yield piece


Content = bytes | Large


def digest_of(content: Content) -> str:
    """Name under which a large file is stored: SHA-256, or for a file on disk one that stands for it."""
    return hashlib.sha256(str(content.path).encode() if isinstance(content, Large) else content).hexdigest()


@dataclass
class Repo:
    private: bool = False
    commits: dict[str, dict[str, Any]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    pulls: int = 0

    def commit(self, files: dict[str, Any], ref: str = "main", oid: str | None = None) -> str:
        if oid is None:
            seed = f"{len(self.commits)}{ref}{sorted(files)}".encode() + b"".join(files.values())[:4096]
            oid = hashlib.sha1(seed).hexdigest()
        self.commits[oid] = files
        self.refs[ref] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


def blob_oid(content: Content) -> str:
    """Git's name of a blob."""
    if isinstance(content, Large):
        return digest_of(content)[:40]
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class FakeHub:
    """The server, its repos, its log and its faults. Use as a context manager."""

    def __init__(self, token: str = "hf_secret") -> None:
        self.token = token
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, Content] = {}
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.planned: dict[str, list[Fault]] = {}  # in force from a mark of that name to the next mark
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            def setup(self) -> None:
                self.hub = hub
                super().setup()

        # The second is where large files lie: clients treat a redirect to another host in its own way.
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
        for server in self.servers:
            server.daemon_threads = True

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.servers[0].server_address[1]}"

    @property
    def storage(self) -> str:
        return f"http://127.0.0.1:{self.servers[1].server_address[1]}"

    def __enter__(self) -> FakeHub:
        for server in self.servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def add(
        self, repo_id: str, folder: Path, ref: str = "main", private: bool = False, commit: str | None = None
    ) -> str:
        """Publish the files of a folder as a commit; returns its id. With an id given, weights stay on disk."""
        repo = self.repos.setdefault(repo_id, Repo(private=private))
        files: dict[str, Content] = {}
        for path in folder.rglob("*"):
            if path.is_file():
                large = commit is not None and path.suffix in LFS_SUFFIXES
                files[str(path.relative_to(folder))] = Large(path) if large else path.read_bytes()
        for content in files.values():
            self.objects[digest_of(content)] = content
        return repo.commit(files, ref, commit)

    def marked(self, name: str) -> int:
        """Position in the log just after the client said ``GET /mark/<name>``."""
        with self.lock:
            return next(i + 1 for i, request in enumerate(self.log) if request.path == f"/mark/{name}")

    def between(self, start: str, end: str) -> list[Request]:
        """Requests between two marks."""
        return self.log[self.marked(start) : self.marked(end) - 1]

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.pattern, path):
                    fault.times -= 1
                    return fault
        return None


def weights_sent(requests: list[Request]) -> int:
    """Bytes of LFS objects (weights) that were downloaded."""
    return sum(request.sent for request in requests if request.method == "GET" and "/cdn/" in request.path)


def repos_asked(requests: list[Request]) -> set[str]:
    """Repos from which any file was asked for."""
    found = (re.match(r"/([\w.-]+/[\w.-]+)/resolve/", request.path) for request in requests)
    return {match[1] for match in found if match}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub
    fault: Fault | None = None

    def log_message(self, *args: object) -> None:
        pass

    # -- answers ---------------------------------------------------------------------------------------------

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, length: int = -1) -> None:
        fault, self.fault = self.fault, None
        if fault is not None and fault.kind == "short":
            body = body[: len(body) // 2]
        piece = body
        if fault is not None and fault.kind == "cut":
            piece = body[: len(body) // 2]
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        sent = 0
        if self.command != "HEAD":
            if fault is not None and fault.kind == "slow":
                step = max(1, len(piece) // 20)
                for start in range(0, len(piece), step):
                    self.wfile.write(piece[start : start + step])
                    time.sleep(fault.seconds / 20)
            else:
                self.wfile.write(piece)
            sent = len(piece)
        with self.hub.lock:
            self.hub.log.append(Request(self.command, self.path, status, sent, self.hub.token in str(self.headers)))
        if fault is not None and fault.kind == "cut":
            self.close_connection = True

    def stream(self, status: int, content: Large, start: int, end: int, headers: dict[str, str]) -> None:
        """Answer with a part of a file on disk."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(end - start)}.items():
            self.send_header(name, value)
        self.end_headers()
        for piece in content.pieces(start, end) if self.command == "GET" else ():
            self.wfile.write(piece)
        with self.hub.lock:
            sent = end - start if self.command == "GET" else 0
            self.hub.log.append(Request(self.command, self.path, status, sent, self.hub.token in str(self.headers)))

    def json(self, value: object, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def error(self, status: int, code: str, message: str) -> None:
        self.answer(
            status,
            json.dumps({"error": message}).encode(),
            {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"},
        )

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    # -- routes ----------------------------------------------------------------------------------------------

    def handle_any(self) -> None:
        self.fault = self.hub.take_fault(self.command, self.path)
        content = self.body() if self.command in ("POST", "PUT") else b""
        if self.fault is not None and self.fault.kind == "refuse":
            self.close_connection = True
            return
        if self.fault is not None and self.fault.kind == "late":
            time.sleep(self.fault.seconds)
        if self.fault is not None and self.fault.kind == "status":
            status, self.fault = self.fault.status, None
            self.error(status, "", "trouble on purpose")
            return
        parts = urlsplit(self.path)
        for method, pattern, action in _ROUTES:
            match = re.fullmatch(pattern, parts.path)
            if match and self.command in method.split("|"):
                values = [unquote(value) for value in match.groups() if value is not None]
                getattr(self, action)(*values, content=content, query=parse_qs(parts.query))
                return
        self.error(404, "", f"no such route: {self.command} {self.path}")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815

    def find(self, repo_id: str, write: bool = False) -> Repo | None:
        """The repo, if this client may see it; answers 401 or 404 otherwise, as the Hub does."""
        repo = self.hub.repos.get(repo_id)
        if write and not self.authorised():
            self.error(401, "", "Invalid username or password.")
            return None
        if repo is None or (repo.private and not self.authorised()):
            self.error(404 if self.authorised() else 401, "RepoNotFound", "Repository not found")
            return None
        return repo

    def at(self, repo_id: str, revision: str, write: bool = False) -> tuple[Repo, str] | None:
        """The repo and the commit of a revision; answers 401 or 404 otherwise."""
        repo = self.find(repo_id, write)
        if repo is None:
            return None
        oid = repo.resolve(revision)
        if oid is None:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo, oid

    def mark(self, name: str, **_: object) -> None:
        with self.hub.lock:
            self.hub.faults = self.hub.planned.get(name, [])
        self.answer(200)

    def whoami(self, **_: object) -> None:
        if not self.authorised():
            self.error(401, "", "Invalid username or password.")
        else:
            self.json({"name": "me", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def validate_yaml(self, content: bytes, **_: object) -> None:
        """What the Hub is known to refuse: a licence and a size that it has no name for, and tags that are no text."""
        card = json.loads(content)["content"]
        data = yaml.safe_load(card.split("---")[1]) or {}
        errors = []
        if data.get("license", "mit") not in LICENSES:
            errors.append('"license" must be one of the Hub\'s licences')
        if not set(data.get("size_categories", [])) <= SIZES:
            errors.append('"size_categories" must be those of the Hub')
        if not all(isinstance(tag, str) and tag for tag in data.get("tags", [])):
            errors.append('"tags" must be texts')
        self.json({"errors": [{"message": one} for one in errors], "warnings": []}, 400 if errors else 200)

    def create_repo(self, content: bytes, **_: object) -> None:
        if not self.authorised():
            self.error(401, "", "Invalid username or password.")
            return
        asked = json.loads(content)
        prefix = "datasets/" if asked.get("type") == "dataset" else ""
        repo_id = f"{prefix}{asked.get('organization') or 'me'}/{asked['name']}"
        url = f"{self.hub.endpoint}/{repo_id}"
        if repo_id in self.hub.repos:
            self.answer(409, json.dumps({"error": "You already created this model repo", "url": url}).encode())
            return
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.repos[repo_id] = Repo(private=private)
        self.hub.repos[repo_id].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self.json({"url": url, "name": repo_id, "id": repo_id.removeprefix("datasets/")})

    def create_branch(self, repo_id: str, branch: str, **_: object) -> None:
        repo = self.find(repo_id, write=True)
        if repo is not None:
            if branch in repo.refs:
                self.error(409, "", "Reference already exists")
                return
            repo.refs[branch] = repo.refs["main"]
            self.json({}, 201)

    def info(self, repo_id: str, revision: str = "main", **_: object) -> None:
        found = self.at(repo_id, revision)
        if found is None:
            return
        repo, oid = found
        self.json(
            {
                "_id": "0",
                "id": repo_id.removeprefix("datasets/"),
                "modelId": repo_id,
                "sha": oid,
                "private": repo.private,
                "disabled": False,
                "gated": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "createdAt": "2026-01-01T00:00:00.000Z",
                "siblings": [{"rfilename": name} for name in sorted(repo.commits[oid])],
            }
        )

    def refs(self, repo_id: str, **_: object) -> None:
        repo = self.find(repo_id)
        if repo is not None:
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
                for name, oid in repo.refs.items()
                if not name.startswith("refs/")
            ]
            self.json({"branches": branches, "tags": [], "converts": [], "pullRequests": []})

    def entries(self, files: dict[str, Any]) -> list[dict[str, object]]:
        found = []
        for name, content in sorted(files.items()):
            entry: dict[str, object] = {
                "type": "file",
                "path": name,
                "size": len(content),
                "oid": blob_oid(content),
            }
            if name.endswith(LFS_SUFFIXES):
                entry["lfs"] = {
                    "oid": digest_of(content),
                    "size": len(content),
                    "pointerSize": 130,
                }
            found.append(entry)
        return found

    def tree(self, repo_id: str, revision: str, *path: str, query: dict[str, list[str]], **_: object) -> None:
        found = self.at(repo_id, revision)
        if found is None:
            return
        repo, oid = found
        folder = unquote(path[0]).strip("/") if path else ""
        inside = f"{folder}/" if folder else ""
        held = {name: data for name, data in repo.commits[oid].items() if name.startswith(inside)}
        if folder and not held:
            self.error(404, "EntryNotFound", f"{folder} does not exist on {revision}")
            return
        deeper = {name for name in held if "/" in name[len(inside) :]}
        folders = {inside + name[len(inside) :].partition("/")[0] for name in deeper}
        found_folders = [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(folders)]
        if query.get("recursive", ["false"])[0].lower() != "true":
            held = {name: data for name, data in held.items() if name not in deeper}
        self.json([*found_folders, *self.entries(held)])

    def paths_info(self, repo_id: str, revision: str, content: bytes, **_: object) -> None:
        found = self.at(repo_id, revision)
        if found is None:
            return
        repo, oid = found
        if "json" in (self.headers.get("Content-Type") or ""):
            wanted = json.loads(content)["paths"]
        else:
            wanted = parse_qs(content.decode()).get("paths", [])
        self.json(self.entries({name: data for name, data in repo.commits[oid].items() if name in wanted}))

    def preupload(self, repo_id: str, revision: str, content: bytes, **_: object) -> None:
        found = self.at(repo_id, revision, write=True)
        if found is None:
            return
        oid = found[1]
        answers = []
        for file in json.loads(content)["files"]:
            lfs = file["path"].endswith(LFS_SUFFIXES)
            answers.append({"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False})
        self.json({"files": answers, "commitOid": oid})

    def lfs_batch(self, repo_id: str, content: bytes, **_: object) -> None:
        if self.find(repo_id, write=True) is None:
            return
        answers = []
        for wanted in json.loads(content)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.storage}/upload/{wanted['oid']}"}}
            answers.append(answer)
        self.json({"transfer": "basic", "objects": answers})

    def upload(self, oid: str, content: bytes, **_: object) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            self.error(400, "", "the object's digest is another")
            return
        self.hub.objects[oid] = content
        self.answer(200, headers={"ETag": f'"{oid}"'})

    def commit(self, repo_id: str, revision: str, content: bytes, query: dict[str, list[str]]) -> None:
        found = self.at(repo_id, revision, write=True)
        if found is None:
            return
        repo, base = found
        files = dict(repo.commits[base])
        for line in content.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                if value["path"] not in files:
                    self.error(404, "EntryNotFound", "A file with this name doesn't exist")
                    return
                del files[value["path"]]
        answer: dict[str, object] = {"success": True, "hookOutput": ""}
        if query.get("create_pr") == ["1"]:
            repo.pulls += 1
            oid = repo.commit(files, f"refs/pr/{repo.pulls}")
            answer["pullRequestUrl"] = f"{self.hub.endpoint}/{repo_id}/discussions/{repo.pulls}"
        else:
            oid = repo.commit(files, revision)
        self.json({**answer, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{oid}"})

    def resolve(self, repo_id: str, revision: str, name: str, **_: object) -> None:
        found = self.at(repo_id, revision)
        if found is None:
            return
        repo, oid = found
        content = repo.commits[oid].get(name)
        if content is None:
            self.answer(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid})
            return
        if not name.endswith(LFS_SUFFIXES):
            self.ranged(content, {"X-Repo-Commit": oid, "ETag": f'"{blob_oid(content)}"'})
            return
        digest = digest_of(content)
        headers = {
            "X-Repo-Commit": oid,
            "X-Linked-Size": str(len(content)),
            "X-Linked-ETag": f'"{digest}"',
            "ETag": f'"{blob_oid(content)}"',
            "Location": f"{self.hub.storage}/cdn/{digest}",
        }
        self.answer(302, b"", headers)

    def cdn(self, digest: str, **_: object) -> None:
        content = self.hub.objects[digest]
        headers = {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if isinstance(content, Large):
            start, end = (
                (0, len(content)) if wanted is None else (int(wanted[1]), int(wanted[2] or len(content) - 1) + 1)
            )
            if wanted is not None:
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
            self.stream(200 if wanted is None else 206, content, start, end, headers)
            return
        self.ranged(content, headers)

    def ranged(self, content: bytes, headers: dict[str, str]) -> None:
        """Answer with the part of a file that is asked for."""
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        headers = {**headers, "Accept-Ranges": "bytes"}
        if wanted is None:
            self.answer(200, content, headers)
            return
        if not wanted[1]:
            wanted = re.fullmatch(r"(\d+)-()", f"{max(0, len(content) - int(wanted[2]))}-")
            assert wanted is not None
        start, end = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
        if start > end:
            self.answer(416, headers={"Content-Range": f"bytes */{len(content)}"})
            return
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self.answer(206, content[start : end + 1], headers)


_REPO = r"((?:datasets/)?[\w.-]+/[\w.-]+)"
_API = r"/api/(?:models/)?((?:datasets/)?[\w.-]+/[\w.-]+)"
_ROUTES = [
    ("GET", r"/mark/(.+)", "mark"),
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", r"/api/repos/create", "create_repo"),
    ("POST", rf"{_API}/branch/([^/]+)", "create_branch"),
    ("GET", rf"{_API}/refs", "refs"),
    ("GET", rf"{_API}/revision/([^/]+)", "info"),
    ("GET", rf"{_API}/tree/([^/]+)(/.*)?", "tree"),
    ("POST", rf"{_API}/paths-info/([^/]+)", "paths_info"),
    ("POST", rf"{_API}/preupload/([^/]+)", "preupload"),
    ("POST", rf"{_API}/commit/([^/]+)", "commit"),
    ("GET", rf"{_API}", "info"),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/upload/([0-9a-f]{64})", "upload"),
    ("GET|HEAD", rf"/{_REPO}/resolve/([^/]+)/(.+)", "resolve"),
    ("GET|HEAD", r"/cdn/([0-9a-f]{64})", "cdn"),
]
