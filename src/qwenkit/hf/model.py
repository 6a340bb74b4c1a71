"""Qwen as a transformers model: arguments in, qwenkit.model's forward pass, transformers' output out.

Knows transformers' calling conventions (masks, caches, labels, generate); the mathematics, including the
attention, is qwenkit.model's. Does not know files beyond `from_pretrained` (see loading.py).
"""

from __future__ import annotations

# mypy: allow-untyped-calls
# transformers annotates only part of what it asks to be called and overridden.
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from qwenkit.core import RequestError, UnsupportedError
from qwenkit.hf.cache import TransformersCache, recall_alpha, remember_alpha
from qwenkit.hf.chat import ChatMixin
from qwenkit.hf.config import QWenConfig
from qwenkit.hf.int8_cache import keep_as_int8
from qwenkit.hf.loading import LoadingMixin
from qwenkit.hf.rows import DispatchedBatch, layout, prompt_alpha
from qwenkit.hf.stop_words import StopWordsCriteria
from qwenkit.model import KVCache, OriginalInt8Cache, Transformer, causal_loss, output_logits

_log = logging.getLogger(__name__)


class QWenLMHeadModel(ChatMixin, LoadingMixin, PreTrainedModel, GenerationMixin):
    """Causal language model with the parameter names of the 2023 checkpoints.

    The NTK factor of a row is chosen when its prompt is read and stays with the cache (see hf/cache.py).
    Attention is torch's scaled dot-product attention whatever `use_flash_attn` says.
    """

    config_class = QWenConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012
    # Buffers that files of 2023 may carry and nobody needs (reference: model section 2).
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        r"h\.\d+\.attn\.masked_bias", r"rotary_emb\.inv_freq", r"attn\.logn_tensor",
    ]  # fmt: skip

    def __init__(self, config: QWenConfig) -> None:
        """Random weights in the dtype of the config's precision flag, if one is set.

        Raises UnsupportedError when the config asks for another attention implementation than "sdpa".
        """
        super().__init__(config)
        if config._attn_implementation not in (None, "sdpa"):
            raise UnsupportedError(
                f"attn_implementation={config._attn_implementation!r}.",
                "Leave it out: attention is always torch's scaled dot-product attention (sdpa).",
            )
        config.check()
        shape = config.shape
        self.transformer = Transformer(shape)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        if config.precision is not None:
            self.to(config.precision)  # type: ignore[arg-type]
        self.post_init()

    # -- the forward pass ---------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        ntk_alpha: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        cache_position: Tensor | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits [b, s, vocab] of tokens [b, s] or embeddings [b, s, h], and the loss of labels [b, s].

        attention_mask: [b, past + s], 1 to keep and 0 for padding, on either side.
        position_ids: [b, s]; found from the mask when left out.
        labels: -100 is ignored, and so is a token that follows padding; the others are predicted from those
            before them. With num_items_in_batch the
            loss is the sum over tokens divided by it (gradient accumulation), else the mean.
        logits_to_keep: the last n positions only (0 keeps all), or an index tensor.
        ntk_alpha: float [b], the factors of a prompt of which this pass is a part; used while the cache is
            empty. `generate` fills it in, so prompts read in chunks get the factor of the whole.
        cache_position: accepted for older transformers; the cache itself knows.

        Raises RequestError for inputs that do not fit together and UnsupportedError for output_attentions.
        """
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise UnsupportedError(
                "output_attentions=True: attention weights are never formed.", "Leave it out."
            )
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        if tokens is None or (input_ids is not None and inputs_embeds is not None):
            raise RequestError(
                "forward needs input_ids or inputs_embeds, one of the two.", "Leave the other out."
            )
        self._check_training()
        cache = self._cache_for(past_key_values, use_cache)
        batch = self._batch(tokens, cache, attention_mask, position_ids, ntk_alpha)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        with self._recorded_hidden_states(bool(wanted)) as states:
            hidden = self.transformer(input_ids, batch, inputs_embeds)
        kept = hidden
        if labels is None and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            last = isinstance(logits_to_keep, int)
            kept = hidden[:, -logits_to_keep:] if last else hidden[:, logits_to_keep]
        logits = output_logits(self.lm_head, kept)
        loss = None if labels is None else self._loss(logits, labels, attention_mask, num_items_in_batch)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=cache,
            hidden_states=(*states, hidden) if wanted else None,
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def _check_training(self) -> None:
        config = self.config
        if self.training and (config.attn_dropout_prob or config.emb_dropout_prob):
            raise UnsupportedError(
                f"attn_dropout_prob={config.attn_dropout_prob}, emb_dropout_prob={config.emb_dropout_prob}: "
                "training with dropout.",
                "Set both to 0 in the config.",
            )

    def _cache_for(self, given: Cache | None, use_cache: bool | None) -> Cache | None:
        recomputes = self.training and self.transformer.gradient_checkpointing
        if given is None and use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if (given is not None or use_cache) and recomputes:
            if given is None:  # what transformers' own models do: a recomputed block would append twice
                return None
            raise RequestError(
                "past_key_values with gradient checkpointing in training mode.",
                "Call eval(), or gradient_checkpointing_disable().",
            )
        if given is not None:
            return given
        return DynamicCache(config=self.config) if use_cache else None

    def _batch(
        self,
        tokens: Tensor,
        cache: Cache | None,
        mask: Tensor | None,
        position_ids: Tensor | None,
        ntk_alpha: Tensor | None,
    ) -> DispatchedBatch:
        rows, new = tokens.shape[:2]
        shape = self.transformer.shape
        adapter: KVCache | None = None
        if cache is not None:
            if self.config.use_cache_quantization:
                keep_as_int8(cache, shape.num_layers)
            adapter = TransformersCache(cache)
        elif self.config.use_cache_quantization and not self.training:
            adapter = OriginalInt8Cache(shape.num_layers)  # the original quantizes without a cache too
        past = 0 if adapter is None else adapter.length
        positions, seen = layout(rows, new, past, mask, position_ids, tokens.device)
        if past and cache is not None:
            alpha = recall_alpha(cache, rows, past, shape.seq_length) if shape.dynamic_ntk else (1.0,)
        else:
            if ntk_alpha is not None:
                alpha = tuple(ntk_alpha.tolist())
            else:
                alpha = prompt_alpha(shape, rows, new, mask)
            if cache is not None:
                remember_alpha(cache, alpha)
        return DispatchedBatch(positions, alpha, past + new, seen, adapter)

    @contextmanager
    def _recorded_hidden_states(self, wanted: bool) -> Iterator[list[Tensor]]:
        """Inputs of every block, in order: embeddings, then each block's output but the last."""
        states: list[Tensor] = []
        if not wanted:
            yield states
            return
        hooks = [
            block.register_forward_pre_hook(lambda _, args: states.append(args[0]))
            for block in self.transformer.h
        ]
        try:
            yield states
        finally:
            for hook in hooks:
                hook.remove()

    @staticmethod
    def _loss(logits: Tensor, labels: Tensor, mask: Tensor | None, num_items: Tensor | int | None) -> Tensor:
        labels = labels.to(logits.device)
        if mask is not None and mask.shape == labels.shape:
            # After left padding nothing precedes the first token; padding must not learn to predict it.
            blind = mask.to(labels.device)[:, :-1].eq(0)
            labels = torch.cat((labels[:, :1], labels[:, 1:].masked_fill(blind, -100)), dim=1)
        loss = causal_loss(logits, labels)
        if num_items is None:
            return loss
        predicted = labels[:, 1:].ne(-100).sum()
        if isinstance(num_items, Tensor):
            num_items = num_items.to(logits.device)
        # A batch without a single label has the mean 0/0; its sum is 0.
        return torch.where(predicted > 0, loss, torch.zeros_like(loss)) * predicted / num_items

    # -- generation ---------------------------------------------------------------------------------

    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        stop_words_ids: list[list[int]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate` with the original's `stop_words_ids`, token sequences that end a row.

        Without the keyword, the attribute of the same name of the generation config is used. The stop
        sequence stays in the result. Raises RequestError for malformed stop_words_ids.
        """
        if stop_words_ids is None:
            stop_words_ids = getattr(generation_config or self.generation_config, "stop_words_ids", None)
        if stop_words_ids is not None:
            prompt = inputs if inputs is not None else kwargs.get("input_ids")
            length = 0 if prompt is None else prompt.shape[1]
            criteria = [*(kwargs.pop("stopping_criteria", None) or ())]
            kwargs["stopping_criteria"] = [*criteria, StopWordsCriteria(stop_words_ids, length)]
        return super().generate(inputs, generation_config=generation_config, **kwargs)  # type: ignore[misc]

    def _expand_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """Also choose the prompt's NTK factors, here where the prompt and its mask are final.

        They then reach every pass: drafted tokens and chunks cannot change the factor of their prompt,
        and generation without a cache equals generation with one.
        """
        tokens = kwargs.get("inputs_embeds")
        if tokens is None:
            tokens = kwargs.get("input_ids")
        shape = self.transformer.shape
        if shape.dynamic_ntk and tokens is not None and kwargs.get("ntk_alpha") is None:
            rows, length = tokens.shape[:2]
            mask = kwargs.get("attention_mask")
            if mask is None or tuple(mask.shape) == (rows, length):
                alpha = torch.tensor(prompt_alpha(shape, rows, length, mask))
                kwargs["ntk_alpha"] = alpha.expand(rows) if len(alpha) == 1 else alpha
        return super()._expand_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]

    # -- what transformers asks of every model -------------------------------------------------------

    def get_input_embeddings(self) -> Any:
        return self.transformer.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.transformer.wte = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> Any:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.transformer.shape = replace(self.transformer.shape, vocab_size=self.config.vocab_size)
        return embeddings

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = checkpoint, every_n_layers: int = 1
    ) -> None:
        """Recompute each block in the backward pass, always without reentrance (the gradients are equal).

        Raises UnsupportedError for every_n_layers and offload.
        """
        function = getattr(gradient_checkpointing_func, "func", gradient_checkpointing_func)
        if enable and (every_n_layers != 1 or function is not checkpoint):
            raise UnsupportedError(
                "activation checkpointing with every_n_layers or offload.", "Leave both out."
            )
        if enable and getattr(gradient_checkpointing_func, "keywords", {}).get("use_reentrant"):
            _log.warning("use_reentrant=True has no effect: blocks are recomputed without reentrance.")
        self.transformer.gradient_checkpointing = enable

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        super()._init_weights(module)
        blocks: Any = self.transformer.h
        if any(module is m for block in blocks for m in (block.attn.c_proj, block.mlp.c_proj)):
            # Residual branches start smaller the more there are (reference: model section 9).
            std = self.config.initializer_range / math.sqrt(2 * len(blocks))
            init.normal_(module.weight, mean=0.0, std=std)
