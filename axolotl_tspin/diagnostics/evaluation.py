"""Scores of lm-evaluation-harness, run through Axolotl's integration (`axolotl lm-eval`).

lm_eval.yml            for the initial policy, in the run directory
lm_eval_results/       as the harness writes them
lm_eval.json           the tasks of these results; its existence ends the evaluation
iteration_0/lm_eval.yml, lm_eval_results/, lm_eval.json     for the policy that it trained
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.run.directory import Policy, RunDirectory
from axolotl_tspin.run.files import write_atomically, write_json

PAPER_METRICS = {
    "gsm8k": "exact_match,strict-match",
    "leaderboard_math_hard": "exact_match,none",
    "leaderboard_musr": "acc_norm,none",
    "mmlu": "acc,none",
    "leaderboard_mmlu_pro": "acc,none",
    "leaderboard_gpqa": "acc_norm,none",
    "hellaswag": "acc_norm,none",
    "winogrande": "acc,none",
    "leaderboard_bbh": "acc_norm,none",
    "leaderboard_ifeval": "prompt_level_strict_acc,none",
}
"""The paper's ten tasks (table 3) and the metric shown for each."""

HARNESS_KEYS = (
    "lm_eval_tasks",
    "lm_eval_batch_size",
    "bf16",
    "bfloat16",
    "flash_attention",
    "attn_implementation",
    "apply_chat_template",
    "fewshot_as_multiturn",
    "wandb_project",
    "wandb_entity",
    "wandb_name",
)
"""Keys that `axolotl lm-eval` reads in a YAML, besides the model and the results' folder."""


class TaskScore(NamedTuple):
    """One task's score; `metric` is the harness's name of metric and filter."""

    task: str
    metric: str
    value: float
    stderr: float | None
    fewshot: int | None
    examples: int | None


class Evaluation(NamedTuple):
    """An evaluation to run: `axolotl lm-eval` on `config`, then `finish`. `iteration` is None for
    the initial policy."""

    iteration: int | None
    folder: Path
    policy: Policy
    tasks: list[str]

    @property
    def config(self) -> Path:
        return self.folder / "lm_eval.yml"

    def prepare(self, raw: Mapping[str, Any]) -> None:
        """Write the YAML for `axolotl lm-eval`.

        Args:
            raw: the run's YAML as the user wrote it.
        """
        import torch

        keys = {name: raw.get(name) for name in HARNESS_KEYS if raw.get(name) is not None}
        keys["lm_eval_model"] = self.policy.adapter_dir or self.policy.base_model
        keys["output_dir"] = str(self.folder)
        keys.setdefault("lm_eval_batch_size", 8)
        if not torch.cuda.is_available():
            # Axolotl asks for float16 unless it is bfloat16, but a CPU is far slower with float16.
            keys["bf16"] = True
        if raw.get("revision_of_model") and keys["lm_eval_model"] == raw.get("base_model"):
            keys["revision"] = raw["revision_of_model"]
        text = yaml.safe_dump(json.loads(json.dumps(keys)), sort_keys=False)
        write_atomically(self.config, lambda temporary: temporary.write_text(text))

    def finish(self) -> None:
        """Mark the evaluation done.

        Raises:
            TSpinError: the harness left no results.
        """
        if not harness_scores(self.folder):
            raise TSpinError(
                f"`axolotl lm-eval {self.config}` left no results in "
                f"{self.folder / 'lm_eval_results'}; its own log says more"
            )
        write_json(self.folder / "lm_eval.json", {"tasks": self.tasks})


def tasks_asked_for(raw: Mapping[str, Any]) -> list[str]:
    """List the YAML's `lm_eval_tasks`, or none if `lm_eval_post_train: false` turns automatic
    evaluation off."""
    tasks = raw.get("lm_eval_tasks") or []
    if raw.get("lm_eval_post_train") is False:
        return []
    return [tasks] if isinstance(tasks, str) else list(tasks)


def missing_evaluations(
    run: RunDirectory, iterations: int, initial: Policy, tasks: list[str], *, adapter: bool
) -> list[Evaluation]:
    """List the evaluations that lack these tasks, of the initial policy and of the kept ones."""
    if not tasks:
        return []
    evaluations = [Evaluation(None, run.path, initial, tasks)]
    for number in range(iterations):
        iteration = run.iteration(number)
        if run.step_of(number).step == "done" and iteration.model.exists():
            policy = run.policy_after(number, initial, adapter=adapter)
            evaluations.append(Evaluation(number, iteration.path, policy, tasks))
    return [e for e in evaluations if _evaluated_tasks(e.folder) != tasks]


def harness_scores(folder: Path) -> list[TaskScore]:
    """Read the scores in a folder's `lm_eval_results`, one per task. A group replaces its parts. If
    a task was run twice, the later score counts."""
    found: dict[str, TaskScore] = {}
    files = sorted(folder.glob("lm_eval_results/**/results_*.json"), key=lambda p: p.name)
    for path in files:
        record = json.loads(path.read_text())
        parts = {
            part
            for group, members in record.get("group_subtasks", {}).items()
            for part in members
            if _metric(group, record["results"].get(group, {})) is not None
        }
        for task, results in record["results"].items():
            metric = _metric(task, results)
            if task in parts or metric is None:
                continue
            name, _, filter_name = metric.partition(",")
            stderr = results.get(f"{name}_stderr,{filter_name}")
            examples = record.get("n-samples", {}).get(task, {}).get("effective")
            found[task] = TaskScore(
                task,
                metric,
                float(results[metric]),
                stderr if isinstance(stderr, int | float) else None,
                record.get("n-shot", {}).get(task),
                examples,
            )
    order = list(PAPER_METRICS)
    return sorted(
        found.values(), key=lambda s: (order.index(s.task) if s.task in order else 99, s.task)
    )


def _metric(task: str, results: Mapping[str, Any]) -> str | None:
    """Choose the metric of a task that is shown."""
    metrics = [
        name
        for name, value in results.items()
        if "," in name and "_stderr" not in name and isinstance(value, int | float)
    ]
    preferred = [PAPER_METRICS.get(task), "acc_norm,none", "acc,none"]
    return next((m for m in preferred if m in metrics), metrics[0] if metrics else None)


def _evaluated_tasks(folder: Path) -> list[str] | None:
    try:
        return json.loads((folder / "lm_eval.json").read_text())["tasks"]
    except (OSError, ValueError, KeyError):
        return None
