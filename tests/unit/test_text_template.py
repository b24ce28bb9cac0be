"""Text templates with columns as fields, alone and through `type: t_spin.instruction`."""

import re

import pytest
from axolotl.utils.dict import DictDefault
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from axolotl_tspin.config import ResolvedRun, TSpinConfig
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.strategies import instruction
from axolotl_tspin.strategies.text_template import fields_of, rendered

ALPACA = (
    "Below is an instruction.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n"
    "### Response:\n"
)


@pytest.mark.parametrize(
    ("template", "texts", "expected"),
    [
        ("{a}\n{b}", {"a": "A", "b": "B"}, "A\nB"),
        ("{a}\n{b}", {"a": "A", "b": " "}, "A"),
        ("{a}\n{b}", {"a": "", "b": "B"}, "B"),
        ("{a}\n{b}\n", {"a": "A", "b": ""}, "A\n"),
        ("{a}\n{b}\nResponse: ", {"a": "A", "b": ""}, "A\nResponse: "),
        ("{a} {b}\n{c}\n", {"a": "", "b": "", "c": "C"}, "C\n"),
        ("{a}, {b}: ", {"a": "A", "b": ""}, "A, : "),
        ("Input: {a}\n{b}\n> ", {"a": "", "b": "B"}, "Input: \nB\n> "),
        ("# A\n{a}\n\n# B\n{b}\n\n> ", {"a": "", "b": "B"}, "# B\nB\n\n> "),
        ("# A\n{a}\n\n\n# B\n{b}\n\n> ", {"a": "A", "b": ""}, "# A\nA\n\n\n> "),
        ("# A\n{a}\n\n# B\n{b}\n\n", {"a": "A", "b": ""}, "# A\nA\n\n"),
        ("{a}\n\n{b}\n\n{c}\n\n", {"a": "A", "b": "", "c": ""}, "A\n\n"),
        ("{a}\n\n# B\n{b}\n> ", {"a": "A", "b": ""}, "A\n\n> "),
        ("{a}\n\nAnswer {b}: ", {"a": "A", "b": ""}, "A\n\nAnswer : "),
        ('{"a": {a}, "b": {}} {{ x }} {1}', {"a": "A"}, '{"a": A, "b": {}} {{ x }} {1}'),
    ],
)
def test_places_of_empty_columns_go_away(template, texts, expected):
    assert rendered(template, texts) == expected


def test_alpacas_shape_is_its_template_without_input():
    without = ALPACA.replace("### Input:\n{input}\n\n", "")
    for text in ("", " \n"):
        assert rendered(ALPACA, {"instruction": "Add.", "input": text}) == without.replace(
            "{instruction}", "Add."
        )


PIECES = ["{a}", "{b}", "{c}", "# Head", " ", "\n", "\n\n", "\n \n", "{", "}", "{1}", "é: "]
templates = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
words = st.text("ab{}\\ \n1", min_size=1).filter(str.strip)
empties = st.sampled_from(["", " ", "\n\t"])


def filled(template, texts):
    """The plain substitution."""
    parts = re.split(r"(\{[abc]\})", template)
    return "".join(texts[p[1]] if n % 2 else p for n, p in enumerate(parts))


@given(templates, st.fixed_dictionaries(dict.fromkeys("abc", words)))
def test_without_empty_columns_a_template_is_filled_in_and_nothing_else(template, texts):
    assert rendered(template, texts) == filled(template, texts)


@given(templates, templates, words)
def test_a_template_of_one_prompt_is_filled_in_and_nothing_else(before, after, prompt):
    around = [re.sub(r"\{[abc]\}", "", text) for text in (before, after)]
    template = "{a}".join(around)
    assert rendered(template, {"a": prompt}) == template.replace("{a}", prompt)


@given(templates, st.fixed_dictionaries({"a": words, "b": empties, "c": empties}))
def test_empty_columns_take_only_their_lines_and_headings_along(template, texts):
    text = rendered(template, texts)
    # Whatever blank text stands for an empty column, the result is the same.
    assert text == rendered(template, texts | {"b": "", "c": ""})
    marked = rendered(template, texts | {"a": "W"})
    assert marked.count("W") == template.count("{a}")
    # Lines that stay are the template's, in its order.
    lines = iter(filled(line, {"a": "W", "b": "", "c": ""}) for line in template.split("\n"))
    assert all(line in lines for line in marked.split("\n")) or marked == ""
    for paragraph in re.split(r"\n\s*\n", template):
        if not fields_of(paragraph) or "{a}" in paragraph:
            for line in paragraph.split("\n"):
                if not fields_of(line) or "{a}" in line:
                    assert filled(line, {"a": "W", "b": "", "c": ""}) in marked
    last = template.split("\n")[-1]
    if re.sub(r"\{[abc]\}", "", last).strip():
        assert marked.endswith(filled(last, {"a": "W", "b": "", "c": ""}))


def row(**columns):
    return {"response": "5", "synthetic": "6", "proto_synthetic": "7"} | columns


def encode(tokenizer, rows, on_bad_rows="raise", **entry):
    resolved = ResolvedRun(task="generate", initial_policy="p", run_dir="r")
    t_spin = TSpinConfig(resolved=resolved, on_bad_rows=on_bad_rows).model_dump(exclude_none=True)
    cfg = DictDefault({"base_model": "p", "sequence_len": 256, "t_spin": t_spin})
    keys = DictDefault({"path": "data.jsonl"} | entry)
    strategy = instruction.load(tokenizer, cfg, keys)
    return strategy.wrap_dataset(Dataset.from_list(rows), process_count=1)


def test_rows_of_several_columns(tokenizer):
    rows = [
        row(instruction="Add.", input="2 and 3"),
        row(instruction="Name a {input}.", input=None),
        row(instruction="Go on.", input=" "),
    ]
    encoded = encode(tokenizer, rows, input_format=ALPACA)
    expected = [
        rendered(ALPACA, {"instruction": r["instruction"], "input": r["input"] or ""}) for r in rows
    ]
    assert encoded["prompt"] == expected
    assert ["### Input:" in text for text in expected] == [True, False, False]
    ids = [
        [i for i, label in zip(r["input_ids"], r["labels"], strict=True) if label == -100]
        for r in encoded
    ]
    assert ids == tokenizer(expected, add_special_tokens=False)["input_ids"]


def test_the_field_prompt_is_the_column_of_field_prompt(tokenizer):
    rows = [row(question="2?", prompt="no", hint="Count.")]
    keys = {"field_human": "question", "input_format": "{hint} {prompt} = "}
    assert encode(tokenizer, rows, **keys)["prompt"] == ["Count. 2? = "]
    with pytest.raises(TSpinError, match=r"data\.jsonl: no column 'question'"):
        encode(tokenizer, [row(hint="a")], **keys)
    assert encode(tokenizer, [row(hint="a")], input_format="{hint}: ")["prompt"] == ["a: "]


def test_a_name_that_is_not_a_column_is_named_with_the_columns(tokenizer):
    with pytest.raises(
        TSpinError,
        match=r"names \{inptu\}.*no column 'inptu'; it has 'response'.*'input'.*\{ inptu",
    ):
        encode(tokenizer, [row(input="a")], input_format="{input} {inptu}")
    text = r"{prompt} \boxed{ answer } {{}} "
    assert encode(tokenizer, [row(prompt="a")], input_format=text)["prompt"] == [
        text.replace("{prompt}", "a")
    ]


def test_a_template_without_a_column_is_refused(tokenizer):
    with pytest.raises(TSpinError, match=r"`prompt_template: 'Say \{\}\. '` names no column"):
        encode(tokenizer, [row(prompt="a")], input_format="Say {}. ")


def test_a_row_whose_columns_are_all_empty_is_a_bad_row(tokenizer):
    rows = [row(a="x", b=None), row(a=" ", b=None), row(a="", b="y")]
    with pytest.raises(TSpinError, match=r"row 1, column 'a', 'b': the text is empty"):
        encode(tokenizer, rows, input_format="{a}\n{b}\n")
    kept = encode(tokenizer, rows, "drop", input_format="{a}\n{b}\n")
    assert kept["prompt"] == ["x\n", "y\n"]
    with pytest.raises(TSpinError, match=r"row 0, column 'n': expected text, found int 3"):
        encode(tokenizer, [row(n=3)], input_format="{n}")
