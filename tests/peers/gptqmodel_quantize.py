"""Run by a Python that has gptqmodel: round a folder to 4 bits by its defaults.

usage: gptqmodel_quantize.py SOURCE RESULT, token ids of the calibration texts as JSON on standard input
"""

from __future__ import annotations

import json
import sys

import torch
from gptqmodel import GPTQModel, QuantizeConfig

source, result = sys.argv[1:]
texts = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in json.load(sys.stdin)]
settings = QuantizeConfig(bits=4, group_size=128, desc_act=False, sym=True, offload_to_disk=False)
model = GPTQModel.load(source, settings, device="cpu", dtype=torch.bfloat16)
model.quantize(texts, batch_size=1)
model.save(result)
