"""The public strategies on small data sets, through what Axolotl calls: `load`, `wrap_dataset`."""

import copy
import json
import logging

import pytest
from axolotl.prompt_strategies.chat_template import load as axolotls_strategy
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.datasets import SFTDataset
from datasets import Dataset
from support.data import CHATML, conversations

from axolotl_tspin.config import ResolvedRun, TSpinConfig
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.strategies import DATASET_KEYS, STRATEGY_KEYS, chat_template, instruction, spin
from axolotl_tspin.strategies.tokenize import ROWS_PER_PROCESS, TripletDataset
from axolotl_tspin.triplets import from_row

SYNTHETIC, PROTO = "I think 7.", "Maybe 9?"


def encode(module, tokenizer, rows, task="train", ds_cfg=None, on_bad_rows="raise", **cfg):
    resolved = ResolvedRun(task=task, initial_policy="p", run_dir="r")
    t_spin = TSpinConfig(resolved=resolved, on_bad_rows=on_bad_rows).model_dump(exclude_none=True)
    cfg = DictDefault({"base_model": "p", "sequence_len": 256, "t_spin": t_spin} | cfg)
    ds_cfg = DictDefault({"path": "data.jsonl"} | (ds_cfg or {}))
    data = Dataset.from_list(rows)
    return module.load(tokenizer, cfg, ds_cfg).wrap_dataset(data, process_count=1)


def texts(tokenizer, row):
    return [tokenizer.decode(ids) for ids in from_row(row)]


def chat_row(**extra):
    return conversations(1)[0] | {"synthetic": SYNTHETIC, "proto_synthetic": PROTO} | extra


def spin_row(**extra):
    messages = conversations(1)[0]["messages"]
    generated = [messages[0], {"role": "assistant", "content": SYNTHETIC}]
    return {"real": messages, "generated": generated} | extra


def instruction_row(**extra):
    return {
        "prompt": "2 + 3?",
        "response": "5",
        "synthetic": SYNTHETIC,
        "proto_synthetic": PROTO,
    } | extra


def test_chat_template(tokenizer):
    (row,) = encode(chat_template, tokenizer, [chat_row()])
    messages = conversations(1)[0]["messages"]
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert texts(tokenizer, row) == [
        prompt,
        messages[1]["content"] + "<|im_end|>",
        SYNTHETIC + "<|im_end|>",
        PROTO + "<|im_end|>",
    ]
    assert set(row) == {"input_ids", "labels", "synthetic_ids", "proto_synthetic_ids"}


def test_instruction(tokenizer):
    (row,) = encode(instruction, tokenizer, [instruction_row()])
    assert texts(tokenizer, row) == [
        "### Instruction: 2 + 3?\n\n### Response: ",
        "5<|im_end|>",
        SYNTHETIC + "<|im_end|>",
        PROTO + "<|im_end|>",
    ]


def test_instruction_with_columns_and_a_template_of_ones_own(tokenizer):
    row = {"question": "2?", "answer": "2", "synthetic": "3", "proto_synthetic": "4"}
    keys = {"field_human": "question", "field_model": "answer", "input_format": "Q: {prompt}\nA: "}
    (encoded,) = encode(instruction, tokenizer, [row], ds_cfg=keys)
    assert texts(tokenizer, encoded)[:2] == ["Q: 2?\nA: ", "2<|im_end|>"]


def test_spin_with_and_without_a_proto_synthetic_column(tokenizer):
    rows = [spin_row()]
    (row,) = encode(spin, tokenizer, rows)
    assert texts(tokenizer, row)[1:] == [
        rows[0]["real"][1]["content"] + "<|im_end|>",
        SYNTHETIC + "<|im_end|>",
        SYNTHETIC + "<|im_end|>",
    ]
    (row,) = encode(spin, tokenizer, [spin_row(proto_synthetic=PROTO)])
    assert texts(tokenizer, row)[2:] == [SYNTHETIC + "<|im_end|>", PROTO + "<|im_end|>"]


@pytest.mark.parametrize(
    ("module", "row"),
    [(chat_template, chat_row), (instruction, instruction_row), (spin, spin_row)],
    ids=["chat_template", "instruction", "spin"],
)
def test_training_and_generation_see_the_same_prompt_and_annotated_tokens(tokenizer, module, row):
    (training,) = encode(module, tokenizer, [row()])
    (generation,) = encode(module, tokenizer, [row()], task="generate")
    assert generation["input_ids"] == training["input_ids"]
    assert generation["labels"] == training["labels"]
    prompt = from_row(training).prompt
    assert tokenizer(generation["prompt"], add_special_tokens=False)["input_ids"] == prompt
    assert generation["stop_ids"][0] == training["synthetic_ids"][-1]


@pytest.mark.parametrize("module", [chat_template, instruction])
def test_a_response_that_was_cut_gets_no_end_of_turn(tokenizer, module):
    row = chat_row() | instruction_row() | {"synthetic_finish_reason": "length"}
    (encoded,) = encode(module, tokenizer, [row])
    assert tokenizer.decode(encoded["synthetic_ids"]) == SYNTHETIC
    assert tokenizer.decode(encoded["proto_synthetic_ids"]) == PROTO + "<|im_end|>"


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("axolotl_tspin"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


def test_lengths_are_kept_and_what_became_of_the_rows_is_logged(tokenizer, log):
    rows = [
        instruction_row(),
        instruction_row(prompt="2 + 3? " * 40),
        instruction_row(response="5 " * 60),
        instruction_row(synthetic="5", proto_synthetic="5"),
    ]
    kept = encode(instruction, tokenizer, rows, sequence_len=64)
    assert len(kept) == 3
    assert max(len(ids) for ids in kept["input_ids"]) == 64
    assert tokenizer.eos_token_id not in kept[1]["input_ids"]
    assert (
        "data.jsonl: 4 rows read, 1 dropped; 1 × the prompt leaves no room for a response; "
        "1 responses cut to sequence_len 64; 1 rows with synthetic = annotated; "
        "1 rows with synthetic = proto-synthetic"
    ) in log.text
    dropped = encode(instruction, tokenizer, rows, sequence_len=64, excess_length_strategy="drop")
    assert len(dropped) == 2
    with pytest.raises(TSpinError, match=r"data\.jsonl: row 1: .*excess_length_strategy"):
        encode(instruction, tokenizer, rows, sequence_len=64, excess_length_strategy="raise")
    with pytest.raises(TSpinError, match="none of its 4 rows is left"):
        encode(instruction, tokenizer, rows, sequence_len=8)


@pytest.mark.parametrize(
    ("module", "row", "message"),
    [
        (instruction, {"prompt": "a", "response": "b"}, "no column 'synthetic', 'proto_synthetic'"),
        (instruction, instruction_row(response=None), "row 0, column 'response': .*null"),
        (instruction, instruction_row(response=""), "row 0, column 'response': .*empty"),
        (instruction, instruction_row(synthetic=None), "row 0, column 'synthetic': .*null"),
        (
            instruction,
            instruction_row(synthetic=" ", synthetic_finish_reason="length"),
            "row 0, column 'synthetic': .*'synthetic_finish_reason'.*cut.*drop the row",
        ),
        (chat_template, chat_row(tools="add(x)"), "row 0, column 'tools': expected JSON"),
        (chat_template, instruction_row(), "no column 'messages'"),
        (chat_template, chat_row(messages=[]), "row 0, column 'messages': .*an empty list"),
        (chat_template, chat_row(proto_synthetic=None), "row 0, column 'proto_synthetic': .*null"),
        (spin, {"real": conversations(1)[0]["messages"]}, "no column 'generated'"),
    ],
)
def test_bad_rows_are_named(tokenizer, module, row, message):
    with pytest.raises(TSpinError, match=rf"data\.jsonl: {message}"):
        encode(module, tokenizer, [row])


@pytest.mark.parametrize("content", [None, [{"type": "image"}, {"type": "text", "text": "look"}]])
@pytest.mark.parametrize("template", ["llama3", "tokenizer_default"])
def test_a_prompt_that_no_template_takes_for_text_is_named(tokenizer, content, template):
    answer = "5" if content is None else [{"type": "text", "text": "5"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    row = chat_row(messages=messages)
    with pytest.raises(TSpinError, match=r"row 0, column 'messages\[0\]': expected text"):
        encode(chat_template, tokenizer, [row], ds_cfg={"chat_template": template})


@pytest.mark.parametrize("module", [chat_template, instruction, spin])
def test_a_sampled_response_that_ended_at_once_is_its_end_of_turn(tokenizer, module):
    row = {
        chat_template: chat_row(synthetic=""),
        instruction: instruction_row(synthetic=""),
        spin: spin_row(synthetic=""),
    }[module]
    (encoded,) = encode(module, tokenizer, [row | {"proto_synthetic": PROTO}])
    assert encoded["synthetic_ids"] == [tokenizer.eos_token_id]


def test_no_words_are_not_surrounded_by_what_a_template_puts_around_words(tokenizer):
    spaced = CHATML.replace("{{ message['content'] }}", "{{ ' ' + message['content'] }}")
    row = chat_row(synthetic="", proto_synthetic="5")
    keys = {"chat_template": "jinja", "chat_template_jinja": spaced}
    (encoded,) = encode(chat_template, tokenizer, [row], ds_cfg=keys)
    assert texts(tokenizer, encoded)[2:] == ["<|im_end|>", " 5<|im_end|>"]


CALLS = [{"id": "a", "function": {"name": "add", "arguments": {"x": 1}}}]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def tool_row(calls, tools):
    messages = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "It is 2."},
    ]
    return chat_row(messages=messages, tools=tools)


def test_tools_and_calls_are_what_the_template_makes_of_them_however_they_are_stored(tokenizer):
    def prompt(*rows):
        keys = {"chat_template": "qwen_25"}
        encoded = encode(chat_template, tokenizer, list(rows), ds_cfg=keys, sequence_len=2048)
        return texts(tokenizer, encoded[0])[0]

    plain = prompt(tool_row(CALLS, TOOLS))
    assert '{"name": "add", "arguments": {"x": 1}}' in plain
    assert '"parameters": {"type": "object"}}' in plain
    as_text = [{"id": "a", "function": {"name": "add", "arguments": '{"x": 1}'}}]
    assert prompt(tool_row(as_text, TOOLS)) == plain
    assert prompt(tool_row(CALLS, json.dumps(TOOLS))) == plain
    # Arrow unites the keys of both rows' arguments and parameters.
    calls = [{"id": "b", "function": {"name": "find", "arguments": {"city": "Ulm"}}}]
    tools = [{"type": "function", "function": {"name": "find", "parameters": {"title": "City"}}}]
    assert prompt(tool_row(CALLS, TOOLS), tool_row(calls, tools)) == plain


def test_what_a_template_leaves_out_of_prompts_is_counted_and_warned_of_once(tokenizer, log):
    encode(chat_template, tokenizer, [tool_row(CALLS, TOOLS), chat_row(), tool_row(CALLS, None)])
    (warning,) = [r.getMessage() for r in log.records if r.levelname == "WARNING"]
    assert "data.jsonl: the chat template leaves out parts of the prompts (" in warning
    assert "2 × tool calls of assistant turns; 1 × tools)" in warning
    log.clear()
    keys = {"chat_template": "qwen_25"}
    encode(chat_template, tokenizer, [tool_row(CALLS, TOOLS)], ds_cfg=keys, sequence_len=2048)
    assert not [r for r in log.records if r.levelname == "WARNING"]


def test_a_response_of_which_the_template_leaves_out_tool_calls_is_refused(tokenizer):
    row = chat_row()
    row["messages"] = tool_row(CALLS, None)["messages"][:2]
    with pytest.raises(
        TSpinError, match=r"row 0: the chat template leaves out the response's tool"
    ):
        encode(chat_template, tokenizer, [row])


def test_an_annotated_response_may_be_a_tool_call(tokenizer):
    row = chat_row()
    row["messages"] = tool_row(CALLS, None)["messages"][:2]
    keys = {"chat_template": "qwen_25"}
    (encoded,) = encode(chat_template, tokenizer, [row], "generate", keys, sequence_len=2048)
    call = '<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>'
    assert encoded["annotated"].strip() == call
    assert tokenizer.decode(encoded["input_ids"]).endswith(call + "<|im_end|>")
    row["messages"][1] |= {"content": " It is 2. ", "tool_calls": [], "name": "tutor"}
    (encoded,) = encode(chat_template, tokenizer, [row], "generate", keys, sequence_len=2048)
    assert encoded["annotated"] == " It is 2. ", "the words, where the template adds nothing"


@pytest.mark.parametrize(
    "keys",
    [
        {"message_property_mappings": {"reasoning_content": "thought"}},
        {"field_thinking": "thought"},
        {"field_thinking": "thought", "template_thinking_key": "thinking"},
    ],
)
def test_reasoning_reaches_the_template(tokenizer, keys):
    name = keys.get("template_thinking_key", "reasoning_content")
    reasoning = "{% if message.KEY %}({{ message.KEY }}) {% endif %}".replace("KEY", name)
    content = "{{ message['content'] }}"
    thinking = CHATML.replace(content, reasoning + content)
    row = chat_row()
    row["messages"][1]["thought"] = "Two and three."
    entry = SFTDataset(chat_template="jinja", chat_template_jinja=thinking, **keys)
    ds_cfg = entry.model_dump(exclude_none=True)
    answer = row["messages"][1]["content"]
    (encoded,) = encode(chat_template, tokenizer, [row], "generate", ds_cfg)
    assert encoded["annotated"] == f"(Two and three.) {answer}"
    assert tokenizer.decode(encoded["input_ids"]).endswith(f"{encoded['annotated']}<|im_end|>")


def test_what_a_template_raises_names_the_row(tokenizer):
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('no system') }}{% endif %}"
    keys = {"chat_template": "jinja", "chat_template_jinja": strict + CHATML}
    rows = [chat_row(), chat_row()]
    rows[1]["messages"] = [{"role": "system", "content": "Be brief."}, *rows[1]["messages"]]
    with pytest.raises(TSpinError, match=r"row 1: the chat template cannot .*system, user: no sys"):
        encode(chat_template, tokenizer, rows, ds_cfg=keys)


def test_sharegpt_as_axolotl_validates_it(tokenizer):
    messages = conversations(1)[0]["messages"]
    names = {"user": "human", "assistant": "gpt"}
    shared = [{"from": names[m["role"]], "value": m["content"]} for m in messages]
    ds_cfg = SFTDataset(path="data.jsonl").model_dump(exclude_none=True)
    (theirs,) = encode(chat_template, tokenizer, [chat_row(messages=shared)], ds_cfg=ds_cfg)
    (ours,) = encode(chat_template, tokenizer, [chat_row()])
    assert theirs == ours


class Noting(dict):
    """A `datasets:` entry that knows which of its keys were asked for."""

    def __init__(self, entry):
        super().__init__(entry)
        self.read = set()

    def get(self, key, default=None):
        self.read.add(key)
        return super().get(key, default)


@pytest.mark.parametrize("module", [chat_template, instruction, spin])
def test_every_key_that_a_strategy_accepts_is_read(tokenizer, module):
    resolved = ResolvedRun(task="train", initial_policy="p", run_dir="r")
    t_spin = TSpinConfig(resolved=resolved).model_dump(exclude_none=True)
    cfg = DictDefault({"base_model": "p", "sequence_len": 256, "t_spin": t_spin})
    entry = Noting({"path": "d", "chat_template": "jinja", "chat_template_jinja": CHATML})
    module.load(tokenizer, cfg, entry)
    keys = STRATEGY_KEYS[module.__name__.rpartition(".")[2]]
    assert {DATASET_KEYS.get(key, key) for key in keys} <= entry.read


def test_a_tokenizer_without_chat_template_is_named(tokenizer):
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    bare.name_or_path = "my/base-model"
    with pytest.raises(TSpinError, match=r"my/base-model has no chat template.*chat_template:"):
        encode(chat_template, bare, [chat_row()])
    (row,) = encode(chat_template, bare, [chat_row()], chat_template="chatml")
    assert row["synthetic_ids"][-1] == bare.eos_token_id


def test_a_tokenizer_without_an_end_of_text_token_is_named(tokenizer):
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.eos_token = None
    with pytest.raises(TSpinError, match="eos_token"):
        encode(instruction, bare, [instruction_row()])


def test_a_first_dropped_row_may_come_late_and_errors_name_the_row_in_any_batch(tokenizer):
    rows = [instruction_row() for _ in range(2500)]
    rows[2100]["prompt"] = "long " * 300
    kept = encode(instruction, tokenizer, rows)
    assert len(kept) == 2499
    rows[2400]["prompt"] = " "
    with pytest.raises(TSpinError, match=r"row 2400, column 'prompt': the text is empty"):
        encode(instruction, tokenizer, rows)


BAD = [
    chat_row(messages=[]),
    chat_row(messages=[{"role": "user", "content": "2 + 3?"}]),
    chat_row(messages=[{"role": "user", "content": "2 + 3?"}, {"role": "x", "content": "5"}]),
]
KINDS = ("no list of messages", "no assistant turn", "an unknown role")


def test_bad_rows_in_bulk_are_counted_by_kind_and_the_first_ones_named(tokenizer):
    rows = [chat_row(), *BAD * 10]
    with pytest.raises(TSpinError, match=r"30 of 31 rows") as caught:
        encode(chat_template, tokenizer, rows)
    lines = str(caught.value).split("\n")
    assert all(f"10 × {kind}" in lines[0] for kind in KINDS)
    assert "on_bad_rows: drop" in lines[0]
    assert [f"row {n}, " in line for n, line in enumerate(lines[1:21], 1)] == [True] * 20
    assert lines[21:] == ["… and 10 more"]


@pytest.mark.parametrize("task", ["train", "generate"])
@pytest.mark.parametrize("good_row", [0, 3])
def test_bad_rows_can_be_dropped_and_are_counted(tokenizer, log, task, good_row):
    rows = list(BAD)
    rows.insert(good_row, chat_row())
    kept = encode(chat_template, tokenizer, rows, task, on_bad_rows="drop")
    (alone,) = encode(chat_template, tokenizer, [chat_row()], task)
    assert [row.get("source_row") for row in kept] == [good_row if task == "generate" else None]
    assert [{**row, "source_row": 0} for row in kept] == [{**alone, "source_row": 0}]
    assert "4 rows read, 3 dropped" in log.text
    assert all(f"1 × {kind}" in log.text for kind in KINDS)
    with pytest.raises(TSpinError, match=r"none of its 3 rows is left \(an unknown role, no a"):
        encode(chat_template, tokenizer, BAD, task, on_bad_rows="drop")


def test_a_row_that_the_template_cannot_render_is_a_bad_row(tokenizer):
    keys = {"chat_template": "gemma"}
    unanswered = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    bad = chat_row(messages=[*unanswered, {"role": "assistant", "content": "c"}])
    rows = [chat_row(), bad, chat_row()]
    with pytest.raises(TSpinError, match="row 1: the chat template cannot render"):
        encode(chat_template, tokenizer, rows, ds_cfg=keys)
    assert len(encode(chat_template, tokenizer, rows, ds_cfg=keys, on_bad_rows="drop")) == 2


@pytest.mark.parametrize(
    "flag", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"learn": False}]
)
def test_a_last_turn_that_is_not_to_be_trained_on_is_dropped_and_counted(tokenizer, log, flag):
    user, answer = conversations(1)[0]["messages"]
    ((key, value),) = flag.items()
    rows = [chat_row(messages=[user, answer | flag]), chat_row()]
    on = {"weight": 1, "train": True, "learn": True}[key]
    rows.append(chat_row(messages=[user, answer | {key: on}]))
    keys = {"message_field_training": "learn"}
    assert len(encode(chat_template, tokenizer, rows, ds_cfg=keys)) == 2
    assert f"1 × an assistant turn with '{key}: {value}'" in log.text


def test_an_earlier_turn_may_be_one_that_is_not_trained_on(tokenizer):
    turns = conversations(1)[0]["messages"]
    marked = [turns[0], turns[1] | {"weight": 0}, *turns]
    plain = encode(chat_template, tokenizer, [chat_row(messages=[*turns, *turns])])
    assert encode(chat_template, tokenizer, [chat_row(messages=marked)])[:] == plain[:]


def axolotls_prompt(tokenizer, row):
    """The messages of a row before its last, as Axolotl's own strategy renders them."""
    cfg = DictDefault({"sequence_len": 256, "chat_template": "chatml"})
    strategy = axolotls_strategy(tokenizer, cfg, DictDefault({"type": "chat_template"}))
    thread = strategy.get_conversation_thread(row)[:-1]
    return tokenizer.apply_chat_template(
        thread,
        tokenize=False,
        add_generation_prompt=True,
        chat_template=strategy.prompter.chat_template,
    )


@pytest.mark.parametrize("as_text", [False, True], ids=["a list", "JSON text"])
@pytest.mark.parametrize("own", [False, True], ids=["no system message", "a system message"])
@pytest.mark.parametrize("system", ["Be brief.", None], ids=["a system column", "none"])
def test_messages_and_the_system_column_are_read_as_axolotl_reads_them(
    tokenizer, as_text, own, system
):
    messages = conversations(1)[0]["messages"]
    messages = [{"role": "system", "content": "Be long."}, *messages] if own else messages
    row = chat_row(messages=json.dumps(messages) if as_text else messages)
    row |= {"system": system} if system else {}
    (encoded,) = encode(chat_template, tokenizer, [row], ds_cfg={"chat_template": "chatml"})
    prompt = texts(tokenizer, encoded)[0]
    assert prompt == axolotls_prompt(tokenizer, row)
    assert ("Be brief." in prompt) == (system is not None and not own)


@pytest.mark.parametrize("words", ["Be brief.", "", " "])
def test_only_a_null_system_column_adds_nothing(tokenizer, words):
    rows = [chat_row(system=None), chat_row(system=words)]
    encoded = encode(chat_template, tokenizer, rows)
    (plain,) = encode(chat_template, tokenizer, [chat_row()])
    assert encoded[0] == plain
    assert texts(tokenizer, encoded[1])[0].startswith(f"<|im_start|>system\n{words}<|im_end|>")
    dropped = encode(chat_template, tokenizer, rows, ds_cfg={"drop_system_message": True})
    assert dropped[1] == plain


@pytest.mark.parametrize("images", [["a.png"], "a.png", [{"bytes": "x"}]])
def test_a_row_with_images_is_refused_and_one_without_is_not(tokenizer, images):
    rows = [chat_row(images=images), chat_row(images=None), chat_row(images=images[:0])]
    with pytest.raises(TSpinError, match=r"row 0, column 'images': the row has images.*drop the"):
        encode(chat_template, tokenizer, rows)
    assert len(encode(chat_template, tokenizer, rows, on_bad_rows="drop")) == 2


@pytest.mark.parametrize(
    ("module", "row", "column"), [(spin, spin_row, "generated"), (chat_template, chat_row, None)]
)
def test_responses_to_different_prompts_are_refused(tokenizer, module, row, column):
    column = column or "synthetic"
    user, _ = conversations(1)[0]["messages"]
    answer = {"role": "assistant", "content": SYNTHETIC}
    other = {"role": "user", "content": "Another question"}
    with pytest.raises(TSpinError, match=rf"row 0, column '{column}': .*Another question"):
        encode(module, tokenizer, [row(**{column: [other, answer]})])
    system = {"role": "system", "content": "Be brief."}
    for same in ([user, answer], [answer], [system, user, answer]):
        (encoded,) = encode(module, tokenizer, [row(**{column: same})])
        assert texts(tokenizer, encoded)[2] == SYNTHETIC + "<|im_end|>"


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("function_call", "assistant"),
        ("model", "assistant"),
        ("chatgpt", "assistant"),
        ("ipython", "tool"),
        ("system_prompt", "system"),
        ("speaker", "user"),
    ],
)
def test_an_unknown_roles_hint_names_its_likely_side(tokenizer, name, role):
    user, answer = conversations(1)[0]["messages"]
    row = chat_row(messages=[user, {"role": name, "content": "x"}, answer])
    with pytest.raises(TSpinError, match=rf"roles: \{{{role}: \[{name}\]\}}"):
        encode(chat_template, tokenizer, [row])


def test_of_several_named_templates_the_default_is_taken(tokenizer):
    named = copy.deepcopy(tokenizer)
    named.chat_template = {"default": CHATML, "tool_use": "{{ raise_exception('not this') }}"}
    plain = encode(chat_template, tokenizer, [chat_row()])
    assert encode(chat_template, named, [chat_row()])[:] == plain[:]
    named.chat_template = {"tool_use": CHATML}
    with pytest.raises(TSpinError, match="has no chat template"):
        encode(chat_template, named, [chat_row()])


def test_columns_that_look_like_content_and_are_not_used_are_named_once(tokenizer, log):
    rows = [
        instruction_row(context=f"The box holds {n} red balls and {n + 1} blue ones.", id=str(n))
        for n in range(80)
    ]
    encode(instruction, tokenizer, rows)
    (warning,) = [r.getMessage() for r in log.records if r.levelname == "WARNING"]
    assert "data.jsonl: the column 'context' looks like content" in warning
    log.clear()
    template = {DATASET_KEYS["prompt_template"]: "{context}\n{prompt}\n"}
    encode(instruction, tokenizer, rows, ds_cfg=template)
    assert not [r for r in log.records if r.levelname == "WARNING"]


@pytest.mark.parametrize("rows", [40, 2 * ROWS_PER_PROCESS])
def test_small_data_is_encoded_in_this_process(tokenizer, rows):
    here = []

    class Noted(TripletDataset):
        def _encode_batch(self, columns, indices):
            here.append(len(indices))
            return super()._encode_batch(columns, indices)

    cfg = DictDefault(
        {
            "base_model": "p",
            "sequence_len": 256,
            "t_spin": {"resolved": {"task": "train", "initial_policy": "p", "run_dir": "r"}},
        }
    )
    strategy = instruction.load(tokenizer, cfg, DictDefault({"path": "data.jsonl"}))
    strategy.__class__ = Noted
    data = Dataset.from_list([instruction_row()] * rows)
    assert len(strategy.wrap_dataset(data, process_count=2)) == rows
    assert sum(here) == (rows if rows == 40 else 0), "the others' lists are their own"
