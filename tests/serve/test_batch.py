"""A batch from file to file: what lines say wrong, going on after any end, engines that die."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standin_engine import StandInEngine

from qwenkit.core import QwenkitError, RequestError
from qwenkit.serve.app import create_app
from qwenkit.serve.batch.batch import Batch, BatchReport
from qwenkit.serve.batch.input import BadLine, BatchLine, read_lines
from qwenkit.serve.batch.output import BatchOutput
from qwenkit.serve.engine.reply import ReplyGroup
from qwenkit.serve.engine.supervisor import Wish
from qwenkit.serve.errors import ServeError
from qwenkit.serve.service import Service
from qwenkit.serve.settings import ServeSettings

CHAT = "/v1/chat/completions"


class Watch:
    def begin(self, lines: int) -> None: ...
    def passed(self) -> None: ...
    def answered(self, failed: bool, prompt_tokens: int, completion_tokens: int) -> None: ...
    def note(self, text: str) -> None: ...


def line(id_: Any, said: str = "hi", **more: Any) -> str:
    body = {"messages": [{"role": "user", "content": said}]}
    return json.dumps({"custom_id": id_, "method": "POST", "url": CHAT, "body": body, **more})


def run(
    source: Path, target: Path, engine: Any = None, *, in_flight: int = 8, again: bool = False
) -> BatchReport:
    async def whole() -> BatchReport:
        app = create_app(Service(ServeSettings(), engine or StandInEngine()))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            with BatchOutput(target, again=again) as output:
                return await Batch(client, output, Watch(), in_flight=in_flight, longest=10_000).run(source)

    return asyncio.run(whole())


def answers(target: Path) -> list[dict[str, Any]]:
    return [json.loads(one) for one in target.read_text().splitlines()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "in.jsonl"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def test_every_line_is_answered_in_openais_shape(source: Path, target: Path) -> None:
    source.write_text("\ufeff" + "\n".join(line(f"中{i}") for i in range(50)))
    report = run(source, target)
    assert (report.answered, report.failed, report.completion_tokens) == (50, 0, 150)
    found = answers(target)
    assert {one["custom_id"] for one in found} == {f"中{i}" for i in range(50)}
    assert len({one["id"] for one in found}) == 50
    for one in found:
        assert one.keys() == {"id", "custom_id", "response", "error"}
        assert one["response"].keys() == {"status_code", "request_id", "body"}
        assert one["response"]["status_code"] == 200
        assert one["error"] is None
        assert one["response"]["body"]["choices"][0]["message"]["content"] == "Hello 中"


def test_what_is_wrong_with_a_line_is_its_answer_and_ends_nothing(source: Path, target: Path) -> None:
    bad = {
        2: ("{", "invalid_json_line"),
        3: ("[]", "invalid_json_line"),
        4: (line("a"), "duplicate_custom_id"),
        5: (line(7), "invalid_custom_id"),
        6: (line(""), "invalid_custom_id"),
        7: (line("b", url="/v1/images"), "invalid_url"),
        8: (line("c", method="GET"), "invalid_value"),
        9: (line("d", body=[]), "invalid_value"),
        10: (line("e", mood="good"), "unknown_parameter"),
        11: (line("f", body={"messages": [], "stream": True}), "unsupported_parameter"),
        12: (line("\ud800"), "invalid_custom_id"),
        13: ("[" * 5000, "invalid_json_line"),
        14: (line("x" * 20_000), "line_too_long"),
        15: ('{"custom_id": NaN}', "invalid_json_line"),
        16: ('{"custom_id": ' + "9" * 6000 + "}", "invalid_json_line"),
    }
    lines = [line("a"), *(text for text, _ in bad.values()), "", "  ", line("last")]
    source.write_bytes("\n".join(lines).encode() + b"\n\xff\n" + line("after").encode() + b"\r\n")
    report = run(source, target)
    found = answers(target)
    told = {one["error"]["line"]: one["error"]["code"] for one in found if one["error"]}
    assert told == {number: code for number, (_, code) in bad.items()} | {20: "invalid_json_line"}
    assert all(f"Line {n}: " in one["error"]["message"] for one in found if one["error"]
               for n in [one["error"]["line"]])  # fmt: skip
    assert {one["custom_id"] for one in found if one["response"]} == {"a", "last", "after"}
    assert report.failed == len(bad) + 1
    assert next(one["custom_id"] for one in found if one["error"] and one["error"]["line"] == 7) == "b"


def test_a_refused_body_is_a_response_with_its_status(source: Path, target: Path) -> None:
    source.write_text("\n".join([line("a", body={"messages": [], "nonsense": 1}), line("b")]))
    assert run(source, target).failed == 1
    refused = next(one for one in answers(target) if one["custom_id"] == "a")
    assert refused["response"]["status_code"] == 400
    assert refused["response"]["body"]["error"]["type"] == "invalid_request_error"
    assert refused["error"] is None


def test_a_second_run_asks_only_for_what_is_missing(source: Path, target: Path) -> None:
    source.write_text("\n".join([line("a"), "{", line("b", body={}), line("c")]))
    run(source, target)
    before = target.read_bytes()
    engine = StandInEngine()
    report = run(source, target, engine)
    assert (engine.wishes, target.read_bytes()) == ([], before)
    assert (report.passed, report.failed) == (4, 2)
    source.write_text("\n".join([line("a"), line("fixed"), line("b"), line("c"), line("d")]))
    run(source, target, engine)
    assert len(engine.wishes) == 2
    assert run(source, target, engine, again=True).failed == 0
    assert len(engine.wishes) == 3
    assert sorted(one["custom_id"] for one in answers(target)) == ["a", "b", "c", "d", "fixed"]


@given(cut=st.integers(0, 400))
def test_wherever_the_file_was_cut_off_nothing_whole_is_lost(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    source, target = folder / "in", folder / "out"
    source.write_text("\n".join(line(f"id {i}") for i in range(3)))
    run(source, target)
    whole = target.read_bytes()
    target.write_bytes(whole[: max(0, len(whole) - cut)])
    kept = [one for one in target.read_bytes().split(b"\n") if one in whole.split(b"\n") and one]
    engine = StandInEngine()
    report = run(source, target, engine)
    assert report.passed == len(kept) == 3 - len(engine.wishes)
    assert target.read_bytes().split(b"\n")[: len(kept)] == kept
    assert sorted(one["custom_id"] for one in answers(target)) == ["id 0", "id 1", "id 2"]


@pytest.mark.parametrize("content", [b"my thesis", b"my thesis\n", b'{"custom_id": "a"}\n', b"1", b"{}"])
def test_a_file_that_is_no_output_is_left_alone(source: Path, target: Path, content: bytes) -> None:
    source.write_text(line("a"))
    target.write_bytes(content)
    with pytest.raises(RequestError, match=r"Line 1 of .* is no answer of a batch"):
        run(source, target)
    assert target.read_bytes() == content
    with pytest.raises(RequestError, match="no answer of a batch"):
        run(source, source)
    assert source.read_text() == line("a")


def test_two_runs_do_not_share_an_output(target: Path) -> None:
    with BatchOutput(target), pytest.raises(QwenkitError, match="Another run"):
        BatchOutput(target)
    with BatchOutput(target, again=True):
        pass


def test_files_that_cannot_be_read_or_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no_such_folder"):
        BatchOutput(tmp_path / "no_such_folder" / "out")
    with pytest.raises(RequestError, match="Cannot read"):
        run(tmp_path / "missing", tmp_path / "out")


class Counting(StandInEngine):
    """Knows how many requests were under way at once, and how far ahead the file was read."""

    def __init__(self) -> None:
        super().__init__()
        self.now_inside = self.most = 0

    def generate(self, wishes: Sequence[Wish]) -> ReplyGroup:
        self.now_inside += 1
        self.most = max(self.most, self.now_inside)
        group = super().generate(wishes)
        closing = group.close

        def close() -> None:
            self.now_inside -= 1
            closing()

        group.close = close  # type: ignore[method-assign]
        return group


def test_so_many_are_under_way_and_the_file_is_read_as_they_are_answered(source: Path, target: Path) -> None:
    source.write_text("\n".join(line(str(i)) for i in range(200)))
    engine = Counting()
    run(source, target, engine, in_flight=5)
    assert 1 < engine.most <= 5
    lines = read_lines(source, 1000)
    assert isinstance(next(lines), BatchLine)  # lazily: a generator


class Dying(StandInEngine):
    """Dies over "poison", and with it all that was asked within the same moment. code: how its end is told;
    after: seconds until it is noticed."""

    def __init__(self, code: str = "engine_died", after: float = 0.001) -> None:
        super().__init__()
        self.dead = False
        self.deaths = 0
        self.code, self.after = code, after

    def generate(self, wishes: Sequence[Wish]) -> ReplyGroup:
        self.silent = True
        group = super().generate(wishes)
        self.silent = False
        poison = wishes[0].prompt[0].content == "poison"  # type: ignore[union-attr]
        self.deaths += poison
        died = ServeError("died", status=503, code=self.code, retry_after=0)

        def end() -> None:
            if poison or self.dead:
                self.dead = True
                asyncio.get_running_loop().call_later(0.01, setattr, self, "dead", False)
                group.fail(died)
            else:
                done = StandInEngine.generate(self, wishes)
                group.replies[:] = done.replies
                group._arrived.set()

        asyncio.get_running_loop().call_later(self.after if poison else 0.001, end)
        return group


@pytest.mark.parametrize("code", ["engine_died", "engine_hung"])
def test_a_request_that_kills_the_engine_fails_alone(source: Path, target: Path, code: str) -> None:
    source.write_text("\n".join(line(str(i), "poison" if i == 3 else "hi") for i in range(40)))
    engine = Dying(code)
    assert run(source, target, engine).failed == 1
    assert engine.deaths == 3
    failed = [one for one in answers(target) if one["response"]["status_code"] != 200]
    assert [one["custom_id"] for one in failed] == ["3"]
    assert len(answers(target)) == 40


def test_finding_out_that_the_engine_hangs_takes_no_patience(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwenkit.serve.batch.batch._PATIENCE_S", 0.5)
    source.write_text(line("a", "poison"))
    engine = Dying("engine_hung", after=0.3)
    assert run(source, target, engine).failed == 1
    assert engine.deaths == 3


def test_an_interrupt_finishes_what_is_under_way_and_a_second_gives_it_up(source: Path, target: Path) -> None:
    source.write_text("\n".join(line(str(i)) for i in range(20)))

    class Slow(StandInEngine):
        def generate(self, wishes: Sequence[Wish]) -> ReplyGroup:
            if len(self.wishes) == 4:
                os.kill(os.getpid(), signal.SIGINT)
            self.silent = len(self.wishes) > 4
            if len(self.wishes) == 7:
                asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGINT)
            return super().generate(wishes)

    engine = Slow()
    report = run(source, target, engine, in_flight=8)
    assert report.interrupted
    assert len(answers(target)) == report.answered == 5
    assert engine.cancelled == 3
    assert run(source, target).passed == 5
    assert len(answers(target)) == 20


@pytest.mark.parametrize("why", ["queue_full", "engine_restarting", "engine_stalled"])
def test_a_server_that_says_come_again_is_asked_again(source: Path, target: Path, why: str) -> None:
    """However often: only what happens while the engine works on a line is held against it."""
    source.write_text("\n".join(line(str(i)) for i in range(4)))

    class Full(StandInEngine):
        refusals = 20

        def generate(self, wishes: Sequence[Wish]) -> ReplyGroup:
            if self.refusals:
                self.refusals -= 1
                raise ServeError("full", status=429 if why == "queue_full" else 503, code=why, retry_after=0)
            return super().generate(wishes)

    assert run(source, target, Full()).failed == 0


def test_a_server_that_wants_a_key_ends_the_run(source: Path, target: Path) -> None:
    source.write_text(line("a"))

    class Closed(StandInEngine):
        def generate(self, wishes: Sequence[Wish]) -> ReplyGroup:
            raise ServeError("no key", status=401)

    with pytest.raises(QwenkitError, match="no key"):
        run(source, target, Closed())
    assert target.read_text() == ""


def test_a_line_longer_than_allowed_is_never_held(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"x" * 3_000_000 + b"\n" + line("a").encode() + b"\n" + b"y" * 500)
    first, second, third = read_lines(path, 400)
    assert isinstance(first, BadLine)
    assert first.code == "line_too_long"
    assert isinstance(second, BatchLine)
    assert isinstance(third, BadLine)
