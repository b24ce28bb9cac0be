"""`axolotl t-spin run`: generate → train for every iteration that is left.

Each step is the command that a user would type, in a separate process. Its memory is then free for
the next step, and a crash does not affect the loop.
"""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from axolotl.utils.logging import get_logger

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.diagnostics.evaluation import missing_evaluations, tasks_asked_for
from axolotl_tspin.diagnostics.model_card import write_model_card
from axolotl_tspin.errors import StepFailed, TSpinError
from axolotl_tspin.resolve.yaml_file import RawConfig, inspect_run, read_yaml
from axolotl_tspin.run.directory import Due, Policy

LOG = get_logger(__name__)

AXOLOTL = ["-m", "axolotl.cli.main"]


def run(config_path: Path, train_arguments: Sequence[str] = ()) -> None:
    """Do what is left of a run. After an interruption, a second call continues it.

    Args:
        train_arguments: arguments of `axolotl train`, such as `--launcher torchrun --
            --nproc_per_node 8`; `generation_launcher` describes their effect on the sampling.

    Raises:
        StepFailed: a step failed.
        TSpinError: bad configuration, or a step succeeded but left its work undone.
    """
    before: Due | None = None
    raw = read_yaml(config_path)
    while True:
        config, directory = inspect_run(raw)
        evaluate_missing(raw)
        due = directory.due(config.iterations, config.iteration)
        if due.step == "done":
            return
        if due == before:
            raise TSpinError(
                f"iteration {due.iteration} still has its step '{due.step}' to do, although the "
                "command succeeded; with `t_spin.generation.shard` another process has the rest"
            )
        before = due
        last = config.iterations - 1
        LOG.info("T-SPIN: iteration %s of 0 to %s: %s", due.iteration, last, due.step)
        if due.step == "generate":
            launcher = generation_launcher(raw, config, train_arguments)
            _call("t-spin", "generate", str(config_path), launcher=launcher)
        else:
            _call("train", str(config_path), *train_arguments)


def generation_launcher(
    raw: RawConfig, config: TSpinConfig, train_arguments: Sequence[str]
) -> list[str]:
    """Choose the launcher of the sampling processes: none for one process. If torchrun starts the
    training and transformers samples, torchrun also starts the sampling, so that every GPU samples
    its share of the prompts."""
    arguments = list(train_arguments)
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = " ".join(arguments[:split]).replace("=", " ").split()
    by_torchrun = ("--launcher", "torchrun") in itertools.pairwise(options)
    one_process = raw.get("use_ray") or config.generation.shard
    if config.generation.backend != "transformers" or not by_torchrun or one_process:
        return []
    return ["-m", "torch.distributed.run", *arguments[split + 1 :]]


def evaluate_missing(raw: RawConfig) -> int:
    """Run the YAML's `lm_eval_tasks` on the policies that lack them; return their number.

    Raises:
        StepFailed: `axolotl lm-eval` failed.
    """
    config, run = inspect_run(raw)
    initial = Policy(raw["base_model"], raw.get("lora_model_dir"))
    evaluations = missing_evaluations(
        run,
        config.iterations,
        initial,
        tasks_asked_for(raw),
        adapter=bool(raw.get("adapter")),
    )
    for evaluation in evaluations:
        evaluation.prepare(raw)
        _call("lm-eval", str(evaluation.config))
        evaluation.finish()
        if evaluation.iteration is not None:
            write_model_card(run, evaluation.iteration, config)
    return len(evaluations)


def _call(*arguments: str, launcher: Sequence[str] = ()) -> None:
    shown = " ".join(["python", *launcher, *AXOLOTL] if launcher else ["axolotl"])
    shown = " ".join([shown, *arguments])
    started = time.monotonic()
    # Axolotl starts the harness by name, so its folder must be in PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [sys.executable, *launcher, *AXOLOTL, *arguments]
    status = subprocess.run(command, env=os.environ | {"PATH": path}).returncode
    if status != 0:
        raise StepFailed(shown, status)
    LOG.info("T-SPIN: `%s` took %.0f s", shown, time.monotonic() - started)
