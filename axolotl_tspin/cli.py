"""`axolotl t-spin …`: the commands between two calls of `axolotl train`.

Imports stay inside the commands: `axolotl --help` loads this module.
"""

from pathlib import Path

import click

from axolotl_tspin.errors import TSpinError


@click.group(name="t-spin")
def t_spin() -> None:
    """T-SPIN: triplet-based self-play fine-tuning."""


@t_spin.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
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
    else:
        triplets = outcome.run.iteration(outcome.iteration).triplets("train")
        click.echo(
            f"Iteration {outcome.iteration}: {outcome.generated} responses sampled; its triplets "
            f"are in {triplets}. Next: axolotl train {config}"
        )


@t_spin.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
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
