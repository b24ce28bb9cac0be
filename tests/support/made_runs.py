"""Run directories with figures that a test chooses, written by the project's own writers."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import yaml

from axolotl_tspin.diagnostics.figures import keep_figures
from axolotl_tspin.resolve.yaml_file import inspect_run, read_keys
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.logps import Scores, rows_to_score, write_scores
from axolotl_tspin.run.prompts import PROMPTS_SCHEMA
from axolotl_tspin.run.tables import TableWriter
from axolotl_tspin.run.triplets import TRIPLETS_SCHEMA
from axolotl_tspin.triplets import RESPONSES
from axolotl_tspin.verdicts.evidence import rows_to_measure

BLOCK = 5000


class Texts(NamedTuple):
    """What a row has: its annotated response, and what each policy samples (the initial one, the
    one after an iteration, …)."""

    annotated: str
    sampled: list[str]


def make_run(
    folder: Path,
    train: list[Texts],
    test: list[Texts] = (),
    *,
    trained: int,
    logps: list[float] = (),
    log: list[dict[str, Any]] = (),
    cut: float = 0.0,
    name: str = "run.yml",
    **t_spin,
) -> tuple[Path, RunDirectory]:
    """A run with this many trained iterations.

    Args:
        logps: log π(y|x) per token of the held-out rows (or of those trained on) under the initial
            policy, under the one after an iteration, …; nothing is measured without.
        log: the training log of every iteration.
        cut: share of the sampled responses that reach the limit.
    """
    iterations = t_spin.pop("iterations", max(trained, 1))
    path = folder / name
    cfg = {
        "base_model": "org/base",
        "rl": "t_spin",
        "plugins": ["axolotl_tspin.TSpinPlugin"],
        "t_spin": {"iterations": iterations, **t_spin},
        "datasets": [{"path": str(folder / "data.jsonl"), "type": "t_spin.chat_template"}],
        "output_dir": str(folder / path.stem),
        "learning_rate": 1e-4,
    }
    path.write_text(yaml.safe_dump(cfg))
    config, run = inspect_run(read_keys(path))
    splits = {"train": train} | ({"test": test} if test else {})
    for split, rows in splits.items():
        _write(run.prompts(split), PROMPTS_SCHEMA, rows, {"rows": len(rows)})
        files = min(len(rows[0].sampled), trained + 1)
        for t in range(files if split == "test" else min(files, iterations)):
            ends = ["length" if i < cut * len(rows) else "stop" for i in range(len(rows))]
            metadata = {
                "rows": len(rows),
                "sampled": len(rows),
                "tokens": sum(len(row.sampled[t].split()) for row in rows),
                "seconds": 1.5,
                "policy": f"policy {t}",
                "finish_reasons": {"length": ends.count("length"), "stop": ends.count("stop")},
            }
            triplets = run.iteration(t).triplets(split)
            _write(triplets, TRIPLETS_SCHEMA, rows, metadata, t, ends)
    run.begin({"datasets": []}, {"axolotl": "0"}, initial_policy="policy 0")
    for t in range(trained):
        iteration = run.iteration(t)
        iteration.model.mkdir(parents=True)
        iteration.training_config.write_text(yaml.safe_dump({"learning_rate": 1e-4}))
        record = {"policy": f"policy {t + 1}", "log_history": list(log)}
        iteration.mark_trained(record | {"method": config.method, "alpha": config.alpha})
        for split, rows in splits.items() if logps else ():
            measured = rows_to_measure(split, len(rows))
            for when, number in (("before", t), ("after", t + 1)):
                found = [[logps[number] * _tokens(rows[i].annotated)] * 3 for i in measured]
                scores = Scores(measured, np.array(found), f"policy {number}")
                write_scores(iteration.measured(when, split), scores, iteration.triplets(split))
        keep_figures(run, t, config)
    return path, run


def score_triplets(run: RunDirectory, number: int, logps: np.ndarray) -> None:
    """Store log-probabilities of an iteration's triplets under the policy that it trained.

    Args:
        logps: (rows, 3).
    """
    iteration = run.iteration(number)
    rows = rows_to_score(len(logps), "all")
    scores = Scores(rows, logps, iteration.training_record()["policy"])
    write_scores(iteration.scores, scores, iteration.triplets("train"))


def _tokens(text: str) -> int:
    return len(text.split())


def _write(
    path: Path,
    schema: pa.Schema,
    rows: list[Texts],
    metadata: dict[str, Any],
    number: int = 0,
    ends: list[str] = (),
) -> None:
    """A file with a token for each word: prompts, or an iteration's triplets."""
    texts = {
        "annotated": [row.annotated for row in rows],
        "synthetic": [row.sampled[number] for row in rows],
        "proto_synthetic": [row.sampled[0] for row in rows],
    }
    constant = {
        "prompt_hash": "0",
        "messages": "[]",
        "prompt": "<user>What?",
        "prompt_ids": [1, 2],
        "stop_ids": [0],
        "synthetic_finish_reason": None,
        "synthetic_iteration": number,
        "synthetic_policy": f"policy {number}",
        "proto_synthetic_iteration": 0,
        "proto_synthetic_policy": "policy 0",
    }
    columns = {name: [value] * len(rows) for name, value in constant.items()}
    columns |= {"row": list(range(len(rows))), "source_row": list(range(len(rows)))}
    columns["synthetic_finish_reason"] = list(ends) or ["stop"] * len(rows)
    for name in RESPONSES:
        columns[name] = texts[name]
        columns[f"{name}_ids"] = [[hash_of(w) for w in text.split()] for text in texts[name]]
        columns[f"{name}_tokens"] = [_tokens(text) for text in texts[name]]
    whole = {name: columns.get(name, ["stop"] * len(rows)) for name in schema.names}
    with TableWriter(path, schema) as writer:
        for first in range(0, len(rows), BLOCK):
            part = {name: values[first : first + BLOCK] for name, values in whole.items()}
            writer.write(pa.table(part, schema=schema))
        writer.close({"prompts_fingerprint": "f", "block_rows": BLOCK, **metadata})


def hash_of(word: str) -> int:
    return sum(map(ord, word))
