"""Rows that are held out: how many, and that nothing of them is trained on."""

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.held_out import held_out_rows, hold_out, rows_to_hold_out
from axolotl_tspin.triplets import joined

ROWS = st.lists(st.tuples(st.sampled_from("abcdefghij"), st.integers(0, 30)), min_size=1)


@given(ROWS, st.integers(1, 40), st.integers(0, 9))
def test_prompts_and_conversations_are_on_one_side(rows, wanted, seed):
    prompts, sources = zip(*rows, strict=True)
    chosen = held_out_rows(prompts, sources, wanted, seed)
    assert chosen.shape == (len(rows),) and chosen.sum() <= wanted
    for column in (np.array(prompts), np.array(sources)):
        assert not set(column[chosen]) & set(column[~chosen])
    assert (chosen == held_out_rows(prompts, sources, wanted, seed)).all()


@given(st.integers(2, 200), st.data())
def test_of_distinct_rows_as_many_as_wanted_are_held_out(rows, data):
    wanted = data.draw(st.integers(0, rows - 1))
    chosen = held_out_rows([str(i) for i in range(rows)], range(rows), wanted, 3)
    assert chosen.sum() == wanted


@pytest.mark.parametrize(
    ("held_out", "val_set_size", "rows", "wanted"),
    [
        ("auto", None, 639, 0),
        ("auto", None, 640, 32),
        ("auto", 0, 50_000, 256),
        (12, None, 50, 12),
        (0, None, 50_000, 0),
        ("auto", 0.1, 50, 5),
        (0, 0.1, 50, 5),
        (12, 7, 50, 7),
        (12, 1, 50, 1),
    ],
)
def test_the_number_of_rows(held_out, val_set_size, rows, wanted):
    assert rows_to_hold_out(held_out, val_set_size, rows) == wanted


def rows_of(prompts: list[int]) -> Dataset:
    return Dataset.from_list(
        [{**joined([prompt], [1, 2]), "source_row": i} for i, prompt in enumerate(prompts)]
    )


def test_all_rows_cannot_be_held_out():
    with pytest.raises(TSpinError, match=r"`t_spin.held_out` holds out 3 of .* 3 rows"):
        hold_out(rows_of([1, 2, 3]), 3, None, 1)
    with pytest.raises(TSpinError, match=r"`val_set_size` holds out 3"):
        hold_out(rows_of([1, 2, 3]), 0, 3, 1)


def test_rows_that_cannot_be_parted_are_all_trained_on_with_a_warning(caplog):
    train, test = hold_out(rows_of([1, 1, 1]), 1, None, 1)
    assert len(train) == 3 and test is None
    assert "no 1 rows can be held out" in caplog.text
    caplog.clear()
    train, test = hold_out(rows_of([1, 1, 2]), 1, None, 1)
    assert test["input_ids"] == [[2, 1, 2]] and len(train) == 2
    assert "can be held out" not in caplog.text
