"""The chat page's files: built from web/ by scripts/build-web, part of the package, read once and kept.

Knows how they are sent: types, caching, compression, and the policy that keeps a page which shows a model's
words from loading or running anything that is not in these files.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parent / "built"

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".woff2": "font/woff2",
}
_PACKED = {".woff2"}  # already compressed
_NAMED_BY_CONTENT = re.compile(r"assets/[\w-]+-[A-Z0-9]{8}\.\w+")
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # HTML enters the page through DOMPurify or not at all, also if the page had a mistake.
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
_PROTECTION = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True)
class PageFile:
    """One file, as it is sent."""

    name: str
    content: bytes

    @cached_property
    def packed(self) -> bytes | None:
        """Compressed, where that makes it smaller."""
        if Path(self.name).suffix in _PACKED:
            return None
        packed = gzip.compress(self.content, mtime=0)
        return packed if len(packed) < len(self.content) else None

    @cached_property
    def tag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:20]}"'

    def response(self, http: Request) -> Response:
        """The file, or 304 if the browser has it. A name with a hash in it always means the same bytes."""
        forever = _NAMED_BY_CONTENT.fullmatch(self.name)
        headers = _PROTECTION | {
            "ETag": self.tag,
            "Cache-Control": "public, max-age=31536000, immutable" if forever else "no-cache",
            "Vary": "Accept-Encoding",
        }
        known = http.headers.get("if-none-match", "")
        if self.tag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=headers)
        content = self.content
        if self.packed is not None and "gzip" in http.headers.get("accept-encoding", ""):
            content, headers["Content-Encoding"] = self.packed, "gzip"
        return Response(content, headers=headers, media_type=_TYPES[Path(self.name).suffix])


class PageFiles:
    """All of them, by the path they are asked for. Needs no key: they are the same for everybody."""

    def __init__(self, folder: Path = FOLDER) -> None:
        names = ["index.html", "licences.txt", *(f"assets/{path.name}" for path in folder.glob("assets/*"))]
        files = [PageFile(name, (folder / name).read_bytes()) for name in names]
        self._files = {"/" if file.name == "index.html" else f"/{file.name}": file for file in files}

    @property
    def paths(self) -> frozenset[str]:
        return frozenset(self._files)

    def get(self, path: str) -> PageFile | None:
        return self._files.get(path)
