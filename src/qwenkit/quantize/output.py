"""The finished folder: GPTQ tensors in the layout of the source, with all that loading it needs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from qwenkit.checkpoint.conversion_notes import readme
from qwenkit.checkpoint.folder_plan import FolderPlan
from qwenkit.checkpoint.gptq_rules import dynamic_of
from qwenkit.checkpoint.layout import cast
from qwenkit.checkpoint.output import appearing
from qwenkit.checkpoint.safetensors_file import DTYPES
from qwenkit.checkpoint.safetensors_writer import PlannedTensor
from qwenkit.checkpoint.write import in_layout
from qwenkit.quantize.mixture import Mixture
from qwenkit.quantize.report import Report
from qwenkit.quantize.settings import Settings
from qwenkit.quantize.source import Source
from qwenkit.quantize.work_folder import WorkFolder


def plan_folder(source: Source, work: WorkFolder, settings: Settings, mixture: Mixture) -> FolderPlan:
    """What the folder will hold. v1 comes out as v1, everything else in the Qwen2 layout.

    All layers are finished. Raises CheckpointError for a layer's file that is damaged.
    """
    tensors = cast(source.kept(), source.kept_dtype)
    for number in range(source.config.num_layers):
        file, _ = work.layer(number)
        for name, entry in file.entries().items():
            read = partial(file.read, name)
            tensors.append(PlannedTensor(name, entry.shape, DTYPES[entry.dtype], read))
    config, tensors = in_layout(source.layout, source.config, tensors)
    checkpoint = source.checkpoint
    return FolderPlan(
        layout=source.layout,
        config=config,
        tensors=tensors,
        dtype=source.kept_dtype,
        tokenizer=source.tokenizer,
        chat_template=checkpoint.chat_template,
        generation=checkpoint.generation,
        quantization=settings.quantize_config(dynamic_of(source.layout, mixture.fields(settings.rounding))),
        note=readme(checkpoint.path.name, f"{source.layout} layout", checkpoint.notes)
        if checkpoint.notes
        else "",
    )


def write_folder(plan: FolderPlan, report: Report, out: Path) -> None:
    """`out` appears whole or not at all. Raises CheckpointError for a full disk or if something is there."""
    with appearing(out, folder=True, nbytes=sum(tensor.nbytes for tensor in plan.tensors)) as fresh:
        plan.write(fresh)
        report.write(fresh)
