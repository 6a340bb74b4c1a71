"""A hub on loopback that speaks as Hugging Face does, and can be told to misbehave.

Endpoints as huggingface_hub calls them: model info, recursive tree, HEAD and GET of resolve with
ETag, X-Repo-Commit, X-Linked-Etag, X-Linked-Size and Range. Large files ("LFS") are redirected to a
second path, as the real hub redirects to its CDN; that path refuses credentials.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repo:
    files: dict[str, bytes]
    gated: bool = False
    token: str | None = None  # needed to see it at all
    revisions: tuple[str, ...] = ("main", COMMIT)

    def is_large(self, name: str) -> bool:
        return name.endswith((".safetensors", ".bin", ".gguf"))


@dataclass
class Hub:
    repos: dict[str, Repo] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)  # names whose bytes are altered on the way
    cut: dict[str, int] = field(default_factory=dict)  # name -> bytes after which each answer breaks off
    ignores_range: bool = False
    refuse: dict[str, int] = field(default_factory=dict)  # name -> HTTP status of its content
    log: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range
    leaked: list[str] = field(default_factory=list)  # credentials seen by the CDN
    url: str = ""

    def asked(self, name: str) -> list[str | None]:
        """Range headers of the content requests for a file."""
        return [
            r
            for method, path, r in self.log
            if method == "GET" and path.endswith(f"/{name}") and "/cdn/" in path
        ]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.hub.log.append((self.command, path, self.headers.get("Range")))
        if path == "/":
            return self._send(200, b"hub")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            return self._describe(found[1], found[2] or "revision", found[3] or "main")
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(found[1], found[2], found[3])
        if found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            if self.headers.get("Authorization"):
                self.hub.leaked.append(self.headers["Authorization"])
            return self._content(found[1], found[2])
        return self._send(404, b"no such page")

    def _repo(self, name: str, revision: str, *, content: bool) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.token and self.headers.get("Authorization") != f"Bearer {repo.token}"):
            # The hub hides whether a private repository exists: 401 to strangers, 404 to a login.
            status = 404 if self.headers.get("Authorization") else 401
            self._send(status, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in repo.revisions:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif repo.gated and content:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        else:
            return repo
        return None

    def _describe(self, name: str, what: str, revision: str) -> None:
        repo = self._repo(name, revision, content=False)
        if repo is None:
            return None
        entries = []
        for path, content in repo.files.items():
            entry: dict[str, object] = {"size": len(content), "type": "file"}
            entry |= {"path": path, "oid": blob_id(content)} if what == "tree" else {}
            entry |= {"rfilename": path, "blobId": blob_id(content)} if what == "revision" else {}
            if repo.is_large(path):
                key = "oid" if what == "tree" else "sha256"
                entry["lfs"] = {key: sha256(content), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        answer: object = entries if what == "tree" else {"id": name, "sha": COMMIT, "siblings": entries}
        return self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repo = self._repo(name, revision, content=True)
        if repo is None:
            return None
        if path not in repo.files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = repo.files[path]
        if repo.is_large(path):
            headers = {
                "X-Repo-Commit": COMMIT,
                "X-Linked-Etag": f'"{sha256(content)}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/cdn/{name}/{path}",
            }
            return self._send(302, b"", headers)
        if path in self.hub.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{blob_id(repo.files[path])}"'}
        return self._send(200, content, headers)

    def _content(self, name: str, path: str) -> None:
        if path in self.hub.refuse:
            return self._send(self.hub.refuse[path], b"")
        content = self.hub.repos[name].files[path]
        if path in self.hub.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        begin, status, headers = 0, 200, {"ETag": f'"{sha256(content)}"'}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and not self.hub.ignores_range:
            begin, status = int(asked[1]), 206
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        return self._send(status, content[begin:], headers, self.hub.cut.get(path))

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut is not None and cut < len(body):
            self.wfile.write(body[:cut])
            self.close_connection = True
            return
        self.wfile.write(body)
