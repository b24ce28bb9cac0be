"""The example data, and a template."""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
WORD_PROBLEMS = ROOT / "examples" / "data" / "word_problems.jsonl"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def conversations(rows: int) -> list[dict]:
    with open(WORD_PROBLEMS) as file:
        return [json.loads(line) for line, _ in zip(file, range(rows), strict=False)]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
