"""Engine with transformers' batched generation, with the policy in this process."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
import transformers
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from transformers import GenerationConfig as DecodingConfig
from transformers.cache_utils import DynamicLayer

from axolotl_tspin.config import GenerationConfig
from axolotl_tspin.generation.engines.decoding import (
    ROOM,
    FiniteRows,
    RowSampler,
    RowStops,
    give_room,
    use_decoding_attention,
)
from axolotl_tspin.generation.engines.engine import Request, Response
from axolotl_tspin.resolve.policies import not_finite
from axolotl_tspin.training.policies import autocast, base_of

SEGMENT = 24
"""Tokens generated between two checks for rows that have ended."""

LARGEST_BATCH, CPU_BATCH = 256, 64

CPU_PREFILL = 2048
"""Tokens of prompts that a CPU reads at a time. The memory of larger tensors is returned to the
system every time."""

CUDA_PREFILL = 2**15
"""Tokens of prompts that a GPU reads at a time. So many keep it busy; masks and activations grow
with more."""

DRAW_BYTES = 4 * 10
"""Bytes for each token of the vocabulary and row while one is drawn: logits as the model made them,
in float32, and at a temperature; top-p's sorted ones, their places in int64, the sort's buffer,
probabilities and sums."""

STATE_BYTES = 8 * 8
"""Bytes for each token of a row beside the cache, in int64 or float64: ids, mask and positions,
before and after a token, and uniform numbers."""


class TransformersEngine:
    """Samples batches of prompts, padded on the left, that shrink as their rows end.

    A batch is generated in segments. Between two segments, the rows that have ended are removed
    from it and from the cache. A policy whose logits are not finite is refused (`TSpinError`); no
    response of the batch is returned.

    Args:
        model: the policy, on its device.
        pad_token_id: fills the left of shorter prompts.
        sampling: temperature and top_p.
        batch_size: prompts in a batch.
        precision: type that forward passes are autocast to.
    """

    name = f"transformers {transformers.__version__}"

    def __init__(
        self,
        model: Any,
        *,
        pad_token_id: int,
        sampling: GenerationConfig,
        batch_size: int,
        precision: torch.dtype | None = None,
    ) -> None:
        self.group_size = batch_size
        self.on_tokens: Callable[[int], None] | None = None
        self._model = model.eval()
        use_decoding_attention(model)
        self._pad_token_id = pad_token_id
        self._sampling = sampling
        self._precision = precision

    def sample(self, groups: Iterable[list[Request]]) -> Iterator[list[Response]]:
        for group in groups:
            with autocast(self._model, self._precision):
                answers = self._answer(group)
            yield answers

    def close(self) -> None:
        pass

    @torch.no_grad()
    def _answer(self, group: list[Request]) -> list[Response]:
        device = self._model.device
        longest = max(len(request.prompt_ids) for request in group)
        sequences = torch.full((len(group), longest), self._pad_token_id)
        mask = torch.zeros_like(sequences)
        for i, request in enumerate(group):
            start = longest - len(request.prompt_ids)
            sequences[i, start:] = torch.tensor(request.prompt_ids)
            mask[i, start:] = 1
        sequences, mask = sequences.to(device), mask.to(device)
        # The checkpoint's generation_config must not add to the YAML's settings: T-SPIN samples
        # from the policy itself, without truncation or penalties.
        self._model.generation_config = DecodingConfig(
            do_sample=False,
            eos_token_id=None,  # every row has its own: see RowStops
            pad_token_id=self._pad_token_id,
            use_cache=True,
        )
        stops = RowStops([request.stop_ids for request in group], device)
        finite = FiniteRows(len(group), device)
        processors = LogitsProcessorList([finite])
        sampler = None
        if self._sampling.temperature > 0:
            limit = max(request.max_new_tokens for request in group)
            sampler = RowSampler([request.seed for request in group], longest, limit, device)
            if self._sampling.temperature != 1:
                processors.append(TemperatureLogitsWarper(self._sampling.temperature))
            if self._sampling.top_p < 1:
                processors.append(TopPLogitsWarper(self._sampling.top_p))
            processors.append(sampler)

        alive, cache = list(range(len(group))), self._empty_cache(longest)
        said: list[list[int]] = [[] for _ in group]
        answered: dict[int, Response] = {}
        while alive:
            made = sequences.shape[1] - longest
            left = max(group[i].max_new_tokens for i in alive) - made
            # If rows cannot be removed from the cache, segments have no use.
            shrinks = made == 0 or isinstance(cache, DynamicCache)
            output = self._model.generate(
                input_ids=sequences,
                attention_mask=mask,
                past_key_values=cache,
                logits_processor=processors,
                stopping_criteria=StoppingCriteriaList([stops]),
                prefill_chunk_size=None if made else self._prefill_chunk(len(group), longest),
                max_new_tokens=min(SEGMENT, left) if shrinks else left,
                return_dict_in_generate=True,
            )
            sequences, cache = output.sequences, output.past_key_values
            if self.on_tokens:
                self.on_tokens(len(alive) * (sequences.shape[1] - longest - made))
            if isinstance(cache, DynamicCache):
                give_room(cache)
            staying = []
            # One copy from the device for all rows.
            new = torch.cat([sequences[:, longest + made :], finite.finite[:, None]], dim=1)
            for position, (*ids, is_finite) in enumerate(new.tolist()):
                i = alive[position]
                if not is_finite:
                    what = f"logits that are not finite at the prompt of row {group[i].row}"
                    raise not_finite(self._model, what)
                said[i] += ids
                response = _ended(group[i], said[i], made)
                if response is None:
                    staying.append(position)
                else:
                    answered[i] = response
            if len(staying) < len(alive) and staying:
                alive = [alive[position] for position in staying]
                index = torch.tensor(staying, device=device)
                sequences, mask = sequences[index], mask[index]
                stops.keep(index)
                finite.keep(index)
                if sampler:
                    sampler.keep(index)
                if isinstance(cache, DynamicCache):
                    cache.batch_select_indices(index)
            elif not staying:
                break
            mask = torch.nn.functional.pad(mask, (0, sequences.shape[1] - mask.shape[1]), value=1)
        return [answered[i] for i in range(len(group))]

    def _empty_cache(self, tokens: int) -> DynamicCache | None:
        """Make a cache with room for prompts of so many tokens; None if the model makes its own."""
        base = base_of(self._model)
        # Some models keep a state along the row in something other than a cache.
        if getattr(base, "_is_stateful", False) or not base._supports_default_dynamic_cache():
            return None
        cache = DynamicCache(config=base.config.get_text_config(decoder=True))
        give_room(cache, tokens + ROOM)
        return cache

    def _prefill_chunk(self, rows: int, tokens: int) -> int | None:
        """Number of tokens of each prompt to read at a time; None reads all at once."""
        chunk = _part(self._model.device.type, rows)
        # Not every model with a state along the row can resume in the middle of a prompt.
        stateful = getattr(base_of(self._model), "_is_stateful", False)
        return None if stateful or chunk >= tokens else chunk


def _part(device: str, rows: int) -> int:
    """Number of tokens of each prompt that fit into one forward pass on this kind of device."""
    return max((CPU_PREFILL if device == "cpu" else CUDA_PREFILL) // rows, 16)


def batch_size_for(model: Any, setting: int | Literal["auto"], tokens: int) -> int:
    """Number of prompts in a batch: the setting, or as many as fit.

    It depends on the device's whole memory, not on the memory free at the moment, so a resumed run
    makes the same batches.

    Args:
        tokens: number of tokens of the longest prompt with its response.
    """
    if setting != "auto":
        return setting
    if model.device.type != "cuda":
        return CPU_BATCH
    memory = torch.cuda.get_device_properties(model.device).total_memory
    config = model.config.get_text_config(decoder=True)
    return fitting_rows(config, model.dtype.itemsize, tokens, memory, weight_bytes(model))


def weight_bytes(model: Any) -> int:
    """Count the bytes of the weights, and of the copies that autocast keeps of them."""
    # It keeps one in two bytes of every float32 weight that can be trained.
    return sum(
        p.numel() * (p.element_size() + 2 * (p.dtype == torch.float32 and p.requires_grad))
        for p in model.parameters()
    )


def fitting_rows(config: Any, element: int, tokens: int, memory: int, weights: int) -> int:
    """Largest power of two of rows that needs at most half of the memory that the weights leave.

    The other half is for the padding of shorter prompts, the buffers of kernels, and what the
    allocator cannot use again.

    Args:
        config: the text model's configuration.
        element: bytes of an element of the hidden states.
        tokens: number of tokens of the longest prompt with its response.
        memory, weights: bytes of the device, and of the weights on it.
    """
    rows = LARGEST_BATCH
    while rows > 1 and batch_bytes(config, element, rows, tokens) > (memory - weights) / 2:
        rows //= 2
    return rows


def batch_bytes(config: Any, element: int, rows: int, tokens: int) -> int:
    """Count the bytes that a batch of prompts holds at most while it is answered on a GPU.

    Args:
        config, element, tokens: see `fitting_rows`.
    """
    part = min(_part("cuda", rows), tokens)
    heads, hidden = config.num_attention_heads, config.hidden_size
    size = _most(config, "head_dim", "global_head_dim", "swa_head_dim") or hidden // heads
    queries, value_size = heads * size, _most(config, "v_head_dim") or size
    kv_heads = _most(
        config, "num_key_value_heads", "num_global_key_value_heads", "swa_num_key_value_heads"
    )
    cached = (kv_heads or heads) * (size + value_size)
    # One layer at a time is held once more: copied as it grows, or repeated for all query heads.
    repeated = heads * (size + value_size)
    if latent := _most(config, "kv_lora_rank"):
        # A layer's latent cache is expanded to keys and values, and the keys put together.
        cached = latent + config.qk_rope_head_dim
        size = config.qk_nope_head_dim + config.qk_rope_head_dim
        queries = heads * size
        repeated = queries + heads * (config.qk_nope_head_dim + value_size)

    layers = [x for x in DynamicCache(config=config).layers if isinstance(x, DynamicLayer)]
    windows = [getattr(layer, "sliding_window", None) for layer in layers]
    held = sum(min(w - 1 + part, tokens) if w else tokens + ROOM for w in windows)
    row = element * (cached * held + repeated * (tokens + ROOM)) + STATE_BYTES * tokens

    experts = _most(config, "num_experts_per_tok") or 1
    wide = _most(config, "intermediate_size", "n_inner") or 4 * hidden
    wide = max(wide, experts * (_most(config, "moe_intermediate_size") or wide))
    # Residual, normed and new states beside the widest of: a norm's two float32 copies; queries
    # and keys while they are rotated; gate, activated gate, up and their product.
    widest = max(8 * hidden, element * max(4 * queries + 2 * cached, 4 * wide))
    masks = tokens * (len(set(windows)) + 2 * element)  # in bool, converted, and aligned
    reading = rows * part * (element * (2 + experts) * hidden + widest + masks)
    return rows * row + max(reading, rows * DRAW_BYTES * config.vocab_size)


def _most(config: Any, *names: str) -> int:
    """The largest number under these names, of any layer; 0 if none is there."""
    found = [getattr(config, name, None) or 0 for name in names]
    return max(max(x) if isinstance(x, list | tuple) else x for x in found)


def _ended(request: Request, ids: list[int], start: int) -> Response | None:
    """Make the response if these tokens complete it, else None; none before `start` ends it."""
    for position, token in enumerate(ids[start : request.max_new_tokens], start):
        if token in request.stop_ids:
            return Response(request.row, ids[:position], token)
    if len(ids) >= request.max_new_tokens:
        return Response(request.row, ids[: request.max_new_tokens], None)
    return None
