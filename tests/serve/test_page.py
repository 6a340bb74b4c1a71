"""The chat page's files: complete, current, sent as they should be, and asking nobody else for anything."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from standin_engine import ask

from qwenkit.serve.guard.keys import Keys
from qwenkit.serve.page.files import FOLDER, PageFiles

WEB = Path(__file__).parents[2] / "web"
BUILT = sorted(path for path in FOLDER.rglob("*") if path.is_file())
WORDS = {name: json.loads((WEB / f"src/words/{name}.json").read_text()) for name in ("en", "zh")}


def get(path: str, *, method: str = "GET", settings: Any = None, **headers: str) -> httpx.Response:
    async def what(client: httpx.AsyncClient) -> httpx.Response:
        return await client.request(method, path, headers=headers)

    answer: httpx.Response = ask(what, **(settings or {}))
    return answer


def test_page_and_all_it_refers_to_are_served() -> None:
    page = get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    names = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(names) == 4
    css = next(get(f"/{name}").text for name in names if name.endswith(".css"))
    fonts = re.findall(r'url\("?\./([^")]+)"?\)', css)
    assert len(fonts) == 20
    kinds = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "woff2": "font/woff2"}
    for name in [*names, *(f"assets/{font}" for font in fonts)]:
        found = get(f"/{name}")
        assert found.status_code == 200
        assert found.headers["content-type"].split(";")[0] == kinds[name.rpartition(".")[2]]
        assert found.headers["cache-control"] == "public, max-age=31536000, immutable"
    for script in FOLDER.glob("assets/*.js"):
        for name in re.findall(r'(?:from|import)\(?"\./([^"]+)"', script.read_text()):
            assert (script.parent / name).is_file(), f"{script.name} imports {name}"


def test_policy_lets_nothing_in_from_elsewhere() -> None:
    for path in ("/", "/licences.txt", *(f"/{p.relative_to(FOLDER)}" for p in FOLDER.glob("assets/*.js"))):
        headers = get(path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'self'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert all(
            "unsafe" not in value and "*" not in value and ":" not in value for value in policy.values()
        )
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
    html = (FOLDER / "index.html").read_text()
    assert "<style" not in html
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", html))
    assert not re.search(r"\son\w+=|style=", html)


def test_browser_that_has_a_file_is_not_sent_it_again() -> None:
    first = get("/")
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for known in (tag, f'"other", {tag}', f"W/{tag}"):
        again = get("/", **{"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert get("/", **{"If-None-Match": '"other"'}).status_code == 200


def test_files_are_packed_for_those_who_can_unpack() -> None:
    name = next(FOLDER.glob("assets/main-*.js")).name
    plain = get(f"/assets/{name}", **{"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    packed = get(f"/assets/{name}", **{"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < len(plain.content) / 2
    assert packed.content == plain.content == (FOLDER / "assets" / name).read_bytes()
    head = get(f"/assets/{name}", method="HEAD", **{"Accept-Encoding": "gzip"})
    assert head.headers["content-length"] == packed.headers["content-length"]
    assert head.content == b""


@pytest.mark.parametrize(
    "path",
    [
        "/assets/none.js",
        "/assets/",
        "/assets/../index.html",
        "/assets/..%2findex.html",
        "/built-from.txt",
        "/x",
    ],
)
def test_nothing_else_is_served(path: str) -> None:
    assert get(path).status_code == 404


def test_page_needs_no_key_and_the_api_does() -> None:
    settings = {"keys": Keys(["a-long-enough-key"])}
    for path in PageFiles().paths:
        assert get(path, settings=settings).status_code == 200
    assert get("/v1/models", settings=settings).status_code == 401
    assert get("/assets/none.js", settings=settings).status_code == 401


def test_page_can_be_left_out() -> None:
    settings = {"page": False}
    assert get("/", settings=settings).status_code == 404
    assert get("/licences.txt", settings=settings).status_code == 404
    assert get("/v1/models", settings=settings).status_code == 200


def test_page_is_no_part_of_the_apis_schema() -> None:
    assert not {"/", "/licences.txt"} & get("/openapi.json").json()["paths"].keys()


def test_built_files_name_nobody_to_ask() -> None:
    """Addresses in them are names of XML's vocabularies, or stand in comments and messages."""
    known = {
        "http://www.w3.org/1998/Math/MathML", "http://www.w3.org/1999/xhtml", "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg", "http://www.w3.org/XML/1998/namespace", "http://www.w3.org/2000/xmlns/",
        "https://github.com/markedjs/marked", "https://github.com/highlightjs/highlight.js/issues/2277",
        "https://github.com/highlightjs/highlight.js/wiki/security",
    }  # fmt: skip
    found = set()
    for path in BUILT:
        if path.suffix in (".js", ".css", ".html", ".svg"):
            found |= set(re.findall(r"https?://[\w./-]*[\w/]", path.read_text()))
            assert not re.search(r"""(?:src|href|url\(|import\()\s*=?\s*["']?//""", path.read_text())
    assert found - known == set()


def test_built_files_are_small_and_bring_their_licences() -> None:
    assert sum(path.stat().st_size for path in BUILT) < 1_200_000
    licences = (FOLDER / "licences.txt").read_text()
    for package in json.loads((WEB / "package.json").read_text())["dependencies"]:
        assert re.search(rf"^{re.escape(package)} \d", licences, re.MULTILINE)


def test_built_files_are_from_these_sources() -> None:
    """If this fails, run scripts/build-web."""
    names = ["build.mjs", "icon.svg", "index.html", "package-lock.json"]
    names += [path.relative_to(WEB).as_posix() for path in (WEB / "src").rglob("*") if path.is_file()]
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name} {hashlib.sha256((WEB / name).read_bytes()).hexdigest()}\n".encode())
    assert (FOLDER / "built-from.txt").read_text().strip() == digest.hexdigest()


def test_wheels_have_the_built_files() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 has it")
    pathspec = pytest.importorskip("pathspec", reason="mypy and the build bring it")
    settings = tomllib.loads((WEB.parent / "pyproject.toml").read_text())["tool"]["scikit-build"]["wheel"]
    assert settings["packages"] == ["src/qwenkit"]
    left_out = pathspec.GitIgnoreSpec.from_lines(settings["exclude"])
    ignored = pathspec.GitIgnoreSpec.from_lines((WEB.parent / ".gitignore").read_text().splitlines())
    for path in BUILT:
        name = path.relative_to(FOLDER.parents[3]).as_posix()
        assert name.startswith("qwenkit/serve/page/built/")
        assert not left_out.match_file(name)
        assert not ignored.match_file(f"src/{name}")


def test_building_again_gives_the_same_bytes(tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("browser tier: building the page needs node")
    installed = WEB / "node_modules/.package-lock.json"
    if not installed.is_file():
        pytest.skip("browser tier: the page's packages are not installed; run scripts/build-web")
    wanted = json.loads((WEB / "package-lock.json").read_text())["packages"]
    for name, package in json.loads(installed.read_text())["packages"].items():
        if package["version"] != wanted.get(name, {}).get("version"):
            pytest.skip(f"browser tier: {name} is not the one of package-lock.json; run scripts/build-web")
    subprocess.run(["node", "build.mjs", str(tmp_path / "page")], cwd=WEB, check=True, timeout=120)
    again = {p.relative_to(tmp_path / "page"): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert again == {path.relative_to(FOLDER): path.read_bytes() for path in BUILT}


def test_both_languages_say_the_same_things() -> None:
    english, chinese = WORDS["en"], WORDS["zh"]
    assert list(english) == list(chinese)
    for name, words in english.items():
        assert sorted(re.findall(r"\{\w+\}", words)) == sorted(re.findall(r"\{\w+\}", chinese[name])), name
        assert words.strip()
        assert chinese[name].strip()


def test_every_word_is_used_and_none_is_missing() -> None:
    sources = "\n".join(path.read_text() for path in (WEB / "src").rglob("*.ts*"))
    rooms = "|".join({name.partition(".")[0] for name in WORDS["en"]})
    used = set(re.findall(rf'"((?:{rooms})\.[\w.]+)"', sources))
    states = {f"server.{state}" for state in ("checking", "loading", "locked", "unreachable")}
    parameters = {name for name in WORDS["en"] if name.startswith("parameter.")}
    assert used | states | parameters == WORDS["en"].keys()


def test_text_of_assets_survives_packing() -> None:
    for path in PageFiles().paths:
        found = PageFiles().get(path)
        assert found is not None
        assert found.packed is None or gzip.decompress(found.packed) == found.content
