"""`plan`: the work and the cost of a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from axolotl_tspin.commands.group import AS_JSON, CONFIG, VERBOSE
from axolotl_tspin.commands.numbers import amount, disk_size, duration, memory_size
from axolotl_tspin.commands.quiet import quiet


@click.command()
@CONFIG
@AS_JSON
@click.option(
    "--ranks",
    type=click.IntRange(min=1),
    help="Processes that train in data parallel. Default: the number of GPUs here, or 1.",
)
@VERBOSE
def plan(config: Path, as_json: bool, ranks: int | None, verbose: bool) -> None:
    """Show what `run` would do for CONFIG, and its approximate cost, without doing it."""
    from rich.console import Console

    from axolotl_tspin.commands.status_tables import show

    with quiet(config, verbose=verbose, as_json=as_json):
        import torch

        from axolotl_tspin.planning.plan import plan_run
        from axolotl_tspin.resolve.key_names import warn_of_misspelt_keys
        from axolotl_tspin.resolve.yaml_file import read_keys

        warn_of_misspelt_keys(read_keys(config))
        planned = plan_run(config, ranks or torch.cuda.device_count() or 1)
    if as_json:
        click.echo(json.dumps(as_dict(planned), indent=2))
        return
    console = Console()
    if planned.changes:
        console.print(f"Changed {planned.changes}", markup=False, highlight=False, soft_wrap=True)
    show(console, work_table(_about_the_work(planned), config, planned.iterations))
    show(console, _memory_table(planned.memory))


def as_dict(value: Any) -> Any:
    """Convert NamedTuples to dictionaries, at every depth."""
    if hasattr(value, "_asdict"):
        return {key: as_dict(item) for key, item in value._asdict().items()}
    if isinstance(value, (list, tuple)):
        return [as_dict(item) for item in value]
    return sorted(value) if isinstance(value, frozenset) else value


def work_table(about: str, config: Path, iterations: Sequence[Any]) -> Any:
    """Make the table of the work that is left, 80 columns wide at most."""
    from axolotl_tspin.commands.status_tables import table_of

    shown = table_of(
        f"What is left of {config}",
        about,
        ("t", "steps"),
        ("responses", "tokens", "sampling", "trained", "updates", "training", "disk"),
    )
    shown.table.padding = 0  # nine columns in 80 characters
    for row in iterations:
        shown.table.add_row(
            str(row.iteration),
            " → ".join(row.steps),
            amount(row.responses),
            amount(row.sampled_tokens),
            duration(row.sampling_seconds),
            amount(row.trained_tokens),
            amount(row.optimizer_steps),
            duration(row.training_seconds),
            disk_size(row.disk),
        )
    return shown


def _memory_table(memory: Any) -> Any:
    from axolotl_tspin.commands.status_tables import table_of

    shape, setting, batch = memory.shape, memory.setting, memory.batch
    shown = table_of(
        f"Memory of one rank in training: {setting.name}, {_ranks(setting.ranks)}",
        f"{amount(shape.parameters)} parameters, {amount(shape.trained)} trained; largest "
        f"micro-batch: {amount(batch.tokens)} tokens ({memory.choice.layout}), responses at their "
        "limit. buffers: for communication, and weights gathered at a time. In the peak, gradients "
        "can take the place of activations. CUDA's own memory and fragmentation come on top",
        ("of",),
        ("size",),
    )
    for name, size in memory.estimate._asdict().items():
        shown.table.add_row("peak" if name == "total" else name, memory_size(size))
    return shown


def _about_the_work(planned: Any) -> str:
    lengths = planned.lengths
    passes = planned.iterations[0].passes if planned.iterations else 0
    return (
        f"{_rows(lengths)}; mean tokens: prompt {lengths.prompt:.0f}, annotated "
        f"{lengths.annotated:.0f}, sampled {lengths.response:.0f} "
        f"({'measured' if lengths.measured else 'at most: max_new_tokens'}). t: iteration; "
        "trained: tokens of one pass over the triplets, the prompt in each of three rows; updates: "
        f"of `num_epochs: {passes:g}` with {_ranks(planned.memory.setting.ranks)}; sampling, "
        "training: time of one sampling process, and of the training, as the trained iterations "
        "took; disk: without checkpoints"
    )


def _rows(lengths: Any) -> str:
    test = f" and {lengths.test_rows} for evaluation" if lengths.test_rows else ""
    return f"{lengths.rows} rows{test}"


def _ranks(number: int) -> str:
    return "1 rank" if number == 1 else f"{number} ranks"
