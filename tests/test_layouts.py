"""Padding: whatever the shapes, the triplets come back out of the tensors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axolotl_tspin.collator import TripletCollator, triplet_tokens
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.layouts import TripletTokens, pad_triplets

tokens = st.lists(st.integers(1, 99), max_size=9)
triplet = st.builds(
    TripletTokens, st.lists(st.integers(1, 99), min_size=1, max_size=9), tokens, tokens, tokens
)


@given(st.lists(triplet, min_size=1, max_size=4), st.sampled_from([1, 4, 64]))
def test_every_token_is_where_it_belongs(triplets, multiple):
    batch = pad_triplets(triplets, pad_token_id=0, pad_to_multiple_of=multiple)
    shapes = {tensor.shape for tensor in batch.values()}
    assert len(shapes) == 1
    (shape,) = shapes
    assert shape[:2] == (len(triplets), 3)
    assert shape[2] % multiple == 0
    longest = max(len(t.prompt) + len(r) for t in triplets for r in t[1:])
    assert longest <= shape[2] < longest + multiple
    for i, t in enumerate(triplets):
        for j, response in enumerate(t[1:]):
            ids, mask = batch["input_ids"][i, j], batch["attention_mask"][i, j].bool()
            assert ids[mask].tolist() == [*t.prompt, *response]
            assert mask.tolist() == sorted(mask.tolist(), reverse=True)
            assert ids[~mask].eq(0).all()
            is_response = batch["labels"][i, j] != -100
            assert ids[is_response].tolist() == list(response)
            assert torch.equal(batch["labels"][i, j][is_response], ids[is_response])
            assert not is_response[: len(t.prompt)].any()


@given(triplet)
def test_a_row_of_the_data_set_is_its_triplet(t):
    row = {
        "input_ids": [*t.prompt, *t.annotated],
        "labels": [-100] * len(t.prompt) + list(t.annotated),
        "synthetic_ids": t.synthetic,
        "proto_synthetic_ids": t.proto_synthetic,
    }
    assert triplet_tokens(row) == t


def test_the_collator_refuses_rows_of_other_strategies_and_tokenizers_without_padding(tokenizer):
    with pytest.raises(TSpinError, match="no proto_synthetic_ids, synthetic_ids"):
        TripletCollator(tokenizer)([{"input_ids": [1], "labels": [1]}])

    class NoPadding:
        pad_token_id = None

    with pytest.raises(TSpinError, match="pad_token"):
        TripletCollator(NoPadding())
