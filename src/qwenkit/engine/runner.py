"""Running the model over rows that start together: chunked prefill, then decoding in step.

Knows tokens, padding and the cache; nothing of text or sampling rules. Rows are left-padded to the
longest prompt; a prompt with several continuations is read once and its cache rows are repeated;
finished rows leave the batch.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from qwenkit.engine.plan import Share
from qwenkit.engine.sampler import check_finite
from qwenkit.engine.threads import one_torch_thread, uses_native_pool
from qwenkit.engine.vocabulary import Vocabulary
from qwenkit.model import Batch, CausalLM, DenseCache

_DECODE_ROOM = 256
"""Slots kept free behind the prompt at first; the cache doubles from there."""

_CACHE_BYTES = 2 << 30
"""Keys and values that a batch may hold unless told otherwise; a single row may always run."""


class Runner:
    """A model on its device, and the lock that lets one thread at a time compute.

    The lock is taken for one forward pass, not for one generation: a stream that somebody leaves unread
    blocks nobody, and threads take turns step by step.

    prefill_chunk: most tokens of one pass, over all rows; bounds the memory of activations.
    max_batch_tokens: cache slots of a batch, prompts and replies of all rows; None allows 2 GiB of them.
    """

    def __init__(
        self,
        model: CausalLM,
        vocabulary: Vocabulary,
        *,
        prefill_chunk: int = 1024,
        max_batch_tokens: int | None = None,
    ) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.native = uses_native_pool(model)
        self.prefill_chunk = prefill_chunk
        embedding = model.transformer.wte.weight
        self.device = embedding.device
        if max_batch_tokens is None:
            max_batch_tokens = _CACHE_BYTES // model.shape.kv_bytes_per_token(embedding.element_size())
        self.max_batch_tokens = max_batch_tokens
        self._lock = threading.Lock()

    @torch.inference_mode()
    def read(self, tokens: Tensor, batch: Batch) -> None:
        """Put tokens [b, s] into the batch's cache; no logits are computed."""
        with self._lock, one_torch_thread(self.native):
            self.model.transformer(tokens, batch)

    @torch.inference_mode()
    def predict(self, tokens: Tensor, batch: Batch) -> Tensor:
        """As `read`; returns float32 [b, vocab] logits of what follows. Raises QwenkitError if not finite."""
        with self._lock, one_torch_thread(self.native):
            last = self.model(tokens, batch, last=1)[:, -1]
            check_finite(last[:, : self.vocabulary.size])
            return self.vocabulary.candidates(last)


class RunningBatch:
    """Rows in flight: `prefill` once, then `step` until `rows` is empty; each gives one row of logits a row.

    Nothing outlives the object: dropping it frees the cache.
    """

    def __init__(self, runner: Runner, shares: Sequence[Share]) -> None:
        prompts = [share.request.prompt_ids for share in shares]
        self.rows = [sequence for share in shares for sequence in share.sequences]
        self._copies = [i for i, share in enumerate(shares) for _ in share.sequences]
        self._runner = runner
        self._filled = max(len(prompt) for prompt in prompts)  # slots of the cache, padding included
        self._pads = [self._filled - len(prompt) for prompt in prompts]
        # What stands in a padding slot is never seen, but it must be a token.
        self._prompts = [
            [prompt[0]] * pad + [*prompt] for prompt, pad in zip(prompts, self._pads, strict=True)
        ]
        self._alphas = [share.request.ntk_alpha for share in shares]
        room = min(_DECODE_ROOM, max(share.request.max_tokens for share in shares))
        self._cache = DenseCache(runner.model.shape.num_layers, capacity=self._filled + room)

    def prefill(self) -> Tensor:
        """Read every prompt, in chunks; logits float32 [rows, vocab] of the first new token of each row."""
        tokens = torch.tensor(self._prompts, device=self._runner.device)
        chunk = max(1, self._runner.prefill_chunk // len(self._prompts))
        last = (self._filled - 1) // chunk * chunk
        for past in range(0, last, chunk):
            self._runner.read(tokens[:, past : past + chunk], self._batch(chunk, past))
        logits = self._runner.predict(tokens[:, last:], self._batch(self._filled - last, last))
        if len(self._copies) > len(self._prompts):
            self._keep(self._copies)
            logits = logits[self._copies]
        return logits

    def step(self) -> Tensor:
        """Feed each row its last token; logits float32 [rows, vocab] of the next."""
        tokens = torch.tensor([[row.last_token] for row in self.rows], device=self._runner.device)
        logits = self._runner.predict(tokens, self._batch(1, self._filled))
        self._filled += 1
        return logits

    def drop_finished(self) -> None:
        """Free the rows whose sequences have ended."""
        alive = [i for i, row in enumerate(self.rows) if not row.finished]
        if len(alive) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in alive]
        if alive:
            self._keep(alive)

    @torch.inference_mode()
    def _keep(self, rows: list[int]) -> None:
        self._pads = [self._pads[i] for i in rows]
        self._alphas = [self._alphas[i] for i in rows]
        self._cache.select(torch.tensor(rows, device=self._runner.device))

    def _batch(self, new: int, past: int) -> Batch:
        """The next `new` slots of every row."""
        return Batch.make(
            len(self._pads),
            new,
            past=past,
            pads=self._pads,
            ntk_alpha=tuple(self._alphas),
            cache=self._cache,
            device=self._runner.device,
        )
