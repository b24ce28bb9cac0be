"""`generate` and `run`: the steps of a run."""

from pathlib import Path

import click

from axolotl_tspin.commands.group import CONFIG


@click.command()
@CONFIG
def generate(config: Path) -> None:
    """Sample the responses that the due iteration of CONFIG's run needs.

    CONFIG is the YAML that `axolotl train` takes. After an interruption, a second call continues.
    """
    from axolotl_tspin.generation.step import generate as generate_step

    outcome = generate_step(config)
    if outcome.assembled:
        _warn_of_sampling(config, outcome.iteration)
    if outcome.due == "done":
        click.echo(f"{what_is_trained(config)}.")
    elif outcome.due == "generate":
        click.echo(
            f"Iteration {outcome.iteration}: {outcome.generated} responses sampled; other "
            "processes have the rest. The last of them writes the triplets."
        )
    else:
        triplets = outcome.run.iteration(outcome.iteration).triplets("train")
        click.echo(
            f"Iteration {outcome.iteration}: {outcome.generated} responses sampled; its triplets "
            f"are in {triplets}. Next: axolotl train {config}"
        )


@click.command(context_settings={"allow_interspersed_args": False})
@CONFIG
@click.argument("train_arguments", nargs=-1, type=click.UNPROCESSED)
def run(config: Path, train_arguments: tuple[str, ...]) -> None:
    """Generate and train, iteration by iteration, until CONFIG's run is done.

    Arguments after CONFIG go to `axolotl train`, and arguments after `--` to its launcher:

        axolotl t-spin run run.yml --launcher torchrun -- --nproc_per_node 8

    With torchrun, transformers also samples in that many processes (vLLM has its own key for that).

    After an interruption, a second call continues.
    """
    from axolotl_tspin.commands.loop import run as run_loop

    run_loop(config, train_arguments)
    click.echo(f"{what_is_trained(config)}; see `axolotl t-spin status {config}`.")


def _warn_of_sampling(config: Path, number: int) -> None:
    from axolotl.utils.logging import get_logger

    from axolotl_tspin.diagnostics.findings import findings_of_sampling
    from axolotl_tspin.resolve.yaml_file import inspect_run, read_yaml

    settings, directory = inspect_run(read_yaml(config))
    for finding in findings_of_sampling(directory, number, settings):
        get_logger(__name__).warning("T-SPIN: %s", finding)


def what_is_trained(config: Path) -> str:
    """Describe a run that has nothing left to do; after a pinned iteration, others may be left."""
    from axolotl_tspin.resolve.yaml_file import inspect_run, read_yaml

    settings, directory = inspect_run(read_yaml(config))
    if settings.iteration is None:
        return f"All iterations of the run in {directory.path} are trained"
    return (
        f"Iteration {settings.iteration} of the run in {directory.path}, which "
        "`t_spin.iteration` pins, is trained"
    )
