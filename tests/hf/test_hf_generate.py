"""transformers' generate, caches and outputs on top of the one forward pass."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    StaticCache,
    StoppingCriteria,
)
from transformers.generation.streamers import BaseStreamer

from qwenkit.core import RequestError, UnsupportedError
from qwenkit.hf import StopWordsCriteria

PAD = 0
GREEDY = {"do_sample": False, "pad_token_id": PAD}


def left_pad(rows, width=None):
    width = width or max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def prompts(golden, *lengths):
    ids = golden["ids"][0].tolist()
    return [ids[3 * i : 3 * i + n] for i, n in enumerate(lengths)]


def alone(model, prompt, n, **kwargs):
    out = model.generate(torch.tensor([prompt]), max_new_tokens=n, **{**GREEDY, **kwargs})
    return out[0, len(prompt) :].tolist()


# -- rows of a batch ---------------------------------------------------------------------------------


# The training length is 32: the rows below have NTK factors 1, 3 and 7 side by side, and grow past it.
@pytest.mark.parametrize("lengths", [(5, 12, 9), (30, 20, 3), (70, 40, 10), (33, 32, 65)])
def test_greedy_batch_equals_its_rows_alone(tiny, golden, lengths):
    rows = prompts(golden, *lengths)
    ids, mask = left_pad(rows)
    out = tiny.generate(ids, attention_mask=mask, max_new_tokens=12, **GREEDY)
    assert [row[ids.shape[1] :].tolist() for row in out] == [alone(tiny, row, 12) for row in rows]


@pytest.mark.parametrize("length", [10, 40, 70])
def test_generation_without_a_cache_equals_generation_with_one(tiny, golden, length):
    rows = prompts(golden, length, 25)
    ids, mask = left_pad(rows)
    with_cache = tiny.generate(ids, attention_mask=mask, max_new_tokens=30, **GREEDY)
    without = tiny.generate(ids, attention_mask=mask, max_new_tokens=30, use_cache=False, **GREEDY)
    assert torch.equal(with_cache, without)


@torch.inference_mode()
@pytest.mark.parametrize("past", [0, 6])
def test_padding_on_either_side_and_between_changes_nothing(tiny, golden, close, past):
    text = golden["ids"][0, :40]
    want = tiny(text[None]).logits[0]
    for slots in (range(8, 48), range(40), [*range(3, 20), *range(30, 53)]):
        slots = list(slots)
        width = 55
        ids = torch.full((2, width), PAD)
        mask = torch.zeros(2, width, dtype=torch.long)
        ids[0, slots], mask[0, slots] = text, 1
        ids[1], mask[1] = golden["ids"][0, 40 : 40 + width], 1
        cache = DynamicCache()
        out = []
        if past:
            out.append(tiny(ids[:, :-past], attention_mask=mask[:, :-past], past_key_values=cache).logits)
        out.append(tiny(ids[:, -past:] if past else ids, attention_mask=mask, past_key_values=cache).logits)
        close(torch.cat(out, 1)[0, slots], want)


@torch.inference_mode()
def test_position_ids_equal_those_found_from_the_mask(tiny, golden, close):
    ids, mask = left_pad(prompts(golden, 20, 45))
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    ours = tiny(ids, attention_mask=mask, position_ids=positions).logits
    close(ours[mask.bool()], tiny(ids, attention_mask=mask).logits[mask.bool()], 1e-6)


ONES = torch.ones(2, 4, dtype=torch.long)


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        ({"input_ids": None}, RequestError, "input_ids"),
        ({"inputs_embeds": torch.ones(2, 4, 64)}, RequestError, "one of"),
        ({"attention_mask": torch.ones(2, 3)}, RequestError, r"\(2, 3\)"),
        ({"attention_mask": torch.ones(2, 1, 4, 4)}, UnsupportedError, "shape"),
        ({"position_ids": ONES[:, :3]}, RequestError, "position_ids"),
        ({"position_ids": torch.tensor([[0, 1, 0, 1]])}, RequestError, "packed"),
        ({"output_attentions": True}, UnsupportedError, "output_attentions"),
        ({"past_key_values": ((1, 2),)}, RequestError, "tuple"),
        ({"token_type_ids": 0 * ONES}, TypeError, "token_type_ids"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(tiny, inputs, error, words):
    with pytest.raises(error, match=words):
        tiny(**{"input_ids": ONES, **inputs})


# -- what comes back ---------------------------------------------------------------------------------


@torch.inference_mode()
def test_logits_to_keep(tiny, golden, close):
    ids = golden["ids"][:, :20]
    whole = tiny(ids).logits
    close(tiny(ids, logits_to_keep=1).logits, whole[:, -1:], 1e-5)
    close(tiny(ids, logits_to_keep=torch.tensor([0, 7])).logits, whole[:, [0, 7]], 1e-5)
    # A loss needs every position.
    assert tiny(ids, logits_to_keep=1, labels=ids).logits.shape == whole.shape


@torch.inference_mode()
def test_embeddings_instead_of_tokens(tiny, golden):
    ids = golden["ids"][:, :20]
    embeddings = tiny.get_input_embeddings()(ids)
    assert torch.equal(tiny(inputs_embeds=embeddings).logits, tiny(ids).logits)
    ours = tiny.generate(inputs_embeds=embeddings, max_new_tokens=20, **GREEDY)
    assert ours[0].tolist() == alone(tiny, ids[0].tolist(), 20)


@torch.inference_mode()
def test_hidden_states(tiny, golden):
    ids = golden["ids"][:, :20]
    out = tiny(ids, output_hidden_states=True)
    states = out.hidden_states
    assert len(states) == 3 + 1
    assert torch.equal(states[0], tiny.transformer.wte(ids))
    assert torch.equal(tiny.lm_head(states[-1]), out.logits)
    seen = []
    hook = tiny.transformer.h[1].register_forward_hook(lambda _, args, output: seen.append(output))
    tiny(ids)
    hook.remove()
    assert torch.equal(states[2], seen[0])
    generated = tiny.generate(
        ids, max_new_tokens=2, output_hidden_states=True, return_dict_in_generate=True, **GREEDY
    )
    assert len(generated.hidden_states) == 2
    assert tiny(ids).hidden_states is None


@torch.inference_mode()
def test_tuple_output(tiny, golden):
    ids = golden["ids"][:, :5]
    loss, logits, cache = tiny(ids, labels=ids, return_dict=False)
    assert loss.dim() == 0
    assert logits.shape == (1, 5, 512)
    assert cache.get_seq_length() == 5
    assert tiny(ids, use_cache=False).past_key_values is None


# -- caches ------------------------------------------------------------------------------------------


def test_a_prompt_cache_can_be_copied_and_continued(tiny, golden):
    """The factor of a long prompt travels with copies of its cache."""
    prompt = golden["ids"][0, :40].tolist()
    with torch.inference_mode():
        kept = tiny(torch.tensor([prompt])).past_key_values
    more = prompt + golden["ids"][0, 40:50].tolist()
    want = None
    for _ in range(2):
        cache = copy.deepcopy(kept)
        out = tiny.generate(torch.tensor([more]), past_key_values=cache, max_new_tokens=8, **GREEDY)
        want = out if want is None else want
        assert torch.equal(out, want)
    assert kept.get_seq_length() == 40
    assert out[0, 50:].tolist() == alone(tiny, more, 8)  # 40 and 50 tokens have the same factor


@torch.inference_mode()
def test_a_cache_of_unknown_factor_is_refused_past_the_training_length(tiny, golden):
    cache = tiny(golden["ids"][:, :40]).past_key_values
    del cache.qwen_ntk_alpha
    with pytest.raises(RequestError, match="NTK"):
        tiny(golden["ids"][:, 40:41], past_key_values=cache)
    ids, mask = left_pad(prompts(golden, 40, 70))
    cache = tiny(ids, attention_mask=mask).past_key_values
    cache.batch_repeat_interleave(2)
    with pytest.raises(RequestError, match="2 rows"):
        tiny(torch.ones(4, 1, dtype=torch.long), past_key_values=cache)


@torch.inference_mode()
def test_caches_of_fixed_size_are_refused(tiny, golden):
    with pytest.raises(UnsupportedError, match="fixed size"):
        tiny(golden["ids"][:, :4], past_key_values=StaticCache(config=tiny.config, max_cache_len=8))
    with pytest.raises(UnsupportedError, match="fixed size"):
        tiny.generate(golden["ids"][:, :4], cache_implementation="static", max_new_tokens=2, **GREEDY)


@pytest.mark.parametrize("length", [20, 40, 70])
def test_prefill_in_chunks(tiny, golden, length):
    ids = golden["ids"][:, :length]
    ours = tiny.generate(ids, prefill_chunk_size=7, max_new_tokens=10, **GREEDY)
    assert ours[0, length:].tolist() == alone(tiny, ids[0].tolist(), 10)


@pytest.mark.parametrize("int8", [False, True])
def test_cache_verbs(tiny_folder, golden, int8, close):
    """Beam search reorders, drafting crops, other callers select: float and int8 alike."""
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, use_cache_quantization=int8)
    rows = torch.stack([golden["ids"][0, :9], golden["ids"][0, 30:39], golden["ids"][0, 60:69]])
    order = torch.tensor([2, 0, 0])
    step = torch.tensor([[5], [6], [7]])

    def run(rows, change=None):
        cache = DynamicCache()
        with torch.inference_mode():
            model(rows, past_key_values=cache)
            if change:
                change(cache)
            return model(step[: cache.layers[0].keys.shape[0]], past_key_values=cache).logits

    want = run(rows[order])
    close(run(rows, lambda cache: cache.reorder_cache(order)), want)
    close(run(rows, lambda cache: cache.batch_select_indices(order)), want)
    repeated = run(rows[:1], lambda cache: cache.batch_repeat_interleave(3))
    close(repeated, run(rows[[0, 0, 0]]))
    with torch.inference_mode():
        cache = DynamicCache()
        model(rows, past_key_values=cache)
        before = model(step, past_key_values=cache).logits
        cache.crop(-1)
        assert cache.get_seq_length() == 9
        close(model(step, past_key_values=cache).logits, before)


# -- strategies --------------------------------------------------------------------------------------


def test_sampling_is_repeatable_and_follows_the_model(tiny, golden):
    ids = golden["ids"][:, :10]
    kwargs = {
        "do_sample": True,
        "top_k": 0,
        "max_new_tokens": 12,
        "pad_token_id": PAD,
        "num_return_sequences": 3,
    }
    torch.manual_seed(3)
    first = tiny.generate(ids, **kwargs)
    torch.manual_seed(3)
    assert torch.equal(tiny.generate(ids, **kwargs), first)
    assert first.shape == (3, 22)
    assert len(set(map(tuple, first.tolist()))) == 3
    assert alone(tiny, ids[0].tolist(), 12, do_sample=True, top_k=1) == alone(tiny, ids[0].tolist(), 12)


@pytest.mark.parametrize("length", [10, 40])
def test_beam_search_finds_the_better_of_two_by_hand(tiny, golden, length):
    """Two beams, three tokens, against an exhaustive restatement of the search."""
    ids = golden["ids"][:, :length]
    beams = [(0.0, [])]
    with torch.inference_mode():
        for _ in range(3):
            grown = []
            for score, tail in beams:
                cache = tiny(ids).past_key_values
                logits = tiny(ids).logits[0, -1]
                for token in tail:
                    logits = tiny(torch.tensor([[token]]), past_key_values=cache).logits[0, -1]
                values, tokens = logits.log_softmax(-1).topk(4)
                grown += [(score + v.item(), [*tail, t.item()]) for v, t in zip(values, tokens, strict=True)]
            beams = sorted(grown, reverse=True)[:2]
    out = tiny.generate(ids, num_beams=2, num_return_sequences=2, max_new_tokens=3, **GREEDY)
    assert [row[length:].tolist() for row in out] == [tail for _, tail in beams]


@pytest.mark.parametrize("length", [10, 31, 60])
def test_drafted_generation_equals_greedy(tiny, golden, length):
    """Prompt lookup and an assistant model crop the cache; 31 and 60 end just before a new NTK factor."""
    ids = golden["ids"][:, :7].repeat(1, 10)[:, :length]  # something to look up
    want = alone(tiny, ids[0].tolist(), 16)
    assert 511 not in want
    draft = {"max_new_tokens": 16, "eos_token_id": 511, **GREEDY}
    looked_up = tiny.generate(ids, prompt_lookup_num_tokens=4, **draft)
    assert looked_up[0, length:].tolist() == want
    assistant = copy.deepcopy(tiny)
    assistant.generation_config.num_assistant_tokens = 5
    assistant.generation_config.assistant_confidence_threshold = 0.0  # draft all five
    assisted = tiny.generate(ids, assistant_model=assistant, **draft)
    assert assisted[0, length:].tolist() == want


def test_streamer_sees_every_token(tiny, golden):
    class Collect(BaseStreamer):
        def __init__(self):
            self.ids, self.ended = [], False

        def put(self, value):
            self.ids += value.reshape(-1).tolist()

        def end(self):
            self.ended = True

    streamer = Collect()
    out = tiny.generate(golden["ids"][:, :10], streamer=streamer, max_new_tokens=9, **GREEDY)
    assert streamer.ids == out[0].tolist()
    assert streamer.ended


# -- stop words --------------------------------------------------------------------------------------


def test_stop_words_end_each_row_with_the_sequence_itself(tiny, golden):
    prompt = golden["ids"][0, :10].tolist()
    free = alone(tiny, prompt, 40)
    for at, n in ((0, 1), (5, 1), (7, 3)):
        stop = free[at : at + n]
        first = next(i for i in range(40) if free[i : i + n] == stop)
        assert alone(tiny, prompt, 40, stop_words_ids=[[511, 510], stop]) == free[: first + n]
    config = GenerationConfig(max_new_tokens=40, **GREEDY)
    config.stop_words_ids = [free[7:10]]
    out = tiny.generate(torch.tensor([prompt]), generation_config=config)
    assert out[0, -3:].tolist() == free[7:10]


def test_stop_words_in_a_batch_end_rows_one_by_one(tiny, golden):
    rows = prompts(golden, 5, 12)
    free = [alone(tiny, row, 20) for row in rows]
    stop = next([a] for a in free[0] if a not in free[1][:15])
    ids, mask = left_pad(rows)
    out = tiny.generate(
        ids, attention_mask=mask, max_new_tokens=20, stop_words_ids=[stop], eos_token_id=511, **GREEDY
    )
    assert out[1, 12:].tolist()[:15] == free[1][:15]
    end = free[0].index(stop[0])
    assert out[0, 12 : 12 + end + 1].tolist() == free[0][: end + 1]
    assert set(out[0, 12 + end + 1 :].tolist()) <= {PAD}


def test_a_prompt_that_ends_in_a_stop_sequence_is_continued(tiny, golden):
    prompt = golden["ids"][0, :10].tolist()
    assert alone(tiny, prompt, 5, stop_words_ids=[prompt[-2:]]) == alone(tiny, prompt, 5)


def test_own_stopping_criteria_are_kept_beside_stop_words(tiny, golden):
    class AfterThree(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 13)

    prompt = golden["ids"][0, :10].tolist()
    assert len(alone(tiny, prompt, 20, stop_words_ids=[[510]], stopping_criteria=[AfterThree()])) == 3


def test_a_stop_inside_a_pass_of_several_tokens_is_noticed():
    criteria = StopWordsCriteria([[1, 2]], prompt_length=2)
    assert not criteria(torch.tensor([[1, 2, 9, 1]]), None)[0]  # the prompt itself does not count
    assert criteria(torch.tensor([[1, 2, 9, 1, 2, 7, 7, 7]]), None)[0]


@pytest.mark.parametrize("bad", [[], [[]], [[-1]], [["a"]], "stop", [1, 2], [[1.5]], [[True]]])
def test_malformed_stop_words_are_refused(tiny, bad):
    with pytest.raises(ValueError, match="stop_words_ids"):
        tiny.generate(torch.tensor([[1]]), stop_words_ids=bad, max_new_tokens=1)


def test_a_misspelt_keyword_is_refused(tiny):
    with pytest.raises(ValueError, match="stop_word_ids"):
        tiny.generate(torch.tensor([[1]]), stop_word_ids=[[1]], max_new_tokens=1)
