"""The server's log: one line an event, as text or JSON, that no client can forge a line of.

Prompts and replies never get here: requests are logged by id, route, status, time and token counts.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Literal, TypeAlias

LogFormat: TypeAlias = Literal["text", "json"]

LOGGER = logging.getLogger("qwenkit.serve")


def configure(format: LogFormat, level: str) -> None:
    """Send our own, uvicorn's and OpenTelemetry's records to stderr in this format, and no access log but
    ours."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if format == "json" else TextFormatter())
    for name in ("qwenkit.serve", "uvicorn", "opentelemetry"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False
    if level == "info":
        logging.getLogger("uvicorn").setLevel(logging.WARNING)  # it tells its own life
    logging.getLogger("uvicorn.access").disabled = True


def event(name: str, level: int = logging.INFO, **facts: object) -> None:
    """Log one event; facts that are None are left out."""
    LOGGER.log(level, name, extra={"facts": {k: v for k, v in facts.items() if v is not None}})


def where(error: BaseException) -> str:
    """Kind and innermost place of an error. Its message is left out: it may quote a prompt."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None:
        return type(error).__name__
    return f"{type(error).__name__} at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}"


class TextFormatter(logging.Formatter):
    """`time level message key=value ...`, everything that is not printable escaped."""

    def format(self, record: logging.LogRecord) -> str:
        facts = getattr(record, "facts", {})
        line = " ".join([_message(record), *(f"{name}={_shown(value)}" for name, value in facts.items())])
        return f"{_time(record)} {record.levelname.lower()} {_printable(line)}"


class JSONFormatter(logging.Formatter):
    """One JSON object a line, ASCII only."""

    def format(self, record: logging.LogRecord) -> str:
        facts = getattr(record, "facts", {})
        return json.dumps(
            {"time": _time(record), "level": record.levelname.lower(), "event": _message(record), **facts},
            default=str,
        )


def _message(record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:  # uvicorn's; the traceback may quote a prompt
        text = f"{text.splitlines()[0] if text else ''} {where(record.exc_info[1])}"
    return text


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _shown(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or set(text) & set(' "=') else text


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
