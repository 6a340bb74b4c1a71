"""GET /health, /ready and /metrics: what those who watch over the server ask."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qwenkit.serve.service import service

router = APIRouter()


@router.get("/health")
async def health(http: Request) -> JSONResponse:
    """200 while the engine is alive; 503 with the reason while it loads, stalls, restarts or failed."""
    here = service(http)
    now = here.engine.health()
    body = {
        "status": now.state,
        "reason": now.reason,
        "restarts": now.restarts,
        "alive_seconds": round(now.alive_s, 1),
        "running": now.numbers.running,
        "waiting": now.numbers.waiting,
    }
    return JSONResponse(body, 200 if now.state == "alive" else 503)


@router.get("/ready")
async def ready(http: Request) -> JSONResponse:
    """200 when a request sent now would be taken: the engine is alive and the server is not shutting down."""
    here = service(http)
    taking = here.engine.health().state == "alive" and not here.draining
    return JSONResponse({"ready": taking, "draining": here.draining}, 200 if taking else 503)


@router.get("/metrics")
async def metrics(http: Request) -> Response:
    """Prometheus' text format."""
    here = service(http)
    return Response(here.metrics.text(here.engine.health()), media_type="text/plain; version=0.0.4")
