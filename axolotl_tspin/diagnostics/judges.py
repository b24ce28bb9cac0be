"""Independent judges of responses, for `axolotl t-spin reward-check`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.triplets import RESPONSES
from axolotl_tspin.verdicts.answers import is_right

BATCH = 8
LONGEST = 4096


class JudgedTriplet(NamedTuple):
    """The parts of a triplet that a judge sees; `messages` is the prompt as the data set had it."""

    row: int
    prompt: str
    messages: list[dict[str, Any]] | None
    annotated: str
    synthetic: str
    proto_synthetic: str


class Judge(Protocol):
    """Scores responses; its `name` is shown to the user."""

    name: str

    def __call__(self, triplets: Sequence[JudgedTriplet]) -> np.ndarray:
        """(n, 3) scores, higher is better, in the order of `RESPONSES`; NaN without a judgement."""
        ...


def judge_of(reward_model: str | None, answer: str | None, scores: Path | None) -> Judge:
    """Make the requested judge.

    Raises:
        TSpinError: none or several judges are requested, or it cannot be made.
    """
    if sum(choice is not None for choice in (reward_model, answer, scores)) != 1:
        raise TSpinError("name one judge: --reward-model, --answer or --scores")
    if reward_model is not None:
        return RewardModel(reward_model)
    return ScoreColumns(scores) if scores is not None else Answer(answer or "")


class RewardModel:
    """A sequence classification model with one output, or two of which the last means good.

    Prompt and response go through its tokenizer's chat template if it has one.
    """

    def __init__(self, model: str) -> None:
        self.name = f"reward model {model}"
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = AutoModelForSequenceClassification.from_pretrained(model).to(self._device)
        self._model.eval()
        labels = self._model.config.num_labels
        if labels > 2:
            raise TSpinError(
                f"{model} has {labels} labels; a reward model has one output, or two of which the "
                "last means good"
            )
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model.config.pad_token_id = self._tokenizer.pad_token_id

    def __call__(self, triplets: Sequence[JudgedTriplet]) -> np.ndarray:
        texts = [self._text(t, getattr(t, name)) for t in triplets for name in RESPONSES]
        # Score texts of similar length together, and equal texts (y′ = y0) once.
        distinct = sorted(set(texts), key=len)
        scores: dict[str, float] = {}
        for start in range(0, len(distinct), BATCH):
            part = distinct[start : start + BATCH]
            scores.update(zip(part, self._score(part), strict=True))
        return np.array([scores[text] for text in texts]).reshape(-1, len(RESPONSES))

    def _text(self, triplet: JudgedTriplet, response: str) -> str:
        if self._tokenizer.chat_template and triplet.messages:
            answer = {"role": "assistant", "content": response}
            messages = [*triplet.messages, answer]
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False))
        return triplet.prompt + response

    @torch.no_grad()
    def _score(self, texts: list[str]) -> list[float]:
        inputs = self._tokenizer(
            texts,
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=LONGEST,
            add_special_tokens=not self._tokenizer.chat_template,
        )
        inputs.pop("token_type_ids", None)
        logits = self._model(**inputs.to(self._device)).logits.float()
        good = logits[:, -1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0]
        return good.tolist()


class Answer:
    """Scores 1 if a response's answer equals the annotated one's, else 0; NaN if that has none.

    Args:
        pattern: the regular expression of an answer (see `answer_of`).
    """

    def __init__(self, pattern: str) -> None:
        self.name = f"answer {pattern}"
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise TSpinError(
                f"--answer {pattern!r} is not a regular expression ({error})"
            ) from error

    def __call__(self, triplets: Sequence[JudgedTriplet]) -> np.ndarray:
        scores = np.full((len(triplets), len(RESPONSES)), np.nan)
        for i, triplet in enumerate(triplets):
            for j, name in enumerate(RESPONSES):
                right = is_right(self._pattern, triplet.annotated, getattr(triplet, name))
                scores[i, j] = np.nan if right is None else right
        if np.isnan(scores).all():
            raise TSpinError(
                f"--answer {self._pattern.pattern!r} matches none of the annotated responses, such "
                f"as {triplets[0].annotated!r}"
            )
        return scores


class ScoreColumns:
    """Scores in a file: `row` (a triplet's row number) and any of the columns `annotated`,
    `synthetic`, `proto_synthetic`."""

    def __init__(self, path: Path) -> None:
        self.name = f"scores of {path.name}"
        self._path = path
        kinds = {".jsonl": "json", ".csv": "csv"}
        if path.suffix == ".parquet":
            table = pq.read_table(path)
        elif path.suffix in kinds:
            data = load_dataset(
                kinds[path.suffix], data_files=str(path), split="train", keep_in_memory=True
            )
            table = data.data.table
        else:
            raise TSpinError(f"--scores {path}: expected *.parquet, *.jsonl or *.csv")
        judged = [name for name in RESPONSES if name in table.column_names]
        if "row" not in table.column_names or not judged:
            raise TSpinError(
                f"--scores {path}: expected the column `row` and some of {', '.join(RESPONSES)}; "
                f"it has {', '.join(table.column_names)}"
            )
        try:
            columns = {name: table[name].cast(pa.float64()).to_numpy() for name in judged}
        except pa.ArrowInvalid as error:
            raise TSpinError(f"--scores {path}: scores must be numbers ({error})") from error
        missing = np.full(table.num_rows, np.nan)
        stacked = np.stack([columns.get(name, missing) for name in RESPONSES], axis=1)
        self._scores = dict(zip(table["row"].to_pylist(), stacked, strict=True))

    def __call__(self, triplets: Sequence[JudgedTriplet]) -> np.ndarray:
        nothing = np.full(len(RESPONSES), np.nan)
        scores = np.array([self._scores.get(t.row, nothing) for t in triplets])
        if np.isnan(scores).all():
            raise TSpinError(f"--scores {self._path} has no score for any of the rows checked")
        return scores
