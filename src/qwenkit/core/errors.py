"""Errors a user can meet. Every message names the thing, the value, the limit and the remedy."""

from __future__ import annotations


class QwenkitError(Exception):
    """Base of all errors raised on purpose; catching it never hides a programming mistake.

    `problem` says what is wrong and with which value; `remedy` says what to do about it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem} {remedy}".strip())


class ConfigError(QwenkitError):
    """A model configuration is missing a value, contradicts itself or names an unknown architecture."""


class CheckpointError(QwenkitError):
    """A checkpoint file is missing, truncated, corrupt, or does not match its configuration."""


class UnsupportedError(QwenkitError):
    """The input is valid but asks for something qwenkit does not do; never worked around silently."""


class TokenizerError(QwenkitError, ValueError):
    """A vocabulary file is corrupt, or text contains a control token that the caller forbade."""


class RequestError(QwenkitError, ValueError):
    """A request has an invalid parameter or combination of parameters."""


class ContextLengthError(RequestError):
    """The prompt and the tokens asked for do not fit the model's context."""


class DownloadError(QwenkitError):
    """No source could deliver a file, or what arrived is not what was asked for."""
