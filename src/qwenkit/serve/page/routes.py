"""GET /: the chat page, and the files it is made of."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from qwenkit.serve.page.files import PageFiles


def router(files: PageFiles) -> APIRouter:
    """Routes over `files`. They are no part of the API, so its schema leaves them out."""
    routes = APIRouter(include_in_schema=False)

    @routes.api_route("/", methods=["GET", "HEAD"])
    @routes.api_route("/licences.txt", methods=["GET", "HEAD"])
    @routes.api_route("/assets/{name}", methods=["GET", "HEAD"])
    async def file(http: Request) -> Response:
        found = files.get(http.scope["path"])
        if found is None:
            raise HTTPException(404)
        return found.response(http)

    return routes
