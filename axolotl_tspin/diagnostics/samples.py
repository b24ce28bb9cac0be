"""Prompts for the report, with what the initial and the last sampled policy answer to them."""

import difflib
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.logps import all_logps
from axolotl_tspin.run.tables import DamagedTable, open_groups
from axolotl_tspin.verdicts.evidence import rows_to_measure, triplet_count

OF_EACH_KIND, SEED = 2, 0
MOST_CHARACTERS = 6000
"""Of one text; the rest is counted, and stays in the triplets."""

SHORT = 600
"""Characters of a text that are shown before the rest is folded."""

COLUMNS = ["row", "prompt", "annotated", "annotated_ids", "synthetic", "synthetic_iteration"]


class Piece(NamedTuple):
    """A stretch of a text: `mark` is "del" (only in the initial response), "ins" (only in the final
    one), or "" (in both)."""

    mark: str
    text: str


class Text(NamedTuple):
    """A text of a sample: what is shown, what is folded, and how many characters were left out."""

    head: list[Piece]
    folded: list[Piece]
    left_out: int


class Sample(NamedTuple):
    """One prompt.

    Attributes:
        why: what it was chosen for, with its figure.
        row: its number in the triplets.
        initial, final: responses of the initial policy and of the last one that was sampled from.
        final_iteration: the iteration that the final response was sampled for; None if the initial
            policy's is the only one.
    """

    why: str
    row: int
    prompt: Text
    annotated: Text
    initial: Text
    final: Text | None
    final_iteration: int | None


class Samples(NamedTuple):
    """A run's samples; `held_out` is True if the prompts were never trained on."""

    held_out: bool
    samples: list[Sample]


def samples_of_run(run: RunDirectory, config: TSpinConfig, trained: int) -> Samples:
    """Choose prompts that were measured: at random, those whose annotated response became least
    likely, and those whose response changed most."""
    split = "test" if "test" in run.splits() else "train"
    there = [t for t in range(config.iterations + 1) if run.iteration(t).triplets(split).exists()]
    if not there or there[0] != 0:
        return Samples(split == "test", [])
    rows = rows_to_measure(split, triplet_count(run, 0, split))
    first = _read_rows(run.iteration(0).triplets(split), rows)
    last = _read_rows(run.iteration(there[-1]).triplets(split), rows) if there[-1] else None
    falls = _falls(run, split, trained, first)
    changes = None
    if last is not None:
        changes = np.array(
            [
                words_changed(a["synthetic"], b["synthetic"])
                for a, b in zip(first, last, strict=True)
            ]
        )
    return Samples(
        split == "test",
        [
            _sample(why, first[i], None if last is None else last[i])
            for i, why in chosen(len(rows), falls, changes)
        ],
    )


def chosen(
    count: int, falls: np.ndarray | None, changes: np.ndarray | None
) -> list[tuple[int, str]]:
    """Choose prompts, none of them twice, and say why.

    Args:
        falls: (count,) by how much log π(y|x) per token fell, in nats; NaN where it is not known.
        changes: (count,) words that differ between the initial and the final response.
    """
    by_chance = np.random.default_rng(SEED).permutation(count)[:OF_EACH_KIND]
    reasons = {int(i): ["chosen at random"] for i in by_chance}
    for values, reason in (
        (falls, "largest fall of log π(y) per token: {:.3f} nats"),
        (changes, "most words changed: {:.0f}"),
    ):
        if values is None:
            continue
        most = [int(i) for i in np.argsort(-values, kind="stable") if values[i] > 0]
        for i in most[:OF_EACH_KIND]:
            reasons.setdefault(i, []).append(reason.format(values[i]))
    return [(i, "; ".join(found)) for i, found in reasons.items()]


def words_changed(before: str, after: str) -> int:
    """Count the words that only one of two texts has, as often as it has them."""
    one, other = Counter(before.split()), Counter(after.split())
    return ((one - other) + (other - one)).total()


def differences(before: str, after: str) -> tuple[list[Piece], list[Piece]]:
    """Mark the words in which two texts differ; a word takes the space after it along."""
    one, other = (re.findall(r"^\s+|\S+\s*", text) for text in (before, after))
    words, others = ([word.strip() for word in text] for text in (one, other))
    left, right = [], []
    matcher = difflib.SequenceMatcher(None, words, others, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        equal = kind == "equal"
        left.append(Piece("" if equal else "del", "".join(one[a:b])))
        right.append(Piece("" if equal else "ins", "".join(other[c:d])))
    return [p for p in left if p.text], [p for p in right if p.text]


def shown(pieces: list[Piece], text: str) -> Text:
    """Fold what is long.

    Args:
        pieces: the first `MOST_CHARACTERS` of a text.
        text: the whole of it.
    """
    return Text(*_split(pieces, SHORT), max(len(text) - MOST_CHARACTERS, 0))


def _split(pieces: list[Piece], size: int) -> tuple[list[Piece], list[Piece]]:
    head, rest = [], []
    for mark, text in pieces:
        if text[:size]:
            head.append(Piece(mark, text[:size]))
        if text[size:]:
            rest.append(Piece(mark, text[size:]))
        size = max(size - len(text), 0)
    return head, rest


def _sample(why: str, first: dict[str, Any], last: dict[str, Any] | None) -> Sample:
    def whole(text: str) -> Text:
        return shown([Piece("", text[:MOST_CHARACTERS])], text)

    before, final = first["synthetic"], None
    initial = whole(before)
    if last is not None:
        after = last["synthetic"]
        marked = differences(before[:MOST_CHARACTERS], after[:MOST_CHARACTERS])
        initial, final = shown(marked[0], before), shown(marked[1], after)
    return Sample(
        why,
        first["row"],
        whole(first["prompt"]),
        whole(first["annotated"]),
        initial,
        final,
        None if last is None else last["synthetic_iteration"],
    )


def _falls(
    run: RunDirectory, split: str, trained: int, first: list[dict[str, Any]]
) -> np.ndarray | None:
    """(prompts,) by how much log π(y|x) per token fell in the whole run; None if that was not
    measured."""
    if not trained:
        return None
    try:
        before = all_logps(run.iteration(0).measured("before", split))
        after = all_logps(run.iteration(trained - 1).measured("after", split))
    except DamagedTable:
        return None
    tokens = np.array([max(len(row["annotated_ids"]), 1) for row in first])
    return (before[:, 0] - after[:, 0]) / tokens


def _read_rows(path: Path, rows: np.ndarray) -> list[dict[str, Any]]:
    """Read rows of a file of triplets, group by group."""
    found: list[dict[str, Any]] = []
    first = 0
    with open_groups(path) as file:
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            wanted = rows[(rows >= first) & (rows < first + size)] - first
            if len(wanted):
                found += file.read_row_group(group, columns=COLUMNS).take(wanted).to_pylist()
            first += size
    return found
