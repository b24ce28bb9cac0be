"""`status`, `compare` and `report`: views of what a run has done."""

import json
from pathlib import Path

import click

from axolotl_tspin.commands.group import AS_JSON, CONFIG, VERBOSE
from axolotl_tspin.commands.quiet import quiet
from axolotl_tspin.errors import TSpinError


@click.command()
@CONFIG
@AS_JSON
def status(config: Path, as_json: bool) -> None:
    """Show the progress of CONFIG's run."""
    from rich.console import Console
    from rich.text import Text

    from axolotl_tspin.commands.status_tables import show, status_tables
    from axolotl_tspin.diagnostics.status import dropped_text, run_status
    from axolotl_tspin.resolve.identity import identity_of
    from axolotl_tspin.resolve.yaml_file import inspect_run, read_keys

    raw = read_keys(config)
    settings, directory = inspect_run(raw)
    if directory.exists():
        directory.check_identity(identity_of(raw, settings))
    elif not as_json:  # programs ask what is due, from the beginning on
        raise TSpinError(
            f"{directory.path} holds no run yet; `axolotl t-spin run {config}` begins it"
        )
    rows = run_status(directory, settings)
    if as_json:
        click.echo(json.dumps([row._asdict() for row in rows], indent=2))
        return
    console = Console()
    last = settings.iterations - 1
    for table in status_tables(f"{directory.path}: iterations 0 to {last}", rows):
        show(console, table)
    if rows and (text := dropped_text(rows[0].dropped)):
        console.print(text, markup=False, highlight=False)
    for row in rows:
        if row.verdict:
            console.print(
                Text.assemble(
                    (f"Iteration {row.iteration}", "bold"),
                    ": {word}: {sentence}".format(**row.verdict),
                )
            )
    since_start = [row.verdict_since_start for row in rows if row.verdict_since_start]
    if since_start:
        console.print(
            Text.assemble(
                ("Against the initial policy", "bold"),
                ": {word}: {sentence}".format(**since_start[-1]),
            )
        )
    for row in rows:
        for warning in row.warnings:
            console.print(
                Text.assemble(("Warning", "bold"), f" (iteration {row.iteration}): {warning}")
            )


@click.command()
@CONFIG
@click.option("--rows", type=click.IntRange(min=1), help="Only the first triplets of each.")
@VERBOSE
def compare(config: Path, rows: int | None, verbose: bool) -> None:
    """Show what each trained iteration of CONFIG's run did to its triplets.

    The table has log-probabilities (sums over a response, in nats) and advantages, as means over an
    iteration's triplets, under the policy that it started from and under the one that it trained.
    """
    from rich.console import Console
    from rich.table import Table

    with quiet(config, verbose=verbose):
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
    help="The page  [default: report.html in the run directory; of several runs, in this folder]",
)
@click.option(
    "--score", is_flag=True, help="First score trained policies without scores (loads them)."
)
@click.option("--open", "opens", is_flag=True, help="Open the page in the browser.")
@click.option(
    "--watch", "watches", is_flag=True, help="Write the page again after every change, until ^C."
)
@VERBOSE
def report(
    configs: tuple[Path, ...],
    out: Path | None,
    score: bool,
    opens: bool,
    watches: bool,
    verbose: bool,
) -> None:
    """Write a page about CONFIGS' runs, side by side: verdicts, warnings, samples, curves."""
    import webbrowser

    from axolotl_tspin.diagnostics.report import write_report
    from axolotl_tspin.diagnostics.report_watch import keep_written

    for config in configs if score else ():
        with quiet(config, verbose=verbose):
            from axolotl_tspin.diagnostics.rescoring import score_missing

            score_missing(config)
    page = write_report(configs, out, reloads=watches)
    click.echo(str(page))
    if opens and not webbrowser.open(page.resolve().as_uri()):
        click.echo(f"No browser was found; open {page.resolve()}", err=True)
    if watches:
        keep_written(configs, page)
