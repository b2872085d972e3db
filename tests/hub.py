"""A small model and dataset hub on the loopback interface, for ``HF_ENDPOINT``.

It answers what the ``huggingface_hub`` and ``datasets`` clients ask, over HTTP and with the Hub's own status codes and
headers: repositories with commits, branches and tags; trees and single files; ranges; large files on an address of
their own; names of old that are redirected; private repositories; uploads, and commits that are there in full or not
at all. Large files travel as Git LFS: a client must run with ``HF_HUB_DISABLE_XET=1``.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

WRITER, READER = "hf_writer", "hf_reader"
"""Tokens of the user ``mill``: one that may write, one that may only read."""

_LARGE = (".parquet", ".safetensors", ".bin", ".onnx")
_API = re.compile(
    r"/api/(models|datasets)/((?:[^/]+/)?[^/]+?)(?:/(revision|tree|paths-info|preupload|commit)/([^/]+)(?:/(.+))?)?"
)
_RESOLVE = re.compile(r"/(datasets/)?((?:[^/]+/)?[^/]+?)/resolve/([^/]+)/(.+)")
_BATCH = re.compile(r"/(datasets/)?(.+?)\.git/info/lfs/objects/batch")

Files = dict[str, bytes]


@dataclass
class Repo:
    """A repository: every commit is a whole tree."""

    private: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    """Branch or tag → commit."""

    def commit(self, files: Files, branch: str = "main") -> str:
        """Make these files the branch's new commit; returns its id."""
        told = json.dumps([len(self.commits), {path: _sha256(data) for path, data in sorted(files.items())}])
        oid = hashlib.sha1(told.encode()).hexdigest()
        self.commits[oid] = dict(files)
        self.refs[branch] = oid
        return oid

    @property
    def head(self) -> Files:
        """What ``main`` holds."""
        return self.commits[self.refs["main"]]


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code, self.message = status, code, message


class Hub(ThreadingHTTPServer):
    """The server and what it holds."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[tuple[str, str], Repo] = {}
        """``models`` or ``datasets``, and the id → the repository."""
        self.renamed: dict[str, str] = {}
        """Name of old → id."""
        self.objects: dict[str, bytes] = {}
        """Large files that were uploaded, by SHA-256, whether a commit names them or not."""
        self.requests: list[tuple[str, str, str]] = []
        """Method, path and range of each request."""
        self.gate: Callable[[str, str], None] = lambda method, path: None
        """Is told of each request before it is answered, and may hold it up or raise a ``Refusal``."""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, kind: str, repo_id: str, files: Files, *, private: bool = False) -> str:
        """Make a repository of these files; returns its commit."""
        repo = self.repos[kind, repo_id] = Repo(private)
        return repo.commit({".gitattributes": b"", **files})

    def asked(self, pattern: str) -> list[tuple[str, str, str]]:
        """The requests so far whose method and path match."""
        return [one for one in self.requests if re.search(pattern, f"{one[0]} {one[1]}")]

    def open(self, kind: str, repo_id: str, token: str | None, *, write: bool = False) -> Repo:
        """The repository, if this token may have it."""
        repo = self.repos.get((kind, repo_id))
        if token not in (WRITER, READER, None):
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        if repo is None or (repo.private and token is None):
            # The Hub tells a stranger no more of a private repository than of one that is not there.
            raise Refusal(404 if token else 401, "RepoNotFound", "Repository not found")
        if write and token != WRITER:
            raise Refusal(403 if token else 401, "", "You have no right to write here")
        return repo


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """An empty hub, gone at the block's end."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def files_of(folder: Path) -> Files:
    """A local folder's files, for ``Hub.add``."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._chunks()
        self.server.requests.append((self.command, unquote(path), self.headers.get("Range", "")))
        try:
            self.server.gate(self.command, path)
            with self.server.lock:
                self._route(path)
        except Refusal as refusal:
            told = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self._send(refusal.status, {"error": refusal.message}, told)

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _send(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        with contextlib.suppress(ConnectionError):  # the client was killed meanwhile
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    @property
    def _token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def _route(self, path: str) -> None:
        hub = self.server
        if path == "/api/whoami-v2":
            if self._token not in (WRITER, READER):
                raise Refusal(401, "", "Invalid credentials in Authorization header")
            self._send(200, {"type": "user", "name": "mill", "orgs": [], "auth": {"type": "access_token"}})
        elif path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(self.body))
        elif match := re.fullmatch(r"/cdn/(\w+)", path):
            self._file(self._large(match[1]), {"ETag": f'"{match[1]}"'})
        elif match := re.fullmatch(r"/lfs/(\w+)", path):
            if _sha256(self.body) != match[1]:
                raise Refusal(400, "", "these bytes have another SHA-256")
            hub.objects[match[1]] = self.body
            self._send(200)
        elif match := _BATCH.fullmatch(path):
            self._batch("datasets" if match[1] else "models", match[2])
        elif match := _RESOLVE.fullmatch(path):
            if not self._redirected(match[2]):
                self._resolve("datasets" if match[1] else "models", match[2], unquote(match[3]), unquote(match[4]))
        elif match := _API.fullmatch(path):
            if not self._redirected(match[2]):
                self._api(match[1], match[2], match[3], unquote(match[4] or "main"), unquote(match[5] or ""))
        else:
            raise Refusal(404, "", f"nothing at {path}")

    def _redirected(self, repo_id: str) -> bool:
        new = self.server.renamed.get(repo_id)
        if new:
            self._send(307, b"", {"Location": self.path.replace(f"/{repo_id}", f"/{new}", 1)})
        return new is not None

    def _create(self, asked: dict[str, Any]) -> None:
        if self._token != WRITER:
            raise Refusal(403 if self._token else 401, "", "You have no right to write here")
        owner, kind = asked.get("organization") or "mill", f"{asked.get('type') or 'model'}s"
        if owner != "mill":
            raise Refusal(403, "", f"You have no right to make a repository below {owner}")
        repo_id = f"{owner}/{asked['name']}"
        there = (kind, repo_id) in self.server.repos
        if not there:
            self.server.add(kind, repo_id, {}, private=asked.get("visibility") == "private")
        self._send(
            409 if there else 200, {"url": f"{self.server.url}/{kind}/{repo_id}", "id": repo_id, "name": repo_id}
        )

    def _commit_of(self, repo: Repo, revision: str) -> tuple[str, Files]:
        oid = repo.refs.get(revision, revision)
        if oid not in repo.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid, repo.commits[oid]

    def _resolve(self, kind: str, repo_id: str, revision: str, path: str) -> None:
        oid, files = self._commit_of(self.server.open(kind, repo_id, self._token), revision)
        told = {"X-Repo-Commit": oid}
        if path not in files:
            raise Refusal(404, "EntryNotFound", f"{path} is not there")
        data = files[path]
        if path.endswith(_LARGE):  # from another address, as the Hub has it
            etag = _sha256(data)
            linked = {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
            self._send(302, b"", told | linked | {"Location": f"http://localhost:{self.server.server_port}/cdn/{etag}"})
        else:
            self._file(data, told | {"ETag": f'"{_git_sha1(data)}"'})

    def _large(self, oid: str) -> bytes:
        every = (
            data for repo in self.server.repos.values() for files in repo.commits.values() for data in files.values()
        )
        return next(data for data in every if _sha256(data) == oid)

    def _file(self, data: bytes, headers: dict[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            self._send(200, data, headers | {"Accept-Ranges": "bytes"})
            return
        start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        self._send(206, data[start : end + 1], headers | {"Content-Range": f"bytes {start}-{end}/{len(data)}"})

    def _batch(self, kind: str, repo_id: str) -> None:
        self.server.open(kind, repo_id, self._token, write=True)
        objects = []
        for one in json.loads(self.body)["objects"]:
            known = one["oid"] in self.server.objects
            upload = {"actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}}
            objects.append({"oid": one["oid"], "size": one["size"], **({} if known else upload)})
        self._send(200, {"transfer": "basic", "objects": objects})

    def _api(self, kind: str, repo_id: str, what: str | None, revision: str, path: str) -> None:
        repo = self.server.open(kind, repo_id, self._token, write=what in ("preupload", "commit"))
        if what == "commit":
            self._commit(repo, repo_id, revision)
            return
        oid, files = self._commit_of(repo, revision)
        if what in (None, "revision"):
            siblings = [{"rfilename": path} for path in sorted(files)]
            told = {"id": repo_id, "sha": oid, "private": repo.private, "siblings": siblings, "tags": []}
            self._send(200, {**told, "disabled": False, "gated": False, "downloads": 0, "likes": 0})
        elif what == "preupload":
            self._send(200, {"files": [_mode(one["path"], files) for one in json.loads(self.body)["files"]]})
        elif what == "paths-info":
            asked = [one.strip("/") for one in parse_qs(self.body.decode())["paths"]]
            entries = {entry["path"]: entry for entry in _tree(files, "", recursive=True)}
            self._send(200, [entries[one] for one in asked if one in entries])
        else:
            recursive = "recursive=true" in urlsplit(self.path).query.lower()
            entries_below = _tree(files, path, recursive=recursive)
            if path and not entries_below:
                raise Refusal(404, "EntryNotFound", f"{path} is not there")
            self._send(200, entries_below)

    def _commit(self, repo: Repo, repo_id: str, branch: str) -> None:
        files = dict(repo.commits[repo.refs[branch]])
        for line in self.body.splitlines():
            action = json.loads(line)
            key, value = action["key"], action["value"]
            if key == "header":
                if value.get("parentCommit", repo.refs[branch]) != repo.refs[branch]:
                    raise Refusal(412, "", "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.server.objects:
                    raise Refusal(400, "", f"{value['path']} was not uploaded")
                files[value["path"]] = self.server.objects[value["oid"]]
            elif key == "deletedFile":
                if value["path"] not in files:
                    raise Refusal(404, "EntryNotFound", "A file with this name doesn't exist")
                del files[value["path"]]
            else:
                raise Refusal(400, "", f"unknown action {key}")
        oid = repo.commit(files, branch)
        self._send(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{repo_id}/commit/{oid}"})


def _tree(files: Files, below: str, *, recursive: bool) -> list[dict[str, Any]]:
    """The entries of a folder, or of all folders below it, as the tree endpoint lists them."""
    begin = f"{below.strip('/')}/" if below else ""
    found: dict[str, dict[str, Any]] = {}
    for path, data in sorted(files.items()):
        if not path.startswith(begin):
            continue
        inside = path[len(begin) :].split("/")
        for depth in range(1, len(inside) if recursive else min(len(inside), 2)):
            folder = begin + "/".join(inside[:depth])
            found[folder] = {"type": "directory", "path": folder, "oid": _git_sha1(folder.encode()), "size": 0}
        if recursive or len(inside) == 1:
            found[path] = {"type": "file", "path": path, "oid": _git_sha1(data), "size": len(data)}
            if path.endswith(_LARGE):
                found[path]["lfs"] = {"oid": _sha256(data), "size": len(data), "pointerSize": 130}
    return list(found.values())


def _mode(path: str, files: Files) -> dict[str, Any]:
    """How a file is to be uploaded, and the hash of what is there under its name."""
    large = path.endswith(_LARGE)
    there = {"oid": _sha256(files[path]) if large else _git_sha1(files[path])} if path in files else {}
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **there}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
