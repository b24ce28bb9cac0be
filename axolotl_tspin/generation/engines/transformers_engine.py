"""Engine with transformers' batched generation, with the policy in this process."""

from collections.abc import Iterable, Iterator
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

from axolotl_tspin.config import GenerationConfig
from axolotl_tspin.generation.engines.decoding import (
    ROOM,
    RowSampler,
    RowStops,
    give_room,
    use_decoding_attention,
)
from axolotl_tspin.generation.engines.engine import Request, Response
from axolotl_tspin.training.policies import autocast, base_of

SEGMENT = 24
"""Tokens generated between two checks for rows that have ended."""

LARGEST_BATCH, CPU_BATCH = 256, 64

CPU_PREFILL = 2048
"""Tokens of prompts that a CPU reads at a time. The memory of larger tensors is returned to the
system every time."""


class TransformersEngine:
    """Samples batches of prompts, padded on the left, that shrink as their rows end.

    A batch is generated in segments. Between two segments, the rows that have ended are removed
    from it and from the cache.

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
        processors = LogitsProcessorList()
        sampler = None
        if self._sampling.temperature > 0:
            limit = max(request.max_new_tokens for request in group)
            sampler = RowSampler([request.seed for request in group], longest, limit)
            if self._sampling.temperature != 1:
                processors.append(TemperatureLogitsWarper(self._sampling.temperature))
            if self._sampling.top_p < 1:
                processors.append(TopPLogitsWarper(self._sampling.top_p))
            processors.append(sampler)

        alive, cache = list(range(len(group))), self._empty_cache(longest)
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
            if isinstance(cache, DynamicCache):
                give_room(cache)
            staying = []
            for position, i in enumerate(alive):
                response = _ended(group[i], sequences[position, longest:].tolist())
                if response is None:
                    staying.append(position)
                else:
                    answered[i] = response
            if len(staying) < len(alive) and staying:
                alive = [alive[position] for position in staying]
                index = torch.tensor(staying, device=device)
                sequences, mask = sequences[index], mask[index]
                stops.keep(index)
                if sampler:
                    sampler.keep(staying)
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
        chunk = max(CPU_PREFILL // rows, 16)
        # Not every model with a state along the row can resume in the middle of a prompt.
        stateful = getattr(base_of(self._model), "_is_stateful", False)
        return None if self._model.device.type != "cpu" or stateful or chunk >= tokens else chunk


def batch_size_for(model: Any, setting: int | Literal["auto"], tokens: int) -> int:
    """Number of prompts in a batch: the setting, or as many as half of the device's memory that
    the weights leave can cache.

    It depends on the device's whole memory, not on the memory free at the moment, so a resumed run
    makes the same batches.

    Args:
        tokens: number of tokens of the longest prompt with its response.
    """
    if setting != "auto":
        return setting
    if model.device.type != "cuda":
        return CPU_BATCH
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cached = 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize * tokens
    # Sampling holds a few float32 copies of a step's logits.
    cached += 4 * 4 * config.vocab_size
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    memory = torch.cuda.get_device_properties(model.device).total_memory - weights
    fitting = int(0.5 * memory / cached)
    return min(max(1 << max(fitting.bit_length() - 1, 0), 1), LARGEST_BATCH)


def _ended(request: Request, ids: list[int]) -> Response | None:
    """Make the response if these tokens complete it, else None."""
    for position, token in enumerate(ids[: request.max_new_tokens]):
        if token in request.stop_ids:
            return Response(request.row, ids[:position], "stop")
    if len(ids) >= request.max_new_tokens:
        return Response(request.row, ids[: request.max_new_tokens], "length")
    return None
