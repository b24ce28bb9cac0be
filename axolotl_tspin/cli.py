"""`axolotl t-spin …`: the commands between two calls of `axolotl train`.

Imports stay inside the commands: `axolotl --help` loads this module.
"""

import json
import sys
from pathlib import Path
from typing import Any

import click

from axolotl_tspin.errors import TSpinError

CONFIG = click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))


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
        click.echo(f"All iterations of the run in {outcome.run.path} are trained.")
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

    Stopped at any point, a second call goes on.
    """
    from axolotl_tspin.loop import StepFailed
    from axolotl_tspin.loop import run as run_loop

    try:
        run_loop(config, train_arguments)
    except TSpinError as error:
        raise click.ClickException(str(error)) from error
    except StepFailed as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.status if error.status > 0 else 128 - error.status)
    click.echo(f"All iterations of {config} are trained; see `axolotl t-spin status {config}`.")


@t_spin.command()
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(config: Path, as_json: bool) -> None:
    """Show how far CONFIG's run is."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from axolotl_tspin.resolve import inspect_run, read_yaml
    from axolotl_tspin.status import run_status

    try:
        settings, directory = inspect_run(read_yaml(config))
        rows = run_status(directory, settings.iterations)
    except TSpinError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps([row._asdict() for row in rows], indent=2))
        return
    table = Table(
        title=f"{directory.path}: {settings.iterations} iterations",
        caption="sampled: rows with a response of this iteration, and their tokens; steps: of the "
        "optimizer; loss and the advantages u and v (nats) as logged last; the trained policy is "
        "in iteration_t/model where kept",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
    )
    table.add_column("t")
    table.add_column("due")
    for name in ("sampled", "tokens", "time", "steps", "loss", "u", "v", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("model")
    for row in rows:
        figures = (row.loss, row.current_advantage, row.historical_advantage)
        table.add_row(
            str(row.iteration),
            row.step,
            f"{row.sampled}/{row.rows}",
            str(row.tokens),
            _seconds(row.generation_seconds),
            "/".join(map(str, row.training)) if row.training else "",
            *("" if figure is None else f"{figure:.3g}" for figure in figures),
            _seconds(row.training_seconds),
            "kept" if row.model else "dropped" if row.policy else "",
        )
    Console().print(table)


@t_spin.command()
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def plan(config: Path, as_json: bool) -> None:
    """Show what `run` would do for CONFIG and about what it would cost, without doing it."""
    from rich.console import Console
    from rich.table import Table

    from axolotl_tspin.planning import plan_run

    try:
        lengths, plans = plan_run(config)
    except TSpinError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        iterations = [iteration._asdict() for iteration in plans]
        click.echo(json.dumps({"lengths": lengths._asdict(), "iterations": iterations}, indent=2))
        return
    table = Table(
        title=f"What is left of {config}",
        caption=f"{lengths.rows} rows; mean tokens: prompt {lengths.prompt:.0f}, annotated "
        f"{lengths.annotated:.0f}, sampled {lengths.response:.0f} "
        f"({'measured' if lengths.measured else 'at most: max_new_tokens'}). `trained`: "
        "tokens in a pass over the triplets, the prompt in each of three rows; `updates`: steps "
        "of the optimizer with one process; `disk`: without checkpoints.",
    )
    for name in ("t", "steps"):
        table.add_column(name, no_wrap=True)
    for name in ("responses", "tokens", "passes", "trained", "updates", "disk"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in plans:
        table.add_row(
            str(row.iteration),
            " → ".join(row.steps),
            f"{row.responses:,}",
            f"{row.sampled_tokens:,}",
            f"{row.passes:g}",
            f"{row.trained_tokens:,}",
            f"{row.optimizer_steps:,}",
            f"{row.disk / 1e9:.2f} GB",
        )
    Console().print(table)


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

    `trl` is TRL's preference format (chosen = annotated, rejected = synthetic), `spin` is SPIN's
    (real, generated).
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


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.0f} s"
