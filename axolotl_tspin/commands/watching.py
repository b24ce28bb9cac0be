"""`status`, `compare` and `report`: views of what a run has done."""

import json
from pathlib import Path

import click

from axolotl_tspin.commands.group import AS_JSON, CONFIG, libraries_print_to_stderr
from axolotl_tspin.commands.numbers import seconds


@click.command()
@CONFIG
@AS_JSON
def status(config: Path, as_json: bool) -> None:
    """Show the progress of CONFIG's run."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from axolotl_tspin.diagnostics.status import dropped_text, run_status
    from axolotl_tspin.resolve.yaml_file import inspect_run, read_yaml

    with libraries_print_to_stderr(as_json):
        settings, directory = inspect_run(read_yaml(config))
        rows = run_status(directory, settings)
    if as_json:
        click.echo(json.dumps([row._asdict() for row in rows], indent=2))
        return
    table = Table(
        title=f"{directory.path}: {settings.iterations} iterations",
        caption="sampled: rows with a response of this iteration, and their tokens; steps: of the "
        "optimizer; loss and the advantages u and v (nats) as logged last; gap: log π(y) − log "
        "π(y′) under the trained policy; kept: that policy is still in iteration_t/model",
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
            seconds(row.generation_seconds),
            "/".join(map(str, row.training)) if row.training else "",
            *("" if figure is None else f"{figure:.3g}" for figure in figures),
            seconds(row.training_seconds),
            *(f"{row.scores[task]:.3f}" if task in row.scores else "" for task in tasks),
            "yes" if row.model else "no" if row.policy else "",
        )
    console = Console()
    console.print(table)
    if rows and (text := dropped_text(rows[0].dropped)):
        console.print(text, markup=False, highlight=False)
    for row in rows:
        for warning in row.warnings:
            console.print(f"[bold]Warning[/bold] (iteration {row.iteration}): ", end="")
            console.print(warning, markup=False, highlight=False)


@click.command()
@CONFIG
@click.option("--rows", type=click.IntRange(min=1), help="Only the first triplets of each.")
def compare(config: Path, rows: int | None) -> None:
    """Show what each trained iteration of CONFIG's run did to its triplets.

    The table has log-probabilities (sums over a response, in nats) and advantages, as means over an
    iteration's triplets, under the policy that it started from and under the one that it trained.
    """
    from rich.console import Console
    from rich.table import Table

    from axolotl_tspin.diagnostics.comparison import compare as compare_policies

    comparisons = compare_policies(config, rows)
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


@click.command()
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
    help="The page; its pictures also go into a folder next to it.",
)
@click.option(
    "--score", is_flag=True, help="First score trained policies without scores (loads them)."
)
def report(configs: tuple[Path, ...], out: Path, score: bool) -> None:
    """Write a page about CONFIGS' runs, side by side: curves, tables, samples, scores, warnings."""
    from axolotl_tspin.diagnostics.report import write_report

    if score:
        from axolotl_tspin.diagnostics.rescoring import score_missing

        for config in configs:
            score_missing(config)
    written = write_report(configs, out)
    click.echo(f"{out}, and {len(written) - 1} pictures in {written[-1].parent}")
