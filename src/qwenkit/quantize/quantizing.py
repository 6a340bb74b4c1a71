"""From a 16-bit checkpoint to a GPTQ folder that was measured: block by block, resumable at each.

Knows the order of things; what each of them is, its own file knows.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from qwenkit.checkpoint import Checkpoint, MergedCheckpoint, open_checkpoint
from qwenkit.checkpoint.output import check_free
from qwenkit.checkpoint.progress import gigabytes
from qwenkit.core import CheckpointError
from qwenkit.model import Block
from qwenkit.quant import AffineLinear
from qwenkit.quant.gptq import pack_nibbles, packed_bits
from qwenkit.quant.gptq_rounding import RoundedWeight
from qwenkit.quantize.block_pass import BlockPass
from qwenkit.quantize.calibration import Calibration, read_calibration
from qwenkit.quantize.held_out import read_held_out
from qwenkit.quantize.hidden import HiddenStates
from qwenkit.quantize.layers import (
    LAYERS,
    as_it_was,
    linear_of,
    put,
    round_block,
    round_block_to_nearest,
    shapes,
)
from qwenkit.quantize.losses import streamed_losses
from qwenkit.quantize.mixture import Mixture, room_for, roundings, table
from qwenkit.quantize.output import plan_folder, write_folder
from qwenkit.quantize.proof import folder_losses, seconds_per_token
from qwenkit.quantize.report import Report, TextLoss
from qwenkit.quantize.requantized import source_of
from qwenkit.quantize.sensitivity import Worth, excerpt, measure, steps
from qwenkit.quantize.settings import Settings
from qwenkit.quantize.source import Source
from qwenkit.quantize.watch import Watch
from qwenkit.quantize.work_folder import WorkFolder

_FORMAT = 2  # of the work folder; raise it when what it holds changes
_STAGES = 4  # of a block that move tokens


def quantize(
    checkpoint: Checkpoint,
    out: Path,
    settings: Settings,
    *,
    eval_texts: Sequence[Path] = (),
    max_increase: float = 2.0,
    restart: bool = False,
    watch: Watch | None = None,
) -> Report:
    """Write `out` and measure it. Interrupted at any moment, the same call continues.

    eval_texts: files to measure on, built-in texts if none; max_increase: percent of perplexity above which
    the report says "failed". restart: throw away what an unfinished run left.

    Raises RequestError for a source that is quantized, an unfinished run of another call, and texts that are
    malformed or too short; UnsupportedError for shapes that do not divide and numbers that are not finite;
    CheckpointError if `out` exists, the disk lacks room, or the source is damaged.
    """
    out, watch = Path(out).absolute(), watch or Watch()
    with torch.inference_mode(False), torch.no_grad():
        source = source_of(checkpoint, getattr(torch, settings.dtype))
        settings.check(source.config)
        if checkpoint.quantization.startswith("GGUF"):
            watch.note(f"The source is {checkpoint.quantization}: what was rounded once is rounded again.")
        windows = read_held_out(source, eval_texts)
        wanted = settings.method == "gptq" or settings.budget is not None
        calibration = read_calibration(source, settings) if wanted else None
        if settings.budget is not None:
            room_for(source, settings.rounding, settings.budget)
        command = _command(source, settings, calibration, windows)
        report = _unverified(out, command)
        if report is None:
            check_free(out, folder=True)
            _check_space(source, settings, out)
            with WorkFolder.opened(out, command, restart=restart) as work:
                texts = _original(source, windows, work, watch)
                mixture = _mixture(source, settings, calibration, work, watch)
                _round(source, settings, mixture, calibration, work, watch)
                layers = [work.layer(n)[1]["errors"] for n in range(source.config.num_layers)]
                plan = plan_folder(source, work, settings, mixture)
                nbytes = {
                    "source": source.nbytes,
                    "result": sum(tensor.nbytes for tensor in plan.tensors),
                }
                report = Report(
                    command=command,
                    calibration=_about(calibration),
                    layers=layers,
                    texts=texts,
                    max_increase=max_increase,
                    nbytes=nbytes,
                    mixture=mixture.described(source.config),
                )
                write_folder(plan, report, out)
                work.discard()
        return _prove(out, report, windows, checkpoint, settings, watch)


def _command(
    source: Source, settings: Settings, calibration: Calibration | None, windows: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides the result, as JSON: an unfinished run is continued only if all of it is the same."""
    value = {
        "format": _FORMAT,
        **source.identity(),
        "settings": settings.described(),
        "calibration_texts": None if calibration is None else calibration.digest,
        "eval_texts": hashlib.sha256(repr(windows).encode()).hexdigest(),
    }
    found: dict[str, Any] = json.loads(json.dumps(value))
    return found


def _about(calibration: Calibration | None) -> dict[str, Any]:
    if calibration is None:
        return {}
    return {
        "source": calibration.source,
        "texts": len(calibration.texts),
        "of": calibration.offered,
        "tokens": calibration.tokens,
    }


def _unverified(out: Path, command: Mapping[str, Any]) -> Report | None:
    """The report of a folder that this same call wrote, but was stopped before it measured it."""
    if not out.is_dir():
        return None
    report = Report.read(out)
    return (
        report if report is not None and report.state == "unverified" and report.command == command else None
    )


def _check_space(source: Source, settings: Settings, out: Path) -> None:
    """The codes are there twice for a moment: in the work folder and in the output."""
    packed = sum(
        packed_bits(outputs, inputs, settings.rounding.bits, settings.rounding.group) / 8 + 4 * inputs
        for outputs, inputs in shapes(source.config).values()
    )
    if settings.budget is not None:
        packed = room_for(source, settings.rounding, settings.budget) / 8 / source.config.num_layers
    kept = sum(tensor.nbytes for tensor in source.kept())
    needed = int(2 * packed * source.config.num_layers) + kept
    folder = next(parent for parent in out.parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(
            f"{out.name} needs {gigabytes(needed)} in {folder} while it is made; {gigabytes(free)} are free.",
            "Free space there, or choose another --out.",
        )


def _original(
    source: Source, windows: Mapping[str, Sequence[Sequence[int]]], work: WorkFolder, watch: Watch
) -> list[TextLoss]:
    """How the source predicts the held-out texts, computed once."""
    flat = [ids for texts in windows.values() for ids in texts]
    known = work.note("original")
    if known is None:
        tokens = sum(map(len, flat)) * 3 * source.config.num_layers
        watch.begin("Measuring the original", tokens)
        known = {"losses": streamed_losses(source, flat, watch.tokens)}
        work.keep_note("original", known)
    return [TextLoss(name, tokens, loss) for name, tokens, loss in _by_text(windows, known["losses"])]


def _by_text(
    windows: Mapping[str, Sequence[Sequence[int]]], losses: Sequence[float]
) -> list[tuple[str, int, float]]:
    """For each text its predicted tokens and the sum of its windows' losses."""
    left = iter(losses)
    return [
        (name, sum(len(ids) - 1 for ids in texts), sum(next(left) for _ in texts))
        for name, texts in windows.items()
    ]


def _mixture(
    source: Source, settings: Settings, calibration: Calibration | None, work: WorkFolder, watch: Watch
) -> Mixture:
    """How each layer will be rounded; what a budget is shared out by is measured once."""
    if settings.budget is None or calibration is None:
        return Mixture.uniform(settings.rounding, source.config.num_layers)
    known = work.note("worth")
    if known is None:
        texts = excerpt(calibration.texts)
        watch.begin("Measuring what each layer is worth", steps(source, texts))
        found = measure(source, texts, roundings(settings.rounding, source.config), watch.tokens)
        known = {"units": [unit.described() for unit in found]}
        work.keep_note("worth", known)
    worth = [Worth.of(unit) for unit in known["units"]]
    mixture = Mixture.chosen(source, settings.rounding, settings.budget, worth)
    watch.note(f"{mixture.bits_a_weight(source.config):.3f} bits a weight:")
    for how, which in table(mixture.described(source.config)):
        watch.note(f"  {how}: {which}")
    return mixture


def _round(
    source: Source,
    settings: Settings,
    mixture: Mixture,
    calibration: Calibration | None,
    work: WorkFolder,
    watch: Watch,
) -> None:
    """Every block that is not finished yet."""
    layers, done = source.config.num_layers, work.layers()
    if done == layers:
        return
    if done:
        watch.note(f"{done} of {layers} layers are finished already.")
    hidden = before = None
    if calibration is not None and settings.method == "gptq":
        embedding = source.tensor("transformer.wte.weight")
        hidden = HiddenStates.embed(calibration.texts, embedding, source.config)
        if settings.correction:
            before = HiddenStates.embed(calibration.texts, embedding, source.config)
    per_block = sum(len(texts) * _STAGES for texts in (hidden, before) if texts is not None) or 1
    first = done if hidden is None else 0
    watch.begin("Quantizing", per_block * (layers - first))
    for number in range(first, layers):
        start, own = time.perf_counter(), mixture.blocks[number]
        block = source.block(number)
        through = None if hidden is None else BlockPass(block, hidden, watch.tokens)
        original = None if before is None else BlockPass(as_it_was(block), before, watch.tokens)
        if number < done:
            _restore(block, work, number)
            for each in (through, original):
                if each is not None:
                    each.run()
                    watch.tokens(each.skipped)
            continue
        if through is not None:
            rounded = round_block(
                through, own, source.stored(number), original=original, correction=settings.correction
            )
        else:
            rounded = round_block_to_nearest(block, own, source.stored(number))
            watch.tokens(1)
        errors = {name: weight.error for name, weight in rounded.items()}
        words = {
            f"transformer.h.{number}.{name}.{kind}": tensor
            for name, weight in rounded.items()
            for kind, tensor in _affine(weight, own[name].bits).to_gptq().items()
        }
        bits = {name: own[name].bits for name in LAYERS}
        work.keep_layer(number, words, {"errors": errors, "bits": bits})
        watch.layer(number, errors, time.perf_counter() - start)


def _affine(weight: RoundedWeight, bits: int) -> AffineLinear:
    codes = pack_nibbles(weight.codes) if bits == 4 else weight.codes
    return AffineLinear(codes, weight.scales, weight.zeros, weight.group_of_column, bits=bits)


def _restore(block: Block, work: WorkFolder, number: int) -> None:
    """Give the block the values of its finished layer: the same bits that `put` gave it then."""
    file, about = work.layer(number)
    for name in LAYERS:
        qweight, qzeros, scales, g_idx = (
            file.read(f"transformer.h.{number}.{name}.{kind}")
            for kind in ("qweight", "qzeros", "scales", "g_idx")
        )
        layer = AffineLinear.from_gptq(qweight, qzeros, scales, g_idx, about["bits"][name])
        put(linear_of(block, name), layer.dequantize(torch.float32))


def _prove(
    out: Path,
    report: Report,
    windows: Mapping[str, Sequence[Sequence[int]]],
    checkpoint: Checkpoint,
    settings: Settings,
    watch: Watch,
) -> Report:
    watch.note(f"{out} is written; loading it to measure it.")
    flat = [ids for texts in windows.values() for ids in texts]
    losses = [loss for _, _, loss in _by_text(windows, folder_losses(out, flat, settings.dtype))]
    timed = {"source": checkpoint, "result": open_checkpoint(out)}
    if isinstance(checkpoint, MergedCheckpoint):  # which is nowhere in a file
        del timed["source"]
    speeds = {name: seconds_per_token(of, max(flat, key=len)) for name, of in timed.items()}
    report = report.judged(losses, {name: speed for name, speed in speeds.items() if speed is not None})
    report.write(out)
    return report
