"""from_pretrained and save_pretrained: precision flags, complete weights, GPTQ checkpoints.

Float checkpoints are read by transformers itself (shards, .safetensors and .bin, device_map, offload);
GPTQ ones by qwenkit.checkpoint, so that neither auto-gptq nor optimum is needed.
"""

from __future__ import annotations

# mypy: allow-untyped-calls
# transformers annotates only part of what it asks to be called and overridden.
import copy
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from qwenkit.checkpoint import open_checkpoint
from qwenkit.core import CheckpointError, ConfigError, UnsupportedError
from qwenkit.hf.config import PRECISION_FLAGS, QWenConfig, as_dtype, check_precision
from qwenkit.quant import AffineLinear

_log = logging.getLogger(__name__)

_HUB_ARGUMENTS = (
    "cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token",
)  # fmt: skip
# Switches of how transformers itself reads files; without meaning where qwenkit.checkpoint does.
_OWN_LOADER_ONLY = (
    "_from_auto", "_from_pipeline", "adapter_kwargs", "low_cpu_mem_usage", "use_safetensors", "weights_only",
)  # fmt: skip
_NOT_OVERRIDES = {"dtype", "torch_dtype", "quantization_config", "name_or_path", "transformers_version"}


if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Base
else:
    _Base = object


class LoadingMixin(_Base):
    """Reads and writes the folders of QWenLMHeadModel."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """As in transformers, with the original's keywords bf16, fp16, fp32, use_flash_attn, and so on.

        The dtype is the one given; else the precision flag's; else the stored one. GPTQ weights on CPU
        run in float32 unless a dtype or bf16 is given: 16-bit arithmetic is slow there.

        Raises ConfigError for contradicting precisions, CheckpointError when weights are missing from the
        files (transformers alone would fill them with random numbers), UnsupportedError for a GPTQ model
        over several devices.
        """
        # The classes are ours; without this a folder's custom_generate/generate.py would still be run.
        kwargs.pop("trust_remote_code", None)
        dtypes = [as_dtype(kwargs.pop(name, None)) for name in ("dtype", "torch_dtype")]
        dtype = dtypes[0] or dtypes[1]
        config = _resolve_config(pretrained_model_name_or_path, kwargs, dtype)
        if dtype is None:
            dtype = config.precision
        else:
            config.set_precision(dtype)
        if config.use_flash_attn is True or config.use_cache_kernel:
            _log.warning(
                "use_flash_attn and use_cache_kernel select nothing here: attention always goes through "
                "torch's scaled dot-product attention, which picks the fastest kernel it has."
            )
        if _is_gptq(config):
            return cls._from_gptq(pretrained_model_name_or_path, config, dtype, kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path,
            *model_args,
            config=config,
            dtype="auto" if dtype is None else dtype,
            output_loading_info=True,
            **kwargs,
        )
        model, info = loaded
        # With an adapter in the folder the report is about the adapter's own tensors.
        missing = sorted(key for key in info["missing_keys"] if "lora_" not in key)
        if missing:
            raise CheckpointError(
                f"{pretrained_model_name_or_path} lacks {len(missing)} of the model's tensors, "
                f"first {', '.join(missing[:3])}.",
                "Download the checkpoint again, all shards of it.",
            )
        return (model, info) if wants_info else model

    @classmethod
    def _from_gptq(
        cls, name: Any, config: QWenConfig, dtype: torch.dtype | None, kwargs: dict[str, Any]
    ) -> Any:
        hub = {key: kwargs.pop(key, None) for key in _HUB_ARGUMENTS}
        device = _single_device(kwargs.pop("device_map", None))
        _check_same_bits(config, kwargs.pop("quantization_config", None))
        generation = kwargs.pop("generation_config", None)
        if kwargs.pop("attn_implementation", None) not in (None, "sdpa"):
            raise UnsupportedError("Another attn_implementation than sdpa.", "Leave it out.")
        if kwargs.pop("state_dict", None) is not None:
            raise UnsupportedError("state_dict with a GPTQ checkpoint.", "Load from the folder.")
        for neutral in _OWN_LOADER_ONLY:
            kwargs.pop(neutral, None)
        if kwargs:
            raise TypeError(
                f"from_pretrained of a GPTQ checkpoint got unexpected arguments: {', '.join(kwargs)}"
            )
        path = Path(name)
        if not path.exists():
            from qwenkit.checkpoint import pull

            path = pull(
                str(name),
                source="huggingface",
                revision=hub["revision"],
                offline=bool(hub["local_files_only"]),
                token=hub["token"] or None,
            )
        path = path / (hub["subfolder"] or "")
        if dtype is None or (dtype == torch.float16 and config.fp16 and device.type == "cpu"):
            dtype = torch.float16 if device.type == "cuda" else torch.float32
            _log.warning("GPTQ weights run in %s on %s; pass dtype= for another.", dtype, device.type)
        core = open_checkpoint(path).load_model(device=str(device), dtype=dtype)
        config.set_precision(dtype)
        config.dtype = dtype
        config.name_or_path = str(name)
        with torch.device("meta"):
            model = cls(config)
        model.transformer, model.lm_head = core.transformer, core.lm_head
        if generation is not None:
            model.generation_config = generation
        elif (path / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(path)
        return model.eval()

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """As in transformers. Raises UnsupportedError for a model with packed (GPTQ) weights."""
        if any(isinstance(module, AffineLinear) for module in self.modules()):
            raise UnsupportedError(
                "save_pretrained of a model with packed integer weights.",
                "Copy the folder it came from; adapters trained on it are saved by peft on their own.",
            )
        self.config.set_precision(self.dtype)
        return super().save_pretrained(save_directory, *args, **kwargs)


def _resolve_config(name: Any, kwargs: dict[str, Any], dtype: torch.dtype | None) -> QWenConfig:
    """The configuration with the caller's overrides taken out of kwargs and applied."""
    overridable = set(QWenConfig().to_dict()) - _NOT_OVERRIDES
    overrides = {key: kwargs.pop(key) for key in list(kwargs) if key in overridable}
    given = kwargs.pop("config", None)
    if not isinstance(given, QWenConfig):
        hub = {key: kwargs[key] for key in _HUB_ARGUMENTS if key in kwargs}
        source = name if given is None else given
        return QWenConfig.from_pretrained(source, **hub, **overrides, dtype=dtype)
    flags = [flag for flag in PRECISION_FLAGS if overrides.get(flag)]
    check_precision(flags, dtype)
    config = copy.deepcopy(given)
    if flags:
        overrides = {**dict.fromkeys(PRECISION_FLAGS, False), **overrides}
    for key, value in overrides.items():
        setattr(config, key, value)
    return config


def _quantization(config: QWenConfig) -> Mapping[str, Any]:
    found = getattr(config, "quantization_config", None)
    if found is None:
        return {}
    return found if isinstance(found, Mapping) else found.to_dict()


def _is_gptq(config: QWenConfig) -> bool:
    found = _quantization(config)
    return bool(found) and found.get("quant_method", "gptq") == "gptq" and "bits" in found


def _check_same_bits(config: QWenConfig, asked: Any) -> None:
    """A GPTQConfig passed along may repeat what the files are; its kernel choices do not apply."""
    if asked is None:
        return
    wanted = asked if isinstance(asked, Mapping) else asked.to_dict()
    stored = _quantization(config)
    if wanted.get("quant_method", "gptq") != "gptq" or wanted.get("bits") != stored.get("bits"):
        raise ConfigError(
            f"quantization_config asks for int{wanted.get('bits')}, the files are int{stored.get('bits')}.",
            "Leave quantization_config out.",
        )


def _single_device(device_map: Any) -> torch.device:
    if isinstance(device_map, Mapping):
        places = set(device_map.values())
        if len(places) != 1:
            raise UnsupportedError(
                f"device_map spreads a GPTQ model over {sorted(map(str, places))}.", "Use one device."
            )
        device_map = next(iter(places))
    if device_map is None:
        return torch.device("cpu")
    if isinstance(device_map, str) and device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device("cuda", device_map) if isinstance(device_map, int) else torch.device(device_map)
