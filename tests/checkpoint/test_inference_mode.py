"""Loading while the caller is in inference mode gives ordinary weights, from threads too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf_files import write_model

from qwenkit.checkpoint import open_checkpoint


@pytest.mark.parametrize("layout", ["gguf", "v1"])
def test_weights_loaded_in_inference_mode_are_ordinary(tmp_path: Path, v1_folder, layout: str) -> None:
    path = v1_folder.path
    if layout == "gguf":
        path, _ = write_model(tmp_path / "m.gguf", kind="Q8_0")
    with torch.inference_mode():
        model = open_checkpoint(path).load_model(dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        assert not parameter.is_inference(), name
