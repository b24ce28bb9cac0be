"""lm-evaluation-harness through Axolotl: what is run, and how its results are read."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from support.runs import pretend_trained

from axolotl_tspin.diagnostics.evaluation import (
    Evaluation,
    harness_scores,
    missing_evaluations,
    tasks_asked_for,
)
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.step import generate
from axolotl_tspin.resolve.steps import prepare_training
from axolotl_tspin.resolve.yaml_file import read_yaml
from axolotl_tspin.run.directory import Policy, RunDirectory


def results(folder: Path, name: str, **record) -> None:
    path = folder / "lm_eval_results" / name / "model" / f"results_{name}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))


def test_the_harness_results_are_read_with_the_papers_metrics(tmp_path):
    results(
        tmp_path,
        "2026-01-01T00-00-00",
        results={
            "gsm8k": {
                "alias": "gsm8k",
                "exact_match,flexible-extract": 0.5,
                "exact_match,strict-match": 0.25,
                "exact_match_stderr,strict-match": 0.1,
            },
            "hellaswag": {"acc,none": 0.3, "acc_norm,none": 0.4, "acc_norm_stderr,none": "N/A"},
            "leaderboard_bbh": {"acc_norm,none": 0.6, "alias": "leaderboard_bbh"},
            "leaderboard_bbh_snarks": {"acc_norm,none": 0.9},
            "leaderboard_instruction_following": {"alias": "no metric of its own"},
            "leaderboard_ifeval": {
                "inst_level_strict_acc,none": 0.8,
                "prompt_level_strict_acc,none": 0.7,
            },
        },
        group_subtasks={
            "leaderboard_bbh": ["leaderboard_bbh_snarks"],
            "leaderboard_instruction_following": ["leaderboard_ifeval"],
        },
        **{"n-shot": {"gsm8k": 5}, "n-samples": {"gsm8k": {"original": 9, "effective": 8}}},
    )
    first, *others = harness_scores(tmp_path)
    assert first == ("gsm8k", "exact_match,strict-match", 0.25, 0.1, 5, 8)
    assert [(s.task, s.value, s.stderr) for s in others] == [
        ("hellaswag", 0.4, None),
        ("leaderboard_bbh", 0.6, None),
        ("leaderboard_ifeval", 0.7, None),
    ]
    again = {"gsm8k": {"exact_match,strict-match": 0.75}}
    results(tmp_path, "2026-01-02T00-00-00", results=again)
    assert harness_scores(tmp_path)[0].value == 0.75, "the later one counts"


def test_what_lacks_its_evaluation_is_found(make_yaml, tmp_path):
    path = make_yaml(rows=4, lm_eval_tasks=["a:1", "b"])
    generate(path)
    run = RunDirectory(tmp_path / "out")
    pretend_trained(run, 0)
    raw = read_yaml(path)
    initial = Policy(raw["base_model"])

    def missing(tasks):
        found = missing_evaluations(run, 2, initial, tasks, adapter=False)
        return [e.iteration for e in found]

    assert tasks_asked_for(raw) == ["a:1", "b"]
    assert missing(["a:1", "b"]) == [None, 0] and missing([]) == []
    evaluation = Evaluation(0, run.iteration(0).path, Policy(str(run.iteration(0).model)), ["a"])
    evaluation.prepare(raw)
    written = yaml.safe_load(evaluation.config.read_text())
    assert written["lm_eval_model"] == str(run.iteration(0).model)
    assert written["output_dir"] == str(run.iteration(0).path)
    assert written["lm_eval_batch_size"] == 8
    assert written["bf16"] is not torch.cuda.is_available(), "a CPU gets bfloat16"
    with pytest.raises(TSpinError, match="left no results"):
        evaluation.finish()
    results(run.iteration(0).path, "2026-01-01T00-00-00", results={"a": {"acc,none": 0.5}})
    evaluation.finish()
    assert missing(["a"]) == [None] and missing(["a", "b"]) == [None, 0]
    raw["lm_eval_post_train"] = False
    assert tasks_asked_for(raw) == []


def test_training_itself_does_not_start_the_harness(make_yaml, tmp_path):
    """Axolotl would, on every rank and after a failure too."""
    path = make_yaml(rows=4, lm_eval_tasks=["gsm8k"])
    generate(path)
    raw = read_yaml(path)
    prepare_training(raw)
    assert raw["lm_eval_post_train"] is False and raw["lm_eval_tasks"] == ["gsm8k"]
