"""`turns: each` through a real generation step: several rows of a conversation in one run."""

import pyarrow.parquet as pq
from support.data import conversations, write_jsonl

from axolotl_tspin.generation.step import generate
from axolotl_tspin.run.directory import RunDirectory


def test_each_turn_of_a_conversation_is_sampled(make_yaml, tmp_path, tokenizer):
    first, second = (row["messages"] for row in conversations(2))
    both = [*first, *second]
    data = write_jsonl(tmp_path / "data.jsonl", [{"messages": both}, {"messages": second}])
    entry = {"path": str(data), "type": "t_spin.chat_template", "turns": "each"}
    assert generate(make_yaml(datasets=[entry])).generated == 3
    rows = pq.read_table(RunDirectory(tmp_path / "out").iteration(0).triplets("train")).to_pylist()
    answered = {(row["prompt"], row["annotated"]) for row in rows}
    assert answered == {
        (
            tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True),
            response["content"],
        )
        for *prompt, response in (first, both, second)
    }
    assert all(row["synthetic_ids"] for row in rows)
