"""The interactive chat with scripted input: what is asked, kept, shown, dropped."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from standin_model import StandIn

from qwenkit.cli.commands import COMMANDS
from qwenkit.cli.repl import Repl
from qwenkit.cli.settings import Settings
from qwenkit.core import ContextLengthError, GenerationConfig, SamplingParams


class Talk:
    """A Repl fed with lines; `shown` is stdout, `notes` stderr."""

    def __init__(self, model: StandIn, *lines: str | BaseException, settings: Settings | None = None) -> None:
        self._out, self._err = io.StringIO(), io.StringIO()
        script = iter([*lines, EOFError()])

        def read() -> str:
            line = next(script)
            if isinstance(line, BaseException):
                raise line
            return line

        self.repl = Repl(
            model,
            read,
            screen=Console(file=self._out, width=80),
            notes=Console(file=self._err, width=200, highlight=False),
            settings=settings,
        )
        self.repl.run()

    @property
    def shown(self) -> str:
        return self._out.getvalue()

    @property
    def notes(self) -> str:
        return self._err.getvalue()

    @property
    def turns(self) -> list[tuple[str, str]]:
        return self.repl.conversation.turns


def test_a_conversation_is_kept() -> None:
    model = StandIn(["Hi", "!"], ["Bye."])
    talk = Talk(model, "hello", "  see you ")
    assert talk.shown == "Hi!\nBye.\n"
    assert talk.turns == [("hello", "Hi!"), ("see you", "Bye.")]
    assert model.asked[1]["query"] == "see you"
    assert model.asked[1]["history"] == [("hello", "Hi!")]
    assert "2 tokens · 4.0 tok/s" in talk.notes


@pytest.mark.parametrize("end", [":quit", ":q", ":exit", EOFError(), KeyboardInterrupt()])
def test_leaving(end: str | BaseException) -> None:
    model = StandIn()
    Talk(model, end, "never asked")
    assert model.asked == []


def test_ctrl_c_stops_the_answer_and_drops_the_turn_not_the_program() -> None:
    model = StandIn(["one"], ["half an an", KeyboardInterrupt()], ["three"])
    talk = Talk(model, "first", "second", "third")
    assert talk.turns == [("first", "one"), ("third", "three")]
    assert "half an an" in talk.shown
    assert "This turn is dropped" in talk.notes
    assert model.asked[2]["history"] == [("first", "one")]


def test_a_stopped_question_can_be_asked_again() -> None:
    model = StandIn(["one"], ["ha", KeyboardInterrupt()], ["two"])
    talk = Talk(model, "first", "second", ":r")
    assert talk.turns == [("first", "one"), ("second", "two")]


def test_an_error_is_told_and_the_conversation_goes_on() -> None:
    model = StandIn(["one"], [ContextLengthError("The prompt is too long.", "Shorten it.")], ["three"])
    talk = Talk(model, "first", "long", "third")
    assert "error: The prompt is too long." in talk.notes
    assert "Shorten it." in talk.notes
    assert talk.turns == [("first", "one"), ("third", "three")]


def test_regenerate_replaces_the_last_answer() -> None:
    model = StandIn(["one"], ["two"], ["other two"])
    talk = Talk(model, "first", "second", ":regenerate")
    assert talk.turns == [("first", "one"), ("second", "other two")]
    assert model.asked[2]["history"] == [("first", "one")]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ContextLengthError("Too long.")])
def test_a_failed_regeneration_keeps_the_former_answer(failure: BaseException) -> None:
    model = StandIn(["one"], ["x", failure])
    talk = Talk(model, "first", ":r")
    assert talk.turns == [("first", "one")]
    assert "former answer stays" in talk.notes


def test_regenerate_and_undo_with_nothing_said() -> None:
    talk = Talk(StandIn(), ":r", ":undo")
    assert "no question to answer again" in talk.notes
    assert "no turn to take back" in talk.notes


def test_undo() -> None:
    model = StandIn(["one"], ["two"])
    talk = Talk(model, "first", "second", ":undo")
    assert talk.turns == [("first", "one")]
    assert "Took back the question 'second'" in talk.notes


def test_empty_input_is_not_sent() -> None:
    model = StandIn()
    talk = Talk(model, "", "   \n ")
    assert model.asked == []
    assert talk.notes.count("Nothing to send") == 2


@pytest.mark.parametrize(
    ("typed", "meant"), [(":hlep", ":help"), (":sed 5", ":seed"), (":histroy", ":history")]
)
def test_unknown_commands_are_not_sent_and_the_nearest_is_named(typed: str, meant: str) -> None:
    model = StandIn()
    talk = Talk(model, typed)
    assert model.asked == []
    assert f"Did you mean {meant}?" in talk.notes


def test_two_colons_send_one() -> None:
    model = StandIn()
    Talk(model, "::help", "::) smile")
    assert [asked["query"] for asked in model.asked] == [":help", ":) smile"]


def test_help_names_every_command() -> None:
    notes = Talk(StandIn(), ":h").notes
    for command in COMMANDS:
        for name in command.names:
            assert f":{name}" in notes


def test_every_command_of_the_original_is_there() -> None:
    original = [
        *("help", "h", "exit", "quit", "q", "clear", "cl", "clear-his", "clh"),
        *("history", "his", "seed", "conf", "reset-conf"),
    ]
    assert set(original) <= {name for command in COMMANDS for name in command.names}


def test_history_and_clear_history() -> None:
    talk = Talk(StandIn(["你好"]), "first", ":his", ":clh", ":history")
    assert "1 User: first" in talk.notes
    assert "1 stand-in: 你好" in talk.notes
    assert "All 1 turns of history cleared" in talk.notes
    assert "The history is empty." in talk.notes
    assert talk.turns == []


def test_conf_takes_effect_and_reset_conf_undoes_it() -> None:
    model = StandIn()
    start = Settings(SamplingParams(temperature=0.3))
    Talk(
        model, ":conf temperature=0 max_tokens=7 max_window_size=100", "a", ":reset-conf", "b", settings=start
    )  # fmt: skip
    assert model.asked[0]["params"] == SamplingParams(temperature=0, max_tokens=7)
    assert model.asked[0]["window"] == 100
    assert model.asked[1]["params"] == SamplingParams(temperature=0.3)
    assert model.asked[1]["window"] is None


def test_conf_shows_values_and_where_they_come_from() -> None:
    generation = GenerationConfig(sampling=SamplingParams(temperature=1.0, top_p=0.8, max_tokens=512))
    talk = Talk(
        StandIn(generation=generation),
        ":conf top_k=5",
        ":conf",
        settings=Settings(SamplingParams(temperature=0.3)),
    )
    listed = {
        line.split()[0]: line.split()[1:] for line in talk.notes.splitlines() if line and line[0].islower()
    }
    assert listed["temperature"] == ["0.3", "command", "line"]
    assert listed["top_p"] == ["0.8", "checkpoint"]
    assert listed["top_k"] == ["5", ":conf"]
    assert listed["max_window_size"] == ["not", "set", "checkpoint"]


def test_seed() -> None:
    model = StandIn()
    talk = Talk(model, ":seed", ":seed 42", "a", ":r", ":seed off", "b", ":seed many")
    assert [asked["params"].seed for asked in model.asked] == [42, 42, None]
    assert "No seed is set" in talk.notes
    assert "Seed 42" in talk.notes
    assert "the same answer will come" in talk.notes
    assert "seed='many' is out of range." in talk.notes


def test_system_prompt_survives_clearing_the_history() -> None:
    model = StandIn()
    talk = Talk(model, ":system", ":system You are  a poet.", ":clh", "a", ":system")
    assert "the checkpoint's default): You are a helpful assistant." in talk.notes
    assert model.asked[0]["system"] == "You are  a poet."
    assert "set by you): You are  a poet." in talk.notes


def test_save_and_load(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    saved = Talk(StandIn(["eins"]), ":system S", "one", f":save {file}", f":save {file}", f":save! {file}")
    assert json.loads(file.read_text(encoding="utf-8")) == {
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "eins"},
        ]
    }
    assert saved.notes.count("exists already") == 1
    assert list(tmp_path.iterdir()) == [file]
    model = StandIn()
    loaded = Talk(model, "forgotten", f":load {file}", "two")
    assert loaded.turns[:1] == [("one", "eins")]
    assert model.asked[1]["history"] == [("one", "eins")]
    assert model.asked[1]["system"] == "S"


def test_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    file.write_text('{"messages": [{"role": "assistant", "content": "x"}]}')
    talk = Talk(StandIn(["one"]), "first", f":load {file}", f":load {tmp_path / 'absent'}", ":load")
    assert talk.turns == [("first", "one")]
    assert "bad.json: Message 0 has role 'assistant' where 'user' is expected." in talk.notes
    assert "absent: No such file" in talk.notes
    assert ":load needs a file name." in talk.notes


def test_tokens() -> None:
    talk = Talk(StandIn(["a", "b"]), "x", "y", ":tokens")
    assert "2 answers so far: 22 prompt tokens read, 4 tokens written." in talk.notes
    assert "takes 13 of 32768 tokens" in talk.notes


def test_trimmed_history_is_reported_after_every_answer() -> None:
    talk = Talk(StandIn(dropped=1), "x", "y")
    assert talk.notes.count("The oldest turn was left out") == 2


def test_control_characters_cannot_steer_a_terminal() -> None:
    out = io.StringIO()
    lines = iter(["x"])
    screen = Console(file=out, force_terminal=True, width=80)
    repl = Repl(
        StandIn(["a\x1b[2Jb\x07"]),
        lambda: next(lines),
        screen=screen,
        notes=Console(file=io.StringIO()),
        markdown=False,
    )
    repl.handle("x")
    assert out.getvalue() == "a\\x1b[2Jb\\x07\n"
