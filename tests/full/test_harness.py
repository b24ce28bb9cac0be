"""The real evaluation harness."""

import json

import pytest
import yaml
from support.data import ROOT, write_jsonl
from support.runs import write_yaml

from axolotl_tspin.commands.loop import evaluate_missing
from axolotl_tspin.diagnostics.evaluation import (
    PAPER_METRICS,
    harness_scores,
)
from axolotl_tspin.diagnostics.figures import run_figures
from axolotl_tspin.resolve.yaml_file import inspect_run, read_yaml

GSM8K = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"

TASK = ROOT / "examples" / "tasks" / "gsm8k_local.yaml"

PAPER_YAML = ROOT / "examples" / "yaml" / "eval_paper.yml"


def test_the_papers_tasks_are_the_harness_own(tmp_path):
    from lm_eval.tasks import TaskManager

    cfg = yaml.safe_load(PAPER_YAML.read_text())
    asked = dict(task.split(":") for task in cfg["lm_eval_tasks"])
    assert set(asked) == set(PAPER_METRICS) and len(asked) == 10
    # Table 3 of the paper.
    shots = {"gsm8k": 5, "leaderboard_math_hard": 4, "mmlu": 5, "leaderboard_mmlu_pro": 5}
    shots |= {"hellaswag": 10, "winogrande": 5, "leaderboard_bbh": 3}
    assert {task: int(n) for task, n in asked.items()} == dict.fromkeys(asked, 0) | shots
    assert set(asked) <= set(TaskManager().all_tasks)


@pytest.mark.skipif(not GSM8K.exists(), reason=f"no GSM8K in {GSM8K}")
def test_a_local_task_is_scored_by_the_harness_for_every_policy(tmp_path, policy_dir):
    """The real harness, through `axolotl lm-eval`, over GSM8K's rows."""
    rows = [json.loads(line) for line in GSM8K.read_text().splitlines()[:6]]
    write_jsonl(tmp_path / "fewshot.jsonl", rows[:2])
    write_jsonl(tmp_path / "test.jsonl", rows[2:])
    path = write_yaml(
        tmp_path, policy_dir, rows=4, lm_eval_tasks=[f"{TASK}:1"], lm_eval_batch_size=4
    )
    config, run = inspect_run(read_yaml(path))
    assert evaluate_missing(read_yaml(path)) == 1
    [score] = harness_scores(run.path)
    assert (score.task, score.metric) == ("gsm8k", "exact_match,strict-match")
    assert (score.value, score.fewshot, score.examples) == (0.0, 1, 4), "random weights"
    assert evaluate_missing(read_yaml(path)) == 0, "once"
    assert run_figures(run, config) == [], "an evaluation begins no run"
