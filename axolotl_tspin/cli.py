"""`axolotl t-spin …`: the commands between two calls of `axolotl train`.

Imports stay inside the commands: `axolotl --help` loads this module.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from axolotl_tspin.errors import TSpinError

CONFIG = click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
AS_JSON = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="For programs: `python -m axolotl_tspin …` prints it alone, `axolotl` a logo before it.",
)


@click.group(name="t-spin")
def t_spin() -> None:
    """T-SPIN: triplet-based self-play fine-tuning."""


@t_spin.command()
@CONFIG
def generate(config: Path) -> None:
    """Sample the responses that the due iteration of CONFIG's run needs.

    CONFIG is the YAML that `axolotl train` takes. A stopped call is continued by the next one.
    """
    from axolotl_tspin.generation.step import generate as generate_step

    try:
        outcome = generate_step(config)
    except TSpinError as error:
        raise click.ClickException(str(error)) from error
    if outcome.due == "done":
        click.echo(f"{_what_is_trained(config)}.")
    elif outcome.due == "generate":
        click.echo(
            f"Iteration {outcome.iteration}: {outcome.generated} responses sampled; the rest is "
            "other processes'. The last of them writes the triplets."
        )
    else:
        triplets = outcome.run.iteration(outcome.iteration).triplets("train")
        click.echo(
            f"Iteration {outcome.iteration}: {outcome.generated} responses sampled; its triplets "
            f"are in {triplets}. Next: axolotl train {config}"
        )


@t_spin.command(context_settings={"allow_interspersed_args": False})
@CONFIG
@click.argument("train_arguments", nargs=-1, type=click.UNPROCESSED)
def run(config: Path, train_arguments: tuple[str, ...]) -> None:
    """Generate and train, iteration by iteration, until CONFIG's run is done.

    What follows CONFIG goes to `axolotl train`, and what follows `--` to its launcher:

        axolotl t-spin run run.yml --launcher torchrun -- --nproc_per_node 8

    With torchrun, transformers samples in as many processes too (vLLM has its own key for that).

    Stopped at any point, a second call goes on.
    """
    from axolotl_tspin.loop import StepFailed
    from axolotl_tspin.loop import run as run_loop

    try:
        run_loop(config, train_arguments)
    except TSpinError as error:
        raise click.ClickException(str(error)) from error
    except StepFailed as error:
        _exit_as(error)
    click.echo(f"{_what_is_trained(config)}; see `axolotl t-spin status {config}`.")


@t_spin.command()
@CONFIG
@AS_JSON
def status(config: Path, as_json: bool) -> None:
    """Show how far CONFIG's run is."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from axolotl_tspin.resolve import inspect_run, read_yaml
    from axolotl_tspin.status import run_status

    try:
        with _libraries_print_to_stderr(as_json):
            settings, directory = inspect_run(read_yaml(config))
            rows = run_status(directory, settings)
    except TSpinError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps([row._asdict() for row in rows], indent=2))
        return
    table = Table(
        title=f"{directory.path}: {settings.iterations} iterations",
        caption="sampled: rows with a response of this iteration, and their tokens; steps: of the "
        "optimizer; loss and the advantages u and v (nats) as logged last; gap: log π(y) − log "
        "π(y′) under the trained policy; kept: whether that policy is still in iteration_t/model",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("t")
    table.add_column("due")
    tasks = list(dict.fromkeys(task for row in rows for task in row.scores))
    for name in ("sampled", "tokens", "time", "steps", "loss", "u", "v", "gap", "time", *tasks):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("kept", no_wrap=True)
    for row in rows:
        figures = (row.loss, row.current_advantage, row.historical_advantage, row.gap)
        table.add_row(
            str(row.iteration),
            row.step,
            f"{row.sampled}/{row.rows}",
            str(row.tokens),
            _seconds(row.generation_seconds),
            "/".join(map(str, row.training)) if row.training else "",
            *("" if figure is None else f"{figure:.3g}" for figure in figures),
            _seconds(row.training_seconds),
            *(f"{row.scores[task]:.3f}" if task in row.scores else "" for task in tasks),
            "yes" if row.model else "no" if row.policy else "",
        )
    console = Console()
    console.print(table)
    for row in rows:
        for warning in row.warnings:
            console.print(f"[bold]Warning[/bold] (iteration {row.iteration}): ", end="")
            console.print(warning, markup=False, highlight=False)


@t_spin.command()
@CONFIG
@AS_JSON
@click.option(
    "--ranks",
    type=click.IntRange(min=1),
    help="Processes that train in data parallel. Default: as many as there are GPUs here, or 1.",
)
def plan(config: Path, as_json: bool, ranks: int | None) -> None:
    """Show what `run` would do for CONFIG and about what it would cost, without doing it."""
    import torch
    from rich.console import Console

    from axolotl_tspin.planning import plan_run

    try:
        with _libraries_print_to_stderr(as_json):
            planned = plan_run(config, ranks or torch.cuda.device_count() or 1)
    except TSpinError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(_as_dict(planned), indent=2))
        return
    console = Console()
    console.print(_work_table(config, planned))
    console.print(_memory_table(planned.memory))


def _as_dict(value: Any) -> Any:
    """NamedTuples as dictionaries, all the way down."""
    if hasattr(value, "_asdict"):
        return {key: _as_dict(item) for key, item in value._asdict().items()}
    if isinstance(value, (list, tuple)):
        return [_as_dict(item) for item in value]
    return sorted(value) if isinstance(value, frozenset) else value


def _work_table(config: Path, planned: Any) -> Any:
    from rich import box
    from rich.table import Table

    lengths = planned.lengths
    passes = planned.iterations[0].passes if planned.iterations else 0
    table = Table(
        title=f"What is left of {config}",
        caption=f"{_rows(lengths)}; mean tokens: prompt {lengths.prompt:.0f}, annotated "
        f"{lengths.annotated:.0f}, sampled {lengths.response:.0f} "
        f"({'measured' if lengths.measured else 'at most: max_new_tokens'}). trained: tokens of "
        "one pass over the triplets, the prompt in each of three rows; updates: of "
        f"`num_epochs: {passes:g}` with {_ranks(planned.memory.setting.ranks)}; time: of one "
        "sampling process, and of the training, as the trained iterations took; disk: without "
        "checkpoints",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
    )
    for name in ("t", "steps"):
        table.add_column(name, no_wrap=True)
    for name in ("responses", "tokens", "time", "trained", "updates", "time", "disk"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in planned.iterations:
        table.add_row(
            str(row.iteration),
            " → ".join(row.steps),
            _amount(row.responses),
            _amount(row.sampled_tokens),
            _seconds(row.sampling_seconds),
            _amount(row.trained_tokens),
            _amount(row.optimizer_steps),
            _seconds(row.training_seconds),
            f"{row.disk / 1e9:.2f} GB",
        )
    return table


def _memory_table(memory: Any) -> Any:
    from rich import box
    from rich.table import Table

    shape, setting, batch = memory.shape, memory.setting, memory.batch
    parts = memory.estimate._asdict()
    table = Table(
        title=f"Memory of one rank in training: {setting.name}, {_ranks(setting.ranks)}",
        caption=f"{_amount(shape.parameters)} parameters, {_amount(shape.trained)} trained; "
        f"largest micro-batch: {_amount(batch.tokens)} tokens ({memory.choice.layout}), responses "
        "at their limit. buffers: of communication, and weights gathered at one time. In the "
        "peak, gradients can take the place of activations. CUDA's own memory and fragmentation "
        "come on top",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
    )
    for name in parts:
        table.add_column("peak" if name == "total" else name, justify="right", no_wrap=True)
    table.add_row(*map(_memory_size, parts.values()))
    return table


def _rows(lengths: Any) -> str:
    test = f" and {lengths.test_rows} for evaluation" if lengths.test_rows else ""
    return f"{lengths.rows} rows{test}"


def _ranks(number: int) -> str:
    return "1 rank" if number == 1 else f"{number} ranks"


@t_spin.command()
@CONFIG
@click.argument("target")
@click.option("--iteration", type=click.IntRange(min=0), help="Default: the last complete one.")
@click.option(
    "--format",
    "style",
    type=click.Choice(["triplets", "trl", "spin"]),
    default="triplets",
    show_default=True,
)
def export(config: Path, target: str, iteration: int | None, style: Any) -> None:
    """Write an iteration's triplets to TARGET: *.parquet, *.jsonl or hub:<user>/<data set>.

    `trl` is TRL's preference format (chosen = annotated, rejected = synthetic), for data that has
    messages in all rows or in none; `spin` is SPIN's (real, generated).
    """
    from axolotl_tspin.exporting import export as export_triplets
    from axolotl_tspin.resolve import inspect_run, read_yaml

    try:
        settings, directory = inspect_run(read_yaml(config))
        complete = [
            t
            for t in range(settings.iterations)
            if directory.iteration(t).triplets("train").exists()
        ]
        if iteration is None and complete:
            iteration = complete[-1]
        if iteration not in complete:
            raise TSpinError(f"{directory.path} has no triplets of iteration {iteration or 0} yet")
        rows = export_triplets(directory.iteration(iteration).triplets("train"), target, style)
    except TSpinError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{rows} rows of iteration {iteration} are in {target}.")


@t_spin.command(name="import")
@CONFIG
def import_(config: Path) -> None:
    """Begin CONFIG's run with the responses that its data sets already have.

    Such as SPIN's public ones: their `generated` responses become iteration 0's.
    """
    from axolotl_tspin.generation.importing import import_run

    try:
        directory = import_run(config)
    except TSpinError as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        f"The run in {directory.path} has its prompts and iteration 0's triplets. Nothing proves "
        "which policy sampled them: `axolotl train` takes them with `t_spin.allow_foreign: true`."
    )


@t_spin.command()
@CONFIG
@click.option("--rows", type=click.IntRange(min=1), help="Only the first triplets of each.")
def compare(config: Path, rows: int | None) -> None:
    """Show what each trained iteration of CONFIG's run did to its triplets.

    Log-probabilities (sums over a response, in nats) and advantages, the means over an
    iteration's triplets, under the policy that it started from and under the one it trained.
    """
    from rich.console import Console
    from rich.table import Table

    from axolotl_tspin.comparison import compare as compare_policies

    try:
        comparisons = compare_policies(config, rows)
    except TSpinError as error:
        raise click.ClickException(str(error)) from error
    table = Table(
        "iteration",
        "policy",
        title=f"Means over the first {comparisons[0].rows} triplets of each iteration",
        caption="y annotated, y′ synthetic, y0 proto-synthetic; u = log π(y) − log π(y′), "
        "v = log π(y′) − log π(y0), in nats",
    )
    for column in ("log π(y)", "log π(y′)", "log π(y0)", "u", "v"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in comparisons:
        figures = [f"{figure:.2f}" for figure in (*row.logps, row.u, row.v)]
        table.add_row(str(row.iteration), row.policy, *figures, end_section=row.policy == "after")
    Console().print(table)


@t_spin.command()
@click.argument(
    "configs",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The page; its pictures also go into a folder beside it.",
)
@click.option(
    "--score", is_flag=True, help="First score trained policies that were not (loads them)."
)
def report(configs: tuple[Path, ...], out: Path, score: bool) -> None:
    """Write a page about CONFIGS' runs, side by side: curves, tables, samples, scores, warnings."""
    from axolotl_tspin.diagnostics.report import write_report

    try:
        if score:
            from axolotl_tspin.diagnostics.rescoring import score_missing

            for config in configs:
                score_missing(config)
        written = write_report(configs, out)
    except TSpinError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}, and {len(written) - 1} pictures in {written[-1].parent}")


@t_spin.command(name="lm-eval")
@CONFIG
def lm_eval(config: Path) -> None:
    """Run CONFIG's `lm_eval_tasks` on the policies of its run that lack them.

    `run` does so after each iteration by itself, unless `lm_eval_post_train: false`.
    """
    from axolotl_tspin.loop import StepFailed, evaluate_missing
    from axolotl_tspin.resolve import read_yaml

    try:
        raw = read_yaml(config)
        raw["lm_eval_post_train"] = True
        done = evaluate_missing(raw)
    except TSpinError as error:
        raise click.ClickException(str(error)) from error
    except StepFailed as error:
        _exit_as(error)
    click.echo(f"{done} policies evaluated; see `axolotl t-spin status {config}`.")


@t_spin.command(name="reward-check")
@CONFIG
@click.option("--iteration", type=click.IntRange(min=0), help="Default: the last trained one.")
@click.option("--reward-model", metavar="MODEL", help="A sequence classification model.")
@click.option(
    "--answer",
    metavar="REGEX",
    help="Judge by a checkable answer: its first group (or all of it), last match, as in y.",
)
@click.option(
    "--scores",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="*.parquet, *.jsonl or *.csv with `row` and a column for each judged response.",
)
@click.option("--rows", type=click.IntRange(min=3), help="Only the first scored triplets.")
@AS_JSON
def reward_check(
    config: Path,
    iteration: int | None,
    reward_model: str | None,
    answer: str | None,
    scores: Path | None,
    rows: int | None,
    as_json: bool,
) -> None:
    """Correlate the training reward of CONFIG's run with an independent judge.

    The judge is one of --reward-model, --answer (`'#### (-?[0-9.,]+)'` for GSM8K) and --scores.
    """
    from rich.console import Console
    from rich.table import Table

    from axolotl_tspin.diagnostics.judges import judge_of
    from axolotl_tspin.diagnostics.reward_check import check_rewards

    try:
        with _libraries_print_to_stderr(as_json):
            judge = judge_of(reward_model, answer, scores)
            checked = check_rewards(config, judge, iteration=iteration, rows=rows)
    except TSpinError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(
            json.dumps(
                checked._asdict() | {"correlations": [c._asdict() for c in checked.correlations]},
                indent=2,
            )
        )
        return
    table = Table(
        title=f"Training reward and judge ({checked.judge}): {checked.rows} triplets of iteration "
        f"{checked.iteration}",
        caption="Spearman's ρ and Kendall's τ, 95% intervals by bootstrap over prompts. all "
        "responses, y′ and y0: a response's reward against the judge's score, over all prompts "
        "together; y − y′, y′ − y0: the two differences within a prompt, which the loss trains",
    )
    for name in ("of", "reward"):
        table.add_column(name, no_wrap=True)
    for name in ("n", "ρ", "95%", "τ", "95%"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in checked.correlations:
        table.add_row(
            row.of,
            row.reward,
            str(row.n),
            f"{row.spearman:.3f}",
            f"{row.spearman_low:.3f} to {row.spearman_high:.3f}",
            f"{row.kendall:.3f}",
            f"{row.kendall_low:.3f} to {row.kendall_high:.3f}",
        )
    Console().print(table)


def _libraries_print_to_stderr(wanted: bool) -> contextlib.AbstractContextManager[Any]:
    """Where it is wanted, leaves stdout to the JSON that follows."""
    return contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext()


def _what_is_trained(config: Path) -> str:
    """Of a run that has nothing left to do: a pinned iteration may be followed by others."""
    from axolotl_tspin.resolve import inspect_run, read_yaml

    settings, directory = inspect_run(read_yaml(config))
    if settings.iteration is None:
        return f"All iterations of the run in {directory.path} are trained"
    return (
        f"Iteration {settings.iteration} of the run in {directory.path}, which "
        "`t_spin.iteration` pins, is trained"
    )


def _exit_as(error: Any) -> NoReturn:
    """End as a failed step's command did."""
    click.echo(f"Error: {error}", err=True)
    sys.exit(error.status if error.status > 0 else 128 - error.status)


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.0f} s"


def _amount(number: float) -> str:
    """At most six characters."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            scale = 1e3 if unit == "k" else size
            return f"{number / scale:.4g}{unit}"
    return f"{number:g}"


def _memory_size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**26 else f"{size / 2**20:.2f} MiB"
