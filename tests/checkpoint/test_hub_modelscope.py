"""pull() through ModelScope's own library against a hub on loopback.

The listing and its refusals are tested always; the transfer needs the library (peer tier).
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hub_server import sha256

from qwenkit.checkpoint import pull
from qwenkit.checkpoint.sources import modelscope as hub_modelscope
from qwenkit.checkpoint.sources.repository import HubName
from qwenkit.core import DownloadError

pytest_plugins = ["isolation"]

NAME = "org/model"
FILES = {
    "config.json": b"{}",
    "qwen.tiktoken": b"IQ== 0\n",
    "model.safetensors": bytes(range(256)) * 4000,
    "modeling_qwen.py": b"import os",
}


class Site:
    def __init__(self) -> None:
        self.corrupt: set[str] = set()
        self.log: list[str] = []
        self.url = ""


@pytest.fixture
def site(alone: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    state = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._send(200, b"")

        def do_GET(self) -> None:
            parts = urllib.parse.urlsplit(self.path)
            query = {k: v[0] for k, v in urllib.parse.parse_qs(parts.query).items()}
            state.log.append(f"{parts.path}?{query.get('FilePath', '')}")
            if query.get("Revision", "master") != "master":
                return self._send(404, json.dumps({"Code": 404, "Message": "no revision"}).encode())
            if parts.path == f"/api/v1/models/{NAME}/repo/files":
                files = [
                    {
                        "Path": n,
                        "Name": n,
                        "Type": "blob",
                        "Size": len(c),
                        "Sha256": sha256(c),
                        "Revision": "master",
                    }
                    for n, c in FILES.items()
                ]
                files.append({"Path": "assets", "Name": "assets", "Type": "tree", "Size": 0, "Sha256": ""})
                return self._json({"Files": files})
            if parts.path == f"/api/v1/models/{NAME}/repo" and query.get("FilePath") in FILES:
                content = FILES[query["FilePath"]]
                if query["FilePath"] in state.corrupt:
                    content = b"?" + content[1:]
                asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                if asked:
                    end = int(asked[2]) + 1 if asked[2] else len(content)
                    span = f"bytes {asked[1]}-{end - 1}/{len(content)}"
                    return self._send(206, content[int(asked[1]) : end], {"Content-Range": span})
                return self._send(200, content)
            if parts.path == f"/api/v1/models/{NAME}":
                return self._json({"Name": "model", "Path": "org"})
            return self._send(404, json.dumps({"Code": 404, "Message": "not found"}).encode())

        def _json(self, data: object) -> None:
            self._send(200, json.dumps({"Code": 200, "Success": True, "Data": data}).encode())

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", state.url)
    # The library reads its environment once, when it is imported.
    for module in [m for m in sys.modules if m.partition(".")[0] in ("modelscope", "modelscope_hub")]:
        monkeypatch.delitem(sys.modules, module)
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


needs_library = pytest.mark.skipif(
    importlib.util.find_spec("modelscope") is None,
    reason="peer tier: the package modelscope is not installed",
)


def test_listing_with_hashes_and_without_folders(site: Site) -> None:
    files = hub_modelscope._list(site.url, HubName(NAME), None)
    assert {f.path: (f.size, f.sha256) for f in files} == {n: (len(c), sha256(c)) for n, c in FILES.items()}


@pytest.mark.parametrize("wanted", [HubName("org/absent"), HubName(NAME, "v9")])
def test_refusal_names_model_and_revision(site: Site, wanted: HubName) -> None:
    with pytest.raises(
        DownloadError, match=rf"no model {wanted.repo} at revision '{wanted.revision or 'master'}'.*404"
    ):
        hub_modelscope._list(site.url, wanted, None)


def test_answer_that_is_no_listing(alone: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda text: {"Code": 200, "Data": None})
    with pytest.raises(DownloadError, match="did not list"):
        hub_modelscope._list(site.url, HubName(NAME), None)


@pytest.mark.peer
@needs_library
@pytest.mark.parametrize("plain", [False, True])
def test_fetched_and_checked(site: Site, tmp_path: Path, plain: bool) -> None:
    folder = pull(NAME, source="modelscope", local_dir=tmp_path / "plain" if plain else None)
    names = {"config.json", "qwen.tiktoken", "model.safetensors"}
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name in FILES} == {
        n: FILES[n] for n in names
    }
    site.log.clear()
    if not plain:
        assert pull(NAME, source="modelscope", offline=True) == folder
        assert site.log == []


@pytest.mark.peer
@needs_library
def test_auto_turns_to_modelscope(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pull(NAME)
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert "did not answer" in capsys.readouterr().err


@pytest.mark.peer
@needs_library
@pytest.mark.parametrize("broken", ["model.safetensors", "config.json"])
def test_altered_file_is_deleted(site: Site, tmp_path: Path, broken: str) -> None:
    site.corrupt = {broken}
    with pytest.raises(DownloadError, match=r"did not deliver|do not match"):
        pull(NAME, source="modelscope", local_dir=tmp_path / "plain")
    assert not (tmp_path / "plain" / broken).exists()


@pytest.mark.peer
@needs_library
def test_offline_without_a_copy(site: Site) -> None:
    with pytest.raises(DownloadError, match="nothing of it is in the hub caches"):
        pull(NAME, source="modelscope", offline=True)
    assert site.log == []
