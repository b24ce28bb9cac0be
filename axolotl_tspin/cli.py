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
