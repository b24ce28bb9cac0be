"""`axolotl t-spin run`: generate → train for every iteration that is left.

Each step is the command that a user would type, in a process of its own: its memory is then free
for the next step, and a crash does not affect the loop.
"""

import itertools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from axolotl_tspin.commands.forked import ForkedStep, load_what_steps_need, needs_no_launcher
from axolotl_tspin.commands.step_process import run_step
from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.diagnostics.evaluation import missing_evaluations, tasks_asked_for
from axolotl_tspin.diagnostics.model_card import write_model_card
from axolotl_tspin.diagnostics.report import write_report
from axolotl_tspin.errors import StepFailed, TSpinError
from axolotl_tspin.generation.preflight import check_before_run
from axolotl_tspin.logs import get_logger
from axolotl_tspin.resolve.generation_plan import final_samples_are_due
from axolotl_tspin.resolve.yaml_file import RawConfig, inspect_run, parse_t_spin, read_keys
from axolotl_tspin.run.directory import Due, Policy

LOG = get_logger(__name__)

AXOLOTL = ["-m", "axolotl.cli.main"]


def run(config_path: Path, train_arguments: Sequence[str] = (), log: Path | None = None) -> None:
    """Do what is left of a run. After an interruption, a second call continues it.

    Args:
        train_arguments: arguments of `axolotl train`, such as `--launcher torchrun --
            --nproc_per_node 8`; `generation_launcher` describes their effect on the sampling.
        log: the file for the steps' output; None to leave it as it is.

    Raises:
        StepFailed: a step failed.
        Interrupted: a signal came, and the step has ended.
        TSpinError: bad configuration, or a step succeeded but left its work undone.
    """
    before: Due | None = None
    raw = read_keys(config_path)
    check_before_run(raw)
    forks = needs_no_launcher(raw, parse_t_spin(raw), train_arguments)
    if forks:
        load_what_steps_need()
        train_arguments = ("--launcher", "python")
    while True:
        config, directory = inspect_run(raw)
        evaluate_missing(raw, log)
        due = directory.due(config.iterations, config.iteration)
        if due.step == "done" and final_samples_are_due(config, directory):
            due = Due(config.iterations, "generate")
        if due.step == "done":
            return
        if due == before:
            raise TSpinError(
                f"iteration {due.iteration} still has its step '{due.step}' to do, although the "
                "command succeeded; with `t_spin.generation.shard` another process has the rest"
            )
        before = due
        last = config.iterations - 1
        if due.iteration > last:
            LOG.info("T-SPIN: the final policy answers the held-out prompts")
        else:
            LOG.info("T-SPIN: iteration %s of 0 to %s: %s", due.iteration, last, due.step)
        if due.step == "generate":
            launcher = generation_launcher(raw, config, train_arguments)
            shown = () if log else ("--verbose",)
            _call(
                "t-spin",
                "generate",
                *shown,
                str(config_path),
                launcher=launcher,
                log=log,
                forks=forks,
            )
        else:
            _call("train", str(config_path), *train_arguments, log=log, forks=forks)
        write_report([config_path])


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


def evaluate_missing(raw: RawConfig, log: Path | None = None) -> int:
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
        _call("lm-eval", str(evaluation.config), log=log)
        evaluation.finish()
        if evaluation.iteration is not None:
            write_model_card(run, evaluation.iteration, config)
    return len(evaluations)


def _call(
    *arguments: str, launcher: Sequence[str] = (), log: Path | None = None, forks: bool = False
) -> None:
    shown = " ".join(["python", *launcher, *AXOLOTL] if launcher else ["axolotl"])
    shown = " ".join([shown, *arguments])
    started = time.monotonic()
    # Axolotl starts the harness by name, so its folder must be in PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = os.environ | {"PATH": path}
    if forks:
        status = run_step(arguments, environment, log, start=ForkedStep)
    else:
        command = [sys.executable, *launcher, *AXOLOTL, *arguments]
        status = run_step(command, environment, log)
    if status != 0:
        raise StepFailed(shown, status, log)
    LOG.info("T-SPIN: `%s` took %.0f s", shown, time.monotonic() - started)
