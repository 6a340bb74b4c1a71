"""What all routes of one server share."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field

from starlette.requests import Request

import qwenkit
from qwenkit.serve.engine.messages import ModelCard
from qwenkit.serve.engine.reply import ReplyGroup
from qwenkit.serve.engine.supervisor import EngineClient
from qwenkit.serve.errors import ServeError, engine_unavailable
from qwenkit.serve.guard.limits import Admission
from qwenkit.serve.http.metrics import Metrics
from qwenkit.serve.settings import ServeSettings


@dataclass
class Service:
    """The engine, the limits, the counters, and which replies are under way. `draining`: no new ones."""

    settings: ServeSettings
    engine: EngineClient
    metrics: Metrics = field(default_factory=Metrics)
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    groups: set[ReplyGroup] = field(default_factory=set)
    admission: Admission = field(init=False)

    def __post_init__(self) -> None:
        self.admission = Admission(self.settings.limits.max_queue + 1)

    def card(self) -> ModelCard:
        """The model being served. Raises ServeError 503 when there is none to ask."""
        health = self.engine.health()
        card = self.engine.card
        if self.draining:
            raise engine_unavailable("stopped", "the server is shutting down")
        if health.state != "alive" or card is None:
            raise engine_unavailable(health.state, health.reason)
        self.admission.most = card.max_running + self.settings.limits.max_queue
        return card

    def names(self, card: ModelCard) -> tuple[str, ...]:
        """What the model is called, the first being what replies say."""
        return tuple(dict.fromkeys((*self.settings.names, card.name)))

    def check_model(self, asked: str | None) -> str:
        """The name to answer with. Raises ServeError 404 for a model that is not here."""
        card = self.card()
        names = self.names(card)
        if asked is None:
            return names[0]
        if asked not in names:
            raise ServeError(
                f"The model {asked[:200]!r} does not exist.",
                f"This server has {', '.join(map(repr, names))}.",
                status=404,
                code="model_not_found",
                param="model",
            )
        return asked

    def fingerprint(self, card: ModelCard) -> str:
        """Changes with whatever may change a seed's text: program, weights, number formats."""
        text = f"{qwenkit.__version__} {card.identity}"
        return f"qk-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def service(http: Request) -> Service:
    found: Service = http.app.state.service
    return found
