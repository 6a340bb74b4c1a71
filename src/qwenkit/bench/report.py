"""The summary for people: tables and bars of rich. Reads the dictionary that summary.py makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

_BAR = 28  # characters of the longest bar
_EIGHTHS = " ▏▎▍▌▋▊▉"


def show(summary: Mapping[str, Any], console: Console) -> None:
    """Print what ran, the table of points, bars where engines are compared, and what to know about it."""
    console.print(_head(summary))
    console.print(_points(summary))
    engines = summary["engines"]
    if len(engines) > 1:
        console.print(Group(*_bars(engines)))
    console.print(_kernels(summary))
    for line in _notes(summary):
        console.print(line)


def _head(summary: Mapping[str, Any]) -> RenderableType:
    machine = summary["machine"]
    lines = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    lines.add_row("model", Text(f"{summary['model']}: {summary['weights']}"))
    lines.add_row(
        "machine", Text(f"{machine['cpu']}, {machine['threads']} threads of {machine['cores']} cores")
    )
    limits = []
    if summary["read_gb_s"] is not None:
        limits.append(f"reads {_spread(machine['read_gb_s'])} GB/s")
    limits += [f"{kind} {_spread(values)} TOP/s" for kind, values in machine["peak_tops"].items()]
    lines.add_row("measured", Text("; ".join(limits) or "no limits: the native kernels do not run here"))
    return lines


def _points(summary: Mapping[str, Any]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("engine", "prompt", "at once", "prefill tok/s", "TOP/s", "first token s", "decode tok/s"):
        table.add_column(name, justify="left" if name == "engine" else "right")
    for name in ("weights GB/s", "of read", "output tok/s", "load s", "peak RSS MB"):
        table.add_column(name, justify="right")
    for engine in summary["engines"]:
        for number, point in enumerate(engine["points"]):
            first = number == 0
            share = point["bandwidth_share"]
            table.add_row(
                Text(engine["name"] if first else "", style="bold"),
                str(point["prompt"]),
                str(point["sequences"]),
                _cell(point.get("prefill_tok_s")),
                _plain(point["prefill_tops"], 2),
                _cell(point.get("ttft_s"), digits=3),
                _cell(point.get("decode_tok_s")),
                _plain(point["weight_gb_s"], 1),
                "" if share is None else f"{share:.0%}",
                _cell(point.get("output_tok_s")),
                _plain(engine.get("load_s"), 2) if first else "",
                _plain(engine["peak_rss_mb"], 0) if first else "",
            )
    return table


def _bars(engines: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    """One group of bars for each number that can be compared: ours first, ratios behind the others."""
    for index, point in enumerate(engines[0]["points"]):
        keys = ("prefill_tok_s", "decode_tok_s") if point["sequences"] == 1 else ("output_tok_s",)
        for key in keys if point["kind"] != "depth" else ("decode_tok_s",):
            rows = [(engine["name"], engine["points"][index]) for engine in engines]
            longest = max((one[key]["median"] for _, one in rows if key in one), default=0)
            if not longest:
                continue
            yield Text(f"\n{TITLES[key]}, {place(point)}", style="bold")
            table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
            for name, one in rows:
                if key not in one:
                    table.add_row(name, Text("-", style="dim"))
                    continue
                ratio = one["qwenkit_over_this"].get(key)
                words = "" if ratio is None else f"qwenkit is {ratio:.2f} x this"
                table.add_row(name, _bar(one[key]["median"] / longest), _cell(one[key]), words)
            yield table


TITLES = {
    "prefill_tok_s": "Prefill, tokens a second",
    "decode_tok_s": "Decode, tokens a second",
    "output_tok_s": "Output, tokens a second over the whole time",
}


def place(point: Mapping[str, Any]) -> str:
    """Which prompts a point has, in words."""
    if point["sequences"] > 1:
        return f"{point['sequences']} prompts of {point['prompt']} at once"
    return f"prompt of {point['prompt']}"


def medians(summary: Mapping[str, Any]) -> str:
    """What the numbers are medians of, in words."""
    asked = summary["rounds"]["asked"]
    rounds = f"{asked} round{'s' if asked > 1 else ''}"
    if summary["incomplete"] is None:
        return f"Medians of {rounds}"
    return f"Incomplete, {summary['rounds']['finished']} of {rounds} finished; medians of what there is"


def _bar(share: float) -> Text:
    eighths = round(share * _BAR * 8)
    return Text("█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else ""), style="cyan")


def _kernels(summary: Mapping[str, Any]) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for rows, names in summary["kernels"].items():
        table.add_row(f"kernels for {rows} row{'' if rows == '1' else 's'}", Text("\n".join(names)))
    table.add_row("attention", Text(summary["attention"]))
    return table


def _notes(summary: Mapping[str, Any]) -> Iterator[Text]:
    peak = summary["peak_share"]
    if peak is not None:
        yield Text(
            f"Prefill of the linear layers runs at {summary['prefill_tops']:.2f} TOP/s, {peak:.0%} of the "
            f"measured peak of {summary['peak_tops']:.2f}."
        )
    for engine in summary["engines"]:
        if len(summary["engines"]) > 1 and engine.get("engine"):
            yield Text(f"{engine['name']}: {engine['engine']}; {engine['form']}", style="dim")
        for note in engine.get("notes", ()):
            yield Text(f"{engine['name']}: {note}", style="dim")
        if engine["failure"]:
            yield Text(engine["failure"], style="yellow")
    for reason in summary["absent"].values():
        yield Text(reason, style="yellow")
    samples = [s for engine in summary["engines"] for point in engine["points"] for s in point["samples"]]
    others = [s["others"] for s in samples if s["others"] is not None]
    if others and max(others) > 0.1:
        yield Text(
            f"Other processes used up to {max(others):.1f} cores meanwhile: these numbers are too low.",
            style="yellow",
        )
    yield Text(f"{medians(summary)} (lowest to highest).", style="yellow" if summary["incomplete"] else "dim")


def _plain(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _cell(spread: Mapping[str, float] | None, digits: int | None = None) -> str:
    if spread is None:
        return ""
    digits = (1 if spread["median"] < 100 else 0) if digits is None else digits
    words = f"{spread['median']:.{digits}f}"
    if spread["low"] == spread["high"]:
        return words
    return f"{words} ({spread['low']:.{digits}f}-{spread['high']:.{digits}f})"


def _spread(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"
