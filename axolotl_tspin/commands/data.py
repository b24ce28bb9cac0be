"""`export`, `import` and `schema`: exchange with other tools."""

import json
from pathlib import Path
from typing import Any

import click

from axolotl_tspin.commands.group import CONFIG, VERBOSE
from axolotl_tspin.commands.quiet import quiet
from axolotl_tspin.errors import TSpinError


@click.command()
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
    messages in all rows or in none. `spin` is SPIN's format (real, generated).
    """
    from axolotl_tspin.resolve.yaml_file import inspect_run, read_keys
    from axolotl_tspin.run.exporting import export as export_triplets

    settings, directory = inspect_run(read_keys(config))
    complete = [
        t for t in range(settings.iterations) if directory.iteration(t).triplets("train").exists()
    ]
    if iteration is None and complete:
        iteration = complete[-1]
    if iteration not in complete:
        raise TSpinError(f"{directory.path} has no triplets of iteration {iteration or 0} yet")
    rows = export_triplets(directory.iteration(iteration).triplets("train"), target, style)
    click.echo(f"{rows} rows of iteration {iteration} are in {target}.")


@click.command()
def schema() -> None:
    """Print the JSON schema of the YAML's `t_spin` block, for editors."""
    from axolotl_tspin.config import TSpinConfig

    described = TSpinConfig.model_json_schema()
    del described["properties"]["resolved"], described["$defs"]["ResolvedRun"]
    click.echo(json.dumps(described, indent=2))


@click.command(name="import")
@CONFIG
@VERBOSE
def import_(config: Path, verbose: bool) -> None:
    """Begin CONFIG's run with the responses that its data sets already have.

    For example, the `generated` responses of SPIN's public data sets become iteration 0's.
    """
    with quiet(config, verbose=verbose, begins=True):
        from axolotl_tspin.generation.importing import import_run

        directory = import_run(config)
    click.echo(
        f"The run in {directory.path} has its prompts and iteration 0's triplets. Nothing proves "
        "which policy sampled them: `axolotl train` takes them with `t_spin.allow_foreign: true`."
    )
