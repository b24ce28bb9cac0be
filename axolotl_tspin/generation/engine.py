"""Engines that sample responses. There is one so far: transformers' own generation."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
import transformers
from transformers import GenerationConfig as SamplingConfig

from axolotl_tspin.config import GenerationConfig


class Response(NamedTuple):
    """A sampled response: its tokens without the end-of-turn token, and why it ended."""

    ids: list[int]
    finish_reason: Literal["stop", "length"]


class Engine(Protocol):
    """What the generation step asks of an engine."""

    name: str
    version: str

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: Sequence[int],
        stop_token_ids: Sequence[int],
        seed: int,
    ) -> list[Response]:
        """One response for each prompt; the same for the same arguments.

        Args:
            prompts: token ids.
            max_new_tokens: for each prompt, the stop token included.
            stop_token_ids: any of them ends a response.
            seed: of the sampling.
        """
        ...


class TransformersEngine:
    """Batched generation with the policy in this process.

    Args:
        model: the policy, on its device.
        pad_token_id: fills the left of shorter prompts.
        sampling: temperature and top_p.
    """

    name = "transformers"
    version = transformers.__version__

    def __init__(self, model: Any, *, pad_token_id: int, sampling: GenerationConfig) -> None:
        self._model = model.eval()
        self._pad_token_id = pad_token_id
        self._sampling = sampling

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: Sequence[int],
        stop_token_ids: Sequence[int],
        seed: int,
    ) -> list[Response]:
        longest = max(map(len, prompts))
        input_ids = torch.full((len(prompts), longest), self._pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            attention_mask[row, longest - len(prompt) :] = 1
        # The checkpoint's own generation_config must not add to the YAML's settings: T-SPIN
        # samples from the policy, not from a truncated or penalised copy of it.
        self._model.generation_config = self._sampling_config(stop_token_ids)
        torch.manual_seed(seed)
        sequences = self._model.generate(
            input_ids=input_ids.to(self._model.device),
            attention_mask=attention_mask.to(self._model.device),
            max_new_tokens=max(max_new_tokens),
        )
        return [
            _until_stop(ids, limit, stop_token_ids)
            for ids, limit in zip(sequences[:, longest:].tolist(), max_new_tokens, strict=True)
        ]

    def _sampling_config(self, stop_token_ids: Sequence[int]) -> SamplingConfig:
        common = {
            "eos_token_id": list(stop_token_ids),
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


def _until_stop(ids: list[int], limit: int, stop_token_ids: Sequence[int]) -> Response:
    for position, token in enumerate(ids[:limit]):
        if token in stop_token_ids:
            return Response(ids[:position], "stop")
    return Response(ids[:limit], "length")
