"""Tables of `status` and `plan`: 80 columns hold them, and no two columns share a name."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from axolotl_tspin.commands.numbers import amount, disk_size, duration, figure
from axolotl_tspin.commands.planning import work_table
from axolotl_tspin.commands.status_tables import show, status_tables
from axolotl_tspin.diagnostics.status import IterationStatus
from axolotl_tspin.planning.plan import IterationPlan

ROW = dict.fromkeys(IterationStatus._fields) | {
    "iteration": 99,
    "step": "generate",
    "rows": 123_456_789,
    "sampled": 123_456_789,
    "tokens": 987_654_321_987,
    "generation_seconds": 98_765_432.1,
    "training": (1_234_567, 7_654_321),
    "loss": -1.234567e-12,
    "current_advantage": -1.234567e12,
    "historical_advantage": -1.234567e-7,
    "gap": float("nan"),
    "training_seconds": 98_765_432.1,
    "policy": "f" * 64,
    "model": "out/iteration_99/model",
    "scores": {"leaderboard_bbh_" + "very_long_name_" * 8: 0.123456},
}


def printed(shown) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    show(console, shown)
    return console.export_text()


def check(shown, *numbers: str) -> None:
    text = printed(shown)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text, "nothing was cut off"
    names = [str(column.header) for column in shown.table.columns]
    assert len(set(names)) == len(names)
    for number in numbers:
        assert number in text


def test_status_with_monstrous_numbers():
    work, training, scores = status_tables("/a" * 90, [IterationStatus(**ROW)])
    check(work, "generate", "123.5M/123.5M", "987.7B", "27.43k h", "1.235M/7.654M", "yes")
    check(training, "-1.23e-12", "-1.23e+12", "nan")
    check(scores, "0.123")


def test_status_has_no_tables_without_rows_in_them():
    bare = ROW | {"training": None, "scores": {}, "policy": None}
    (work,) = status_tables("out", [IterationStatus(**bare)])
    assert "yes" not in printed(work), "the folder of an interrupted training is not a policy"


@pytest.mark.parametrize("steps", [["generate", "train"], ["train"]])
def test_plan_with_monstrous_numbers(steps):
    check(
        work_table("caption", Path("run.yml"), [monstrous(steps)]),
        " → ".join(steps),
        "123.5B",
        "34.29M h",
    )


def monstrous(steps: list[str]) -> IterationPlan:
    numbers = dict.fromkeys(IterationPlan._fields, 123_456_789_012)
    return IterationPlan(**numbers | {"iteration": 99, "steps": steps})


@pytest.mark.parametrize("power", range(15))
@pytest.mark.parametrize("factor", [1, 1.2345678, 9.99996])
def test_formats_keep_their_widths(power, factor):
    number = factor * 10**power
    assert len(amount(number)) <= 6 and len(figure(-number)) <= 9
    assert len(duration(number / 1e3)) <= 8 and len(disk_size(int(number))) <= 9


def test_what_is_not_known_is_empty():
    assert duration(None) == figure(None) == ""
    assert duration(0) == "0 s" and duration(599) == "599 s" and duration(3600) == "60 min"
    assert duration(36_000) == "10 h" and amount(12) == "12" and disk_size(0) == "0.00 GB"
