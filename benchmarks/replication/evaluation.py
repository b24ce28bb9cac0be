"""Data, and accuracy on held-out problems by greedy decoding with the package's own engine."""

from collections.abc import Callable
from typing import Any

from task import ANSWER, BEGIN, END, answers, problems

from axolotl_tspin.config import GenerationConfig
from axolotl_tspin.generation.engines.engine import Request
from axolotl_tspin.generation.engines.transformers_engine import TransformersEngine
from axolotl_tspin.training.scoring import score_triplets
from axolotl_tspin.triplets import TripletTokens

HELD_OUT = 500
TEST, VALIDATION = 10_000, 10_001
MAX_NEW_TOKENS, MAX_NEW_TOKENS_RESTATED = 26, 29


def held_out(kind: int) -> list[tuple[str, str]]:
    """Make the problems of `TEST`, for results, or of `VALIDATION`, for choosing settings. No
    training data has any of them."""
    return problems(HELD_OUT, seed=kind)


def annotated(count: int, seed: int) -> list[tuple[str, str]]:
    """Make annotated problems that are not held out."""
    kept = frozenset(prompt for kind in (TEST, VALIDATION) for prompt, _ in held_out(kind))
    return problems(count, seed, exclude=kept)


def accuracy(
    model: Any,
    tokenizer: Any,
    unseen: list[tuple[str, str]],
    is_right: Callable[[str, str], bool] = answers,
) -> float:
    """Compute the share of the problems whose greedy solution is right."""
    model.eval()
    end = tokenizer.eos_token_id
    engine = TransformersEngine(
        model,
        pad_token_id=tokenizer.pad_token_id,
        sampling=GenerationConfig(temperature=0),
        batch_size=250,
    )
    requests = [
        Request(
            row,
            tokenizer(f"{BEGIN}{prompt}{ANSWER}", add_special_tokens=False)["input_ids"],
            MAX_NEW_TOKENS if is_right is answers else MAX_NEW_TOKENS_RESTATED,
            seed=0,
            stop_ids=(end,),
        )
        for row, (prompt, _) in enumerate(unseen)
    ]
    groups = (requests[i : i + 250] for i in range(0, len(requests), 250))
    right = 0
    for responses in engine.sample(groups):
        for response in responses:
            ended = response.finish_reason == "stop"
            text = "".join(tokenizer.convert_ids_to_tokens(response.ids))
            right += ended and is_right(text, unseen[response.row][1])
    engine.close()
    return right / len(unseen)


def annotated_logp(model: Any, tokenizer: Any, unseen: list[tuple[str, str]]) -> float:
    """Compute the mean of log π(y|x) over annotated solutions, in nats."""
    triplets = []
    for prompt, solution in unseen:
        x, y = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (f"{BEGIN}{prompt}{ANSWER}", f"{solution}{END}")
        )
        triplets.append(TripletTokens(x, y, y, y))
    logps = score_triplets(model, triplets, pad_token_id=tokenizer.pad_token_id, batch_size=128)
    return logps[:, 0].mean().item()
