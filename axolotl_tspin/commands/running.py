"""`generate` and `run`: the steps of a run."""

import os
import shlex
import signal
from pathlib import Path

import click

from axolotl_tspin.commands.group import CONFIG, VERBOSE
from axolotl_tspin.commands.quiet import quiet
from axolotl_tspin.errors import Interrupted
from axolotl_tspin.logs import RELAYED


@click.command()
@CONFIG
@VERBOSE
def generate(config: Path, verbose: bool) -> None:
    """Sample the responses that the due iteration of CONFIG's run needs.

    CONFIG is the YAML that `axolotl train` takes. After an interruption, a second call continues.
    """
    with quiet(config, verbose=verbose, begins=True):
        from axolotl_tspin.generation.step import generate as generate_step

        _warn_of_keys(config)
        outcome = generate_step(config)
        if outcome.assembled:
            _tell_of_samples(config, outcome.iteration)
    if outcome.due == "done":
        click.echo(f"{what_is_trained(config)}. {_verdict(config)}.")
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
@VERBOSE
@CONFIG
@click.argument("train_arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(ctx: click.Context, config: Path, train_arguments: tuple[str, ...], verbose: bool) -> None:
    """Generate and train, iteration by iteration, until CONFIG's run is done.

    Arguments after CONFIG go to `axolotl train`, and arguments after `--` to its launcher:

        axolotl t-spin run run.yml --launcher torchrun -- --nproc_per_node 8

    With torchrun, transformers also samples in that many processes (vLLM has its own key for that).

    After an interruption, a second call continues.
    """
    try:
        with quiet(config, verbose=verbose, begins=True) as log:
            from axolotl_tspin.commands.loop import run as run_loop

            _warn_of_keys(config)
            run_loop(config, train_arguments, log)
    except (Interrupted, KeyboardInterrupt) as stopped:
        from axolotl_tspin.commands.interrupts import kept

        number = stopped.signal if isinstance(stopped, Interrupted) else signal.SIGINT
        again = shlex.join(["axolotl", "t-spin", "run", str(config), *train_arguments])
        click.echo(f"Interrupted: {kept(config)}. To go on: {again}", err=True)
        ctx.exit(128 + number)
    from axolotl_tspin.diagnostics.report import write_report

    click.echo(f"{what_is_trained(config)}.\n{_verdict(config)}.\nReport: {write_report([config])}")


def _warn_of_keys(config: Path) -> None:
    from axolotl_tspin.resolve.key_names import warn_of_misspelt_keys
    from axolotl_tspin.resolve.yaml_file import read_keys

    if RELAYED not in os.environ:  # else `run` has said it
        warn_of_misspelt_keys(read_keys(config))


def _tell_of_samples(config: Path, number: int) -> None:
    """Warn of what iteration `number` sampled, and add it to the views of the policy that it was
    sampled from."""
    from axolotl_tspin.diagnostics.findings import findings_of_sampling
    from axolotl_tspin.diagnostics.model_card import write_model_card
    from axolotl_tspin.logs import get_logger
    from axolotl_tspin.resolve.yaml_file import inspect_run, read_keys

    settings, directory = inspect_run(read_keys(config))
    if directory.iteration(number).triplets("train").exists():  # not those of the final policy
        for finding in findings_of_sampling(directory, number, settings):
            get_logger(__name__).warning("T-SPIN: %s", finding)
    if number > 0:
        write_model_card(directory, number - 1, settings)
        if RELAYED not in os.environ:  # else `run` writes it
            from axolotl_tspin.diagnostics.report import write_report

            write_report([config])


def _verdict(config: Path) -> str:
    """Describe the last trained policy against the initial one."""
    from axolotl_tspin.resolve.yaml_file import inspect_run, read_keys
    from axolotl_tspin.verdicts.verdict import verdict_on_run

    settings, directory = inspect_run(read_keys(config))
    verdict = verdict_on_run(directory, settings)
    return f"Against the initial policy: {verdict}" if verdict else "Nothing was measured"


def what_is_trained(config: Path) -> str:
    """Describe a run that has nothing left to do; after a pinned iteration, others may be left."""
    from axolotl_tspin.resolve.yaml_file import inspect_run, read_keys

    settings, directory = inspect_run(read_keys(config))
    if settings.iteration is None:
        return f"All iterations of the run in {directory.path} are trained"
    return (
        f"Iteration {settings.iteration} of the run in {directory.path}, which "
        "`t_spin.iteration` pins, is trained"
    )
