"""`plan`: the work and the cost of a run."""

import json
from pathlib import Path
from typing import Any

import click

from axolotl_tspin.commands.group import AS_JSON, CONFIG, libraries_print_to_stderr
from axolotl_tspin.commands.numbers import amount, memory_size, seconds


@click.command()
@CONFIG
@AS_JSON
@click.option(
    "--ranks",
    type=click.IntRange(min=1),
    help="Processes that train in data parallel. Default: the number of GPUs here, or 1.",
)
def plan(config: Path, as_json: bool, ranks: int | None) -> None:
    """Show what `run` would do for CONFIG, and its approximate cost, without doing it."""
    import torch
    from rich.console import Console

    from axolotl_tspin.planning.plan import plan_run

    with libraries_print_to_stderr(as_json):
        planned = plan_run(config, ranks or torch.cuda.device_count() or 1)
    if as_json:
        click.echo(json.dumps(as_dict(planned), indent=2))
        return
    console = Console()
    console.print(_work_table(config, planned))
    console.print(_memory_table(planned.memory))


def as_dict(value: Any) -> Any:
    """Convert NamedTuples to dictionaries, at every depth."""
    if hasattr(value, "_asdict"):
        return {key: as_dict(item) for key, item in value._asdict().items()}
    if isinstance(value, (list, tuple)):
        return [as_dict(item) for item in value]
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
            amount(row.responses),
            amount(row.sampled_tokens),
            seconds(row.sampling_seconds),
            amount(row.trained_tokens),
            amount(row.optimizer_steps),
            seconds(row.training_seconds),
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
        caption=f"{amount(shape.parameters)} parameters, {amount(shape.trained)} trained; "
        f"largest micro-batch: {amount(batch.tokens)} tokens ({memory.choice.layout}), responses "
        "at their limit. buffers: for communication, and weights gathered at a time. In the "
        "peak, gradients can take the place of activations. CUDA's own memory and fragmentation "
        "come on top",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
    )
    for name in parts:
        table.add_column("peak" if name == "total" else name, justify="right", no_wrap=True)
    table.add_row(*map(memory_size, parts.values()))
    return table


def _rows(lengths: Any) -> str:
    test = f" and {lengths.test_rows} for evaluation" if lengths.test_rows else ""
    return f"{lengths.rows} rows{test}"


def _ranks(number: int) -> str:
    return "1 rank" if number == 1 else f"{number} ranks"
