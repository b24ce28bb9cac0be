"""Layouts: whatever the shapes, the triplets come back out of the tensors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.training.collator import TripletCollator
from axolotl_tspin.training.layouts import indices_of, pack_triplets, pad_triplets, triplets_of
from axolotl_tspin.triplets import TripletTokens, from_row

tokens = st.lists(st.integers(1, 99), max_size=9)
prompt = st.lists(st.integers(1, 99), min_size=1, max_size=9)
apart = st.builds(TripletTokens, prompt, tokens, tokens, tokens)
# As at iteration 0, where the synthetic response is the proto-synthetic one.
together = st.builds(lambda x, y, s: TripletTokens(x, y, s, s), prompt, tokens, tokens)
triplet = st.one_of(apart, together)
batches = st.lists(triplet, min_size=1, max_size=5)


@given(batches, st.sampled_from([1, 4, 64]))
def test_every_padded_token_is_where_it_belongs(triplets, multiple):
    batch = pad_triplets(triplets, pad_token_id=0, pad_to_multiple_of=multiple)
    rows, length = batch["input_ids"].shape
    assert batch["labels"].shape == batch["attention_mask"].shape == (rows, length)
    assert rows == 3 * len(triplets)
    assert length % multiple == 0
    longest = max(len(t.prompt) + len(r) for t in triplets for r in t[1:])
    assert longest <= length < longest + multiple
    for i, t in enumerate(triplets):
        for j, response in enumerate(t[1:]):
            row = 3 * i + j
            ids, mask = batch["input_ids"][row], batch["attention_mask"][row].bool()
            assert ids[mask].tolist() == [*t.prompt, *response]
            assert mask.tolist() == sorted(mask.tolist(), reverse=True)
            assert ids[~mask].eq(0).all()
            is_response = batch["labels"][row] != -100
            assert ids[is_response].tolist() == list(response)
            assert not is_response[: len(t.prompt)].any()


def packed(triplets, multiple=1, most=None):
    return pack_triplets(
        triplets, pad_token_id=0, max_tokens_per_row=most, pad_to_multiple_of=multiple
    )


@given(batches, st.sampled_from([1, 4, 64]), st.sampled_from([None, 1, 20, 40]))
def test_every_packed_token_is_where_it_belongs(triplets, multiple, most):
    batch = packed(triplets, multiple, most)
    rows, length = batch["input_ids"].shape
    assert length % multiple == 0
    layout = batch["layout"]
    assert len(layout.responses) == sum(map(len, layout.rows)) == len(triplets)
    seen = torch.zeros(rows, length, dtype=torch.bool)
    left = iter(triplets)
    for row, spans in enumerate(layout.rows):
        assert spans, "a row without triplets"
        assert most is None or spans[-1].end <= max(most, spans[0].end)
        for span in spans:
            t = next(left)
            ids, positions = batch["input_ids"][row], batch["position_ids"][row]
            begin = span.start + span.prompt
            assert ids[span.start : begin].tolist() == list(t.prompt)
            assert positions[span.start : begin].tolist() == list(range(span.prompt))
            assert batch["labels"][row, span.start : begin].eq(-100).all()
            for n in span.responses:
                expected = list(range(span.prompt, span.prompt + n))
                assert positions[begin : begin + n].tolist() == expected
                assert torch.equal(batch["labels"][row, begin : begin + n], ids[begin : begin + n])
                begin += n
            assert begin == span.end
            assert not seen[row, span.start : begin].any()
            seen[row, span.start : begin] = True
    assert batch["labels"][~seen].eq(-100).all()
    distinct = [len({tuple(r) for r in t[1:]}) for t in triplets]
    assert len(layout.lengths) == sum(distinct)


@given(batches, st.sampled_from([pad_triplets, pack_triplets]))
def test_triplets_come_back_and_every_response_token_is_predicted_by_the_one_before(
    triplets, lay_out
):
    batch = lay_out(triplets, pad_token_id=0)
    assert [tuple(map(list, t)) for t in triplets_of(batch)] == [
        tuple(map(list, t)) for t in triplets
    ]
    lengths = batch["layout"].lengths
    indices = indices_of(batch)
    assert indices.lengths.tolist() == list(lengths)
    assert indices.responses.view(-1, 3).tolist() == [list(r) for r in batch["layout"].responses]
    owners = [number for number, length in enumerate(lengths) for _ in range(length)]
    distinct = torch.arange(len(indices.lengths))
    assert distinct.repeat_interleave(indices.lengths).tolist() == owners
    targets = indices.targets.split(lengths)
    before = batch["input_ids"].flatten()[indices.predicting].split(lengths)
    for t, owner in zip(triplets, batch["layout"].responses, strict=True):
        for response, i in zip(t[1:], owner, strict=True):
            assert targets[i].tolist() == list(response)
            assert before[i].tolist() == [t.prompt[-1], *response][: len(response)]


@given(triplet)
def test_a_row_of_the_data_set_is_its_triplet(t):
    row = {
        "input_ids": [*t.prompt, *t.annotated],
        "labels": [-100] * len(t.prompt) + list(t.annotated),
        "synthetic_ids": t.synthetic,
        "proto_synthetic_ids": t.proto_synthetic,
    }
    assert from_row(row) == t


def test_the_collator_takes_the_layout_that_it_is_told(tokenizer):
    row = {
        "input_ids": [1, 2, 3, 4],
        "labels": [-100, -100, 3, 4],
        "synthetic_ids": [5],
        "proto_synthetic_ids": [5],
    }
    collator = TripletCollator(tokenizer)
    assert collator([row, row])["input_ids"].shape == (6, 4)
    collator.layout = "shared_prefix"
    assert collator([row, row])["input_ids"].tolist() == [[1, 2, 3, 4, 5] * 2]
    collator.max_tokens_per_row = 9
    assert collator([row, row])["input_ids"].tolist() == [[1, 2, 3, 4, 5]] * 2


def test_the_collator_refuses_rows_of_other_strategies_and_tokenizers_without_padding(tokenizer):
    with pytest.raises(TSpinError, match="no column synthetic_ids, proto_synthetic_ids"):
        TripletCollator(tokenizer)([{"input_ids": [1], "labels": [1]}])

    class NoPadding:
        pad_token_id = None

    with pytest.raises(TSpinError, match="pad_token"):
        TripletCollator(NoPadding())
