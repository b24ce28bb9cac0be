"""Every block of docs/data_shapes.md reads rows of its data set's published shape."""

import json
import re
from typing import Any, NamedTuple

import pytest
import yaml
from axolotl.utils.schemas.datasets import SFTDataset
from support.data import ROOT
from support.strategies import prompt_and_response, read_entry
from support.templates import tokenizer_for

PAGE = (ROOT / "docs" / "data_shapes.md").read_text()
SECTIONS = {
    section.partition("\n")[0]: section for section in re.split(r"^## ", PAGE, flags=re.M)[1:]
}
USER, ASSISTANT, END = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n"


def blocks(section: str) -> list[dict[str, Any]]:
    """The entries of `datasets` in a section's YAML."""
    found = re.findall(r"^```yaml\n(.*?)^```", SECTIONS[section], re.M | re.S)
    return [entry for text in found for entry in yaml.safe_load(text)["datasets"]]


class Case(NamedTuple):
    """A row of a section's data set, and the texts that its YAML makes of it.

    Attributes:
        prompt: a part of it where there is a template.
        template: the chat template; ChatML where there is none.
        block: which of the section's entries.
        task: what the data is read for; data that has its responses is read to train.
    """

    section: str
    row: dict[str, Any]
    prompt: str
    response: str
    template: str = ""
    block: int = 0
    task: str = "generate"


def turns(*words: str, names: tuple[str, ...] = ("role", "content", "user", "assistant")):
    role, content, user, assistant = names
    return [{role: (user, assistant)[index % 2], content: text} for index, text in enumerate(words)]


SHAREGPT = ("from", "value", "human", "gpt")
TOOLS = [
    {
        "name": "live_giveaways_by_type",
        "description": "Retrieve live giveaways.",
        "parameters": {"type": {"description": "The type.", "type": "str", "default": "game"}},
    }
]
CALLS = [
    {"name": "live_giveaways_by_type", "arguments": {"type": "beta"}},
    {"name": "live_giveaways_by_type", "arguments": {"type": "game"}},
]
HERMES_SYSTEM = "You are a function calling AI model. <tools> [...] </tools>"
HERMES_CALL = '<tool_call>\n{"arguments": {"symbol": "NVDA"}, "name": "get_stock"}\n</tool_call>\n'
HERMES_RESULT = '<tool_response>\n{"price": 7}\n</tool_response>\n'

CASES = [
    Case(
        "UltraChat",
        {
            "prompt": "Write a haiku.",
            "prompt_id": "f0e3",
            "messages": turns("Write a haiku.", "Leaves.", "Another.", "Snow."),
        },
        f"{USER}Write a haiku.{END}{ASSISTANT}",
        "Leaves.",
    ),
    Case(
        "Tulu 3",
        {
            "id": "oasst1_1",
            "messages": [{"role": "system", "content": "Be kind."}, *turns("Hi.", "Hello.")],
            "source": "ai2-adapt-dev/oasst1_converted",
        },
        f"<|im_start|>system\nBe kind.{END}{USER}Hi.{END}{ASSISTANT}",
        "Hello.",
    ),
    Case(
        "OpenHermes 2.5",
        {
            "custom_instruction": None,
            "topic": None,
            "system_prompt": None,
            "source": "airoboros2.2",
            "conversations": turns("Hi.", "Hello.", names=SHAREGPT),
        },
        f"{USER}Hi.{END}{ASSISTANT}",
        "Hello.",
    ),
    Case(
        "Alpaca",
        {"instruction": "Add.", "input": "2, 3", "output": "5", "text": "Below is …"},
        "### Instruction:\nAdd.\n\n### Input:\n2, 3\n\n### Response: ",
        "5",
    ),
    Case(
        "Alpaca",
        {"instruction": "Say hello.", "input": "", "output": "Hello.", "text": "Below is …"},
        "### Instruction:\nSay hello.\n\n### Response: ",
        "Hello.",
    ),
    Case(
        "Dolly",
        {
            "instruction": "When?",
            "context": "It began in 2000.",
            "response": "In 2000.",
            "category": "closed_qa",
        },
        "### Context:\nIt began in 2000.\n\n### Instruction: When?\n\n### Response: ",
        "In 2000.",
    ),
    Case(
        "Dolly",
        {"instruction": "Hi.", "context": "", "response": "Hello.", "category": "open_qa"},
        "### Instruction: Hi.\n\n### Response: ",
        "Hello.",
    ),
    Case(
        "GSM8K",
        {"question": "2 + 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"},
        "### Instruction: 2 + 3?\n\n### Response: ",
        "2 + 3 = <<2+3=5>>5\n#### 5",
    ),
    Case(
        "xLAM",
        {
            "id": 0,
            "query": "Where are giveaways?",
            "answers": json.dumps(CALLS),
            "tools": json.dumps(TOOLS),
        },
        f"<tools>\n{json.dumps(TOOLS[0])}\n</tools>",
        "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in CALLS),
        template="trl/qwen2_5",
    ),
    Case(
        "Hermes function calling",
        {
            "id": "85f2",
            "conversations": [
                {"from": "system", "value": HERMES_SYSTEM},
                {"from": "human", "value": "What is NVDA worth?"},
                {"from": "gpt", "value": HERMES_CALL},
                {"from": "tool", "value": HERMES_RESULT},
                {"from": "gpt", "value": "It is 7."},
            ],
            "tools": json.dumps([{"type": "function", "function": TOOLS[0]}]),
            "category": "Information Extraction",
            "subcategory": "Stock",
            "task": "Get a price",
        },
        f"<|im_start|>system\n{HERMES_SYSTEM}{END}{USER}What is NVDA worth?{END}"
        f"{ASSISTANT}{HERMES_CALL}{END}<|im_start|>tool\n{HERMES_RESULT}{END}{ASSISTANT}",
        "It is 7.",
    ),
    Case(
        "OpenThoughts",
        {
            "system": "Write <|begin_of_thought|> and <|end_of_thought|>.",
            "conversations": turns(
                "2 + 3?",
                "<|begin_of_thought|>\n\nI add.\n\n<|end_of_thought|>\n\n"
                "<|begin_of_solution|>\n\nFive.\n\n<|end_of_solution|>",
                names=("from", "value", "user", "assistant"),
            ),
        },
        f"{USER}2 + 3?{END}{ASSISTANT}",
        "<think>\nI add.\n</think>\n\nFive.",
        template="trl/qwen3",
    ),
    Case(
        "OpenThoughts 3",
        {
            "difficulty": 3,
            "source": "code",
            "domain": "code",
            "conversations": turns("2 + 3?", "<think>\nI add.\n</think>\n\nFive.", names=SHAREGPT),
        },
        f"{USER}2 + 3?{END}{ASSISTANT}",
        "<think>\nI add.\n</think>\n\nFive.",
        template="trl/qwen3",
    ),
    *(
        Case(
            "SPIN",
            {"real": turns("2 + 3?", "Five."), "generated": turns("2 + 3?", "Six.")},
            f"{USER}2 + 3?{END}{ASSISTANT}",
            "Five.",
            block=block,
            task=task,
        )
        for block, task in enumerate(["train", "generate"])
    ),
]


def test_every_section_and_its_blocks_have_cases():
    assert {(case.section, case.block) for case in CASES} == {
        (section, block) for section in SECTIONS for block in range(len(blocks(section)))
    }
    for heading in SECTIONS:
        assert re.search(rf"^\| \[{re.escape(heading)}\]\(#", PAGE, re.M), heading


def made_into_messages(row: dict[str, Any]) -> dict[str, Any]:
    """What the page's Python makes of a row of xLAM."""
    (code,) = re.findall(r"^```python\n(.*?)^```", SECTIONS["xLAM"], re.M | re.S)
    names: dict[str, Any] = {"__name__": "page"}
    exec(code, names)
    return names["as_messages"](row) | {"tools": row["tools"]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.section.replace(" ", "-"))
def test_a_row_of_the_published_shape(case, tokenizer):
    entry = blocks(case.section)[case.block]
    policy = tokenizer_for(case.template, tokenizer) if case.template else tokenizer
    row = made_into_messages(case.row) if case.section == "xLAM" else case.row
    (encoded,) = read_entry(policy, entry, [row], case.task)
    kept = SFTDataset.model_validate(entry).model_dump(exclude_none=True)
    assert entry.items() <= kept.items(), "Axolotl drops a key"
    prompt, response = prompt_and_response(policy, encoded)
    assert prompt == case.prompt or (case.template and case.prompt in prompt)
    assert response == case.response + policy.eos_token
