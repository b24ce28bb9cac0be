"""The tables of `status`, no wider than 80 columns whatever the numbers."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from axolotl_tspin.commands.numbers import amount, duration, figure
from axolotl_tspin.diagnostics.status import IterationStatus


class TitledTable(NamedTuple):
    """A table, its title, and what its columns are about."""

    title: str
    table: Table
    about: str


def status_tables(title: str, rows: Sequence[IterationStatus]) -> list[TitledTable]:
    """Make the tables of work, of training, and of scores; the latter two only if there are any.

    Args:
        title: the first table's.
    """
    tables = [_work(title, rows)]
    if any(row.training for row in rows):
        tables.append(_training(rows))
    if any(row.scores for row in rows):
        tables.append(_scores(rows))
    return tables


def table_of(title: str, about: str, left: Iterable[str], right: Iterable[str]) -> TitledTable:
    """Make an empty table with left-aligned columns, then right-aligned ones."""
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, show_edge=False)
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return TitledTable(title, table, about)


def show(console: Console, shown: TitledTable) -> None:
    """Print a table, its title and what it is about, these two in the console's whole width."""
    console.print(Text(shown.title, "bold"))
    console.print(shown.table)
    console.print(Text(f"{shown.about}\n" if shown.about else "", "dim"))


def _work(title: str, rows: Sequence[IterationStatus]) -> TitledTable:
    shown = table_of(
        title,
        "t: iteration; kept: the trained policy is still in iteration_t/model; sampled: rows with "
        "a response of this iteration, and their tokens; sampling, training: time; steps: of the "
        "optimizer",
        ("t", "due", "kept"),
        ("sampled", "tokens", "sampling", "steps", "training"),
    )
    for row in rows:
        trained = row.policy is not None
        shown.table.add_row(
            str(row.iteration),
            row.step,
            ("yes" if row.model else "no") if trained else "",
            f"{amount(row.sampled)}/{amount(row.rows)}",
            amount(row.tokens),
            duration(row.generation_seconds),
            "/".join(map(amount, row.training)) if row.training else "",
            duration(row.training_seconds),
        )
    return shown


def _training(rows: Sequence[IterationStatus]) -> TitledTable:
    shown = table_of(
        "Training",
        "loss and the advantages u and v (nats) as logged last; gap: log π(y) − log π(y′) under "
        "the trained policy",
        ("t",),
        ("loss", "u", "v", "gap"),
    )
    for row in rows:
        if row.training:
            figures = (row.loss, row.current_advantage, row.historical_advantage, row.gap)
            shown.table.add_row(str(row.iteration), *map(figure, figures))
    return shown


def _scores(rows: Sequence[IterationStatus]) -> TitledTable:
    shown = table_of("Scores of lm-evaluation-harness", "", ("t", "task"), ("score",))
    task_column = shown.table.columns[1]
    task_column.no_wrap, task_column.overflow = False, "fold"
    for row in rows:
        for task, score in row.scores.items():
            shown.table.add_row(str(row.iteration), task, f"{score:.3f}")
    return shown
