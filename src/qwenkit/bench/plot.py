"""The summary as a picture: bars with their spread, a panel a number. Needs matplotlib, the extra `bench`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenkit.bench.report import medians, place
from qwenkit.core import RequestError, UnsupportedError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg", ".pdf")
_OURS, _OTHERS = "#4b5fd6", "#b4b9c8"
_INK = "#30343f"


def check_plot(path: Path) -> None:
    """Before anything is measured. RequestError for another suffix, UnsupportedError without matplotlib."""
    if path.suffix.lower() not in FORMATS:
        raise RequestError(f"A picture called {path.name}.", f"Choose one of {', '.join(FORMATS)}.")
    if importlib.util.find_spec("matplotlib") is None:
        raise UnsupportedError("Drawing needs matplotlib.", 'Install it: pip install "qwenkit[bench]"')


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Write the picture; a failure leaves a file that was there."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = _panels(summary)
    count = len(summary["engines"])
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    # svg.hashsalt: the same numbers give the same file.
    with rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "qwenkit", "text.color": _INK}):
        figure = Figure(figsize=(5.2 * columns, 0.9 + rows * (0.75 + 0.32 * count)), layout="constrained")
        figure.suptitle(f"{summary['model']}: {summary['weights']}", fontweight="bold")
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, (title, index, key) in zip(grid, panels, strict=False):
            _panel(axes, title, summary, index, key)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        figure.supxlabel(_foot(summary), fontsize=7, color=_INK)
        fresh = path.with_name(f".{path.stem}.tmp{path.suffix}")
        figure.savefig(fresh, dpi=160)
    fresh.replace(path)


def _panels(summary: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """(title, point, key) of every number worth a panel."""
    found = []
    for index, point in enumerate(summary["engines"][0]["points"]):
        where = place(point)
        if point["sequences"] > 1:
            found.append((f"Output tokens a second, {where}", index, "output_tok_s"))
            continue
        if point["kind"] == "plain":
            found.append((f"Prefill tokens a second, {where}", index, "prefill_tok_s"))
        found.append((f"Decode tokens a second, {where}", index, "decode_tok_s"))
    return found


def _panel(axes: Axes, title: str, summary: Mapping[str, Any], index: int, key: str) -> None:
    names = [engine["name"] for engine in summary["engines"]]
    longest = 0.0
    for row, engine in enumerate(summary["engines"]):
        point = engine["points"][index]
        spread = point.get(key)
        if spread is None:
            axes.text(0, row, " no result", va="center", color=_INK, fontsize=8)
            continue
        middle = spread["median"]
        error = [[middle - spread["low"]], [spread["high"] - middle]]
        color = _OURS if row == 0 else _OTHERS
        axes.barh(row, middle, height=0.62, color=color, xerr=error, ecolor=_INK, capsize=2)
        share = point["bandwidth_share"] if key == "decode_tok_s" else None
        words = f"  {middle:.3g}" + ("" if share is None else f" ({share:.0%} of read)")
        axes.text(spread["high"], row, words, va="center", fontsize=8)
        longest = max(longest, spread["high"])
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, (longest or 1) * 1.45)
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(length=0)


def _foot(summary: Mapping[str, Any]) -> str:
    machine = summary["machine"]
    words = f"{machine['cpu']}, {machine['threads']} threads"
    if summary["read_gb_s"] is not None:
        words += f", reads {summary['read_gb_s']:.1f} GB/s"
    return f"{words}. {medians(summary)}, lines: lowest to highest. {summary['date'][:10]}"
