"""`sequence_len` bounds the prompt plus each response."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.strategies.lengths import fit_row


@given(
    prompt=st.integers(1, 12),
    responses=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    sequence_len=st.integers(1, 16),
    excess_length=st.sampled_from(["truncate", "drop", "raise"]),
)
def test_nothing_is_longer_than_sequence_len(prompt, responses, sequence_len, excess_length):
    rows = [list(range(n)) for n in responses]
    too_long = max(*responses, 1) + prompt > sequence_len

    def fit():
        return fit_row(
            [0] * prompt, rows, sequence_len=sequence_len, excess_length=excess_length, where="d: 1"
        )

    if excess_length == "raise" and too_long:
        with pytest.raises(TSpinError, match=r"d: 1: prompt .*sequence_len"):
            fit()
        return
    fitted = fit()
    if prompt >= sequence_len:
        assert "no room" in fitted.dropped
    elif too_long and excess_length == "drop":
        assert "longer than sequence_len" in fitted.dropped
    else:
        assert fitted.dropped is None
        assert fitted.cut == sum(n + prompt > sequence_len for n in responses)
        for row, kept in zip(rows, fitted.responses, strict=True):
            assert kept == row[: sequence_len - prompt]
            assert prompt + len(kept) <= sequence_len
