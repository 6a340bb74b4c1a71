"""The interactive chat: reads a line, runs a command or asks the model, keeps the conversation.

Model, input and screens are handed in; it knows neither torch nor the line editor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from qwenkit.cli import commands
from qwenkit.cli.conversation import Conversation
from qwenkit.cli.loading import ChatModel
from qwenkit.cli.markdown import MarkdownReply, PlainReply
from qwenkit.cli.prompt_view import prompt_view
from qwenkit.cli.settings import Settings
from qwenkit.cli.status import cautions, summary
from qwenkit.cli.terminal import silent_keyboard
from qwenkit.core import Completion, QwenkitError


@dataclass
class SessionUsage:
    """Tokens of the session; `last` is the size of the conversation after the latest answer."""

    answers: int = 0
    prompt: int = 0
    completion: int = 0
    last: int = 0

    def add(self, completion: Completion) -> None:
        self.answers += 1
        self.prompt += completion.usage.prompt_tokens
        self.completion += completion.usage.completion_tokens
        self.last = completion.usage.total_tokens


class Repl:
    """`read` returns one input, and raises EOFError or KeyboardInterrupt to leave.

    screen: where answers go (stdout); notes: everything else (stderr). A turn whose answer was stopped
    or failed is not part of the conversation.
    """

    def __init__(
        self,
        model: ChatModel,
        read: Callable[[], str],
        *,
        screen: Console,
        notes: Console,
        settings: Settings | None = None,
        conversation: Conversation | None = None,
        markdown: bool = True,
        show_prompt: bool = False,
    ) -> None:
        self.model = model
        self.notes = notes
        self.settings = settings or Settings()
        self.conversation = conversation or Conversation()
        self.usage = SessionUsage()
        self.interrupted: str | None = None
        self.running = True
        self._read = read
        self._screen = screen
        self._markdown = markdown and screen.is_terminal and not screen.is_dumb_terminal
        self._show_prompt = show_prompt

    def run(self) -> None:
        """Talk until the user leaves."""
        self.welcome()
        while self.running:
            try:
                text = self._read()
            except (EOFError, KeyboardInterrupt):
                return
            try:
                self.handle(text)
            except KeyboardInterrupt:
                self.note("Stopped.")

    def handle(self, text: str) -> None:
        """Act on one input: a command, a question, or nothing."""
        text = text.strip()
        try:
            if not text:
                self.note("Nothing to send: the question is empty. :help shows what can be typed.")
            elif text.startswith("::"):
                self.ask(text[1:])
            elif text.startswith(":"):
                name, _, argument = text[1:].partition(" ")
                commands.find(name.strip()).run(self, argument.strip())
            else:
                self.ask(text)
        except QwenkitError as error:
            self.error(error)

    def ask(self, query: str) -> bool:
        """Stream the answer to `query`; True if it was finished and the turn is now in the conversation."""
        conversation = self.conversation
        params = self.settings.params()
        window = self.settings.max_window_size
        if self._show_prompt:
            shown = prompt_view(self.model, query, conversation.turns, conversation.system, window)
            self.notes.print(Text(shown, style="dim"))
        pieces: list[str] = []
        completion: Completion | None = None
        try:
            stream = self.model.chat_stream(
                query, list(conversation.turns), conversation.system, max_window_size=window, params=params
            )
            view = MarkdownReply(self._screen) if self._markdown else PlainReply(self._screen)
            with silent_keyboard(), view as reply:
                for delta in stream:
                    pieces.append(delta.text)
                    reply.write(delta.text)
                    completion = delta.completion or completion
        except KeyboardInterrupt:
            self.interrupted = query
            self.warn("Stopped. This turn is dropped and the model will not remember it; :r asks it again.")
            return False
        self.interrupted = None
        conversation.turns.append((query, completion.text if completion else "".join(pieces)))
        if completion is not None:
            self._report(completion)
        return True

    def regenerate(self) -> None:
        """Ask the stopped question again, or else the last one; its old answer stays if this fails."""
        turns = self.conversation.turns
        if self.interrupted is not None:
            self.ask(self.interrupted)
            return
        if not turns:
            self.note("There is no question to answer again.")
            return
        if self.settings.params().seed is not None:
            self.note("The seed is fixed, so the same answer will come; ':seed off' lets it vary.")
        old = turns.pop()
        finished = False
        try:
            finished = self.ask(old[0])
        finally:
            if not finished:
                self.conversation.turns.append(old)
                self.note("The former answer stays in the conversation.")

    def _report(self, completion: Completion) -> None:
        self.usage.add(completion)
        defaults = self.model.generation
        limits = self.settings.params().with_defaults(defaults.sampling)
        window = self.settings.max_window_size
        told = cautions(
            completion,
            max_tokens=limits.max_tokens,
            max_window_size=defaults.max_window_size if window is None else window,
        )
        self.note(summary(completion))
        for caution in told:
            self.warn(f"{caution.text} {caution.in_chat}")
        self.notes.print()

    def welcome(self) -> None:
        """Say who is talking and how to get help."""
        if self.model.notice:
            self.note(self.model.notice)
        self.note(f"You are talking to {self.model.name}. :help shows the commands, Ctrl-D leaves.")
        self.notes.print()

    def turn_count(self) -> str:
        """ "1 turn" or "3 turns" of the conversation."""
        count = len(self.conversation.turns)
        return f"{count} turn{'' if count == 1 else 's'}"

    def note(self, text: str) -> None:
        """Information, dim."""
        self.notes.print(Text(text, style="dim"))

    def warn(self, text: str) -> None:
        """Something that needs attention."""
        self.notes.print(Text(text, style="yellow"))

    def error(self, error: QwenkitError) -> None:
        """A problem and its remedy; the conversation goes on."""
        self.notes.print(Text("error: ", style="bold red") + Text(error.problem, style="not bold default"))
        if error.remedy:
            self.notes.print(Text(error.remedy))
