"""transformers' own batched generation, with the policy in this process."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
import transformers
from transformers import DynamicCache
from transformers import GenerationConfig as SamplingConfig

from axolotl_tspin.config import GenerationConfig
from axolotl_tspin.generation.decoding import give_room, use_decoding_attention
from axolotl_tspin.generation.engine import Request, Response

SEGMENT = 24
"""Tokens between two looks at which rows of a batch have ended."""

LARGEST_BATCH, CPU_BATCH = 256, 64


class TransformersEngine:
    """Batches of prompts, padded on the left, that shrink as their rows end.

    A batch is generated in segments; between two, the rows that have ended leave it and the cache.

    Args:
        model: the policy, on its device.
        pad_token_id: fills the left of shorter prompts.
        sampling: temperature and top_p.
        batch_size: prompts in a batch.
    """

    name = f"transformers {transformers.__version__}"

    def __init__(
        self, model: Any, *, pad_token_id: int, sampling: GenerationConfig, batch_size: int
    ) -> None:
        self.group_size = batch_size
        self._model = model.eval()
        use_decoding_attention(model)
        self._pad_token_id = pad_token_id
        self._sampling = sampling

    def sample(self, groups: Iterable[list[Request]]) -> Iterator[list[Response]]:
        for group in groups:
            yield self._answer(group)

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
        # The checkpoint's own generation_config must not add to the YAML's settings: T-SPIN
        # samples from the policy, not from a truncated or penalised copy of it.
        stop_ids = {token for request in group for token in request.stop_ids}
        self._model.generation_config = self._sampling_config(sorted(stop_ids))
        torch.manual_seed(sum(request.seed for request in group))

        alive, cache = list(range(len(group))), None
        answered: dict[int, Response] = {}
        while alive:
            made = sequences.shape[1] - longest
            left = max(group[i].max_new_tokens for i in alive) - made
            # Without a cache that rows can leave, there is no point in stopping to look.
            shrinks = made == 0 or isinstance(cache, DynamicCache)
            output = self._model.generate(
                input_ids=sequences,
                attention_mask=mask,
                past_key_values=cache,
                max_new_tokens=min(SEGMENT, left) if shrinks else left,
                return_dict_in_generate=True,
            )
            sequences, cache = output.sequences, output.past_key_values
            if isinstance(cache, DynamicCache):
                give_room(cache)
            staying = []
            for position, i in enumerate(alive):
                response = _ended(group[i], sequences[position, longest:].tolist(), stop_ids)
                if response is None:
                    staying.append(position)
                else:
                    answered[i] = response
            if len(staying) < len(alive) and staying:
                alive = [alive[position] for position in staying]
                index = torch.tensor(staying, device=device)
                sequences, mask = sequences[index], mask[index]
                if isinstance(cache, DynamicCache):
                    cache.batch_select_indices(index)
            elif not staying:
                break
            mask = torch.nn.functional.pad(mask, (0, sequences.shape[1] - mask.shape[1]), value=1)
        return [answered[i] for i in range(len(group))]

    def _sampling_config(self, stop_ids: list[int]) -> SamplingConfig:
        common = {
            "eos_token_id": stop_ids,
            "pad_token_id": self._pad_token_id,
            "use_cache": True,
        }
        if self._sampling.temperature == 0:
            return SamplingConfig(do_sample=False, **common)
        return SamplingConfig(
            do_sample=True,
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            top_k=0,
            **common,
        )


def batch_size_for(model: Any, setting: int | Literal["auto"], tokens: int) -> int:
    """Prompts in a batch: the setting, or what half of the free device memory can cache.

    Depends on the device's whole memory rather than on what is free in this moment, so that a
    resumed run makes the same batches.

    Args:
        tokens: of the longest prompt and response.
    """
    if setting != "auto":
        return setting
    if model.device.type != "cuda":
        return CPU_BATCH
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cached = 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize * tokens
    # Logits of a step, as the sampling holds them: a few float32 copies.
    cached += 4 * 4 * config.vocab_size
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    memory = torch.cuda.get_device_properties(model.device).total_memory - weights
    fitting = int(0.5 * memory / cached)
    return min(max(1 << max(fitting.bit_length() - 1, 0), 1), LARGEST_BATCH)


def _ended(request: Request, ids: list[int], stop_ids: set[int]) -> Response | None:
    """The response, if these tokens are all of it."""
    for position, token in enumerate(ids[: request.max_new_tokens]):
        if token in stop_ids:
            return Response(request.row, ids[:position], "stop")
    if len(ids) >= request.max_new_tokens:
        return Response(request.row, ids[: request.max_new_tokens], "length")
    return None
