"""What a message says: content parts, thoughts within the words, and what is not trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

PART_TEXTS = ("text", "content", "value")
"""Keys of a content part that may hold its text, as in Axolotl."""

TEXT_TYPES = ("text", "input_text", "output_text")
MEDIA = ("image", "audio", "video")

THOUGHTS = (
    ("<think>", "</think>"),
    ("<reasoning>", "</reasoning>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
SOLUTION = ("<|begin_of_solution|>", "<|end_of_solution|>")
"""The tags at which Axolotl's `split_thinking` splits an assistant's words."""


def joined_parts(content: Any) -> Any:
    """Join content parts to one text, if all are text; anything else comes back as it is."""
    if not isinstance(content, list):
        return content
    texts = [text for part in content if (text := _part_text(part)) is not None]
    return "".join(texts) if len(texts) == len(content) else content


def _part_text(part: Any) -> str | None:
    """Get the text of a content part; None if it is something else."""
    if not isinstance(part, Mapping):
        return None
    has_text = any(key in part for key in PART_TEXTS)
    kind = part.get("type") or ("text" if has_text else None)
    text = next((part[key] for key in PART_TEXTS if part.get(key)), "")
    medium = any(word in key for key, value in part.items() if value for word in MEDIA)
    return text if kind in TEXT_TYPES and isinstance(text, str) and not medium else None


def part_types(content: Sequence[Any]) -> str:
    """List the types of content parts, for an error."""
    return ", ".join(sorted({str(part.get("type")) for part in content}))


def parts_train_all(content: Any) -> bool | None:
    """True if flags of content parts say that all text is trained on, False if some is not, by
    Axolotl's rule; None if there are no flags."""
    if not isinstance(content, list):
        return None
    flags = [(part, flag) for part in content if (flag := _training_flag(part)) is not None]
    return all(flag for part, flag in flags if _part_text(part)) if flags else None


def _training_flag(part: Any) -> bool | None:
    if not isinstance(part, Mapping):
        return None
    if part.get("train") is not None:
        return bool(part["train"])
    return None if part.get("weight") is None else part["weight"] != 0


def are_spans(value: Any) -> bool:
    """True if a value is what `message_field_training_detail` names: a list of spans, each with its
    first and last character, and `train`."""
    return isinstance(value, list) and all(
        isinstance(span, Mapping)
        and all(isinstance(span.get(key), int) for key in ("begin_offset", "end_offset"))
        and "train" in span
        for span in value
    )


def spans_train_all(spans: Sequence[Mapping[str, Any]], words: str) -> bool:
    """True if spans say that all words are trained on. Axolotl leaves out words without a span."""
    end = 0
    for span in sorted(spans, key=lambda span: span["begin_offset"]):
        if not span["train"] or words[end : span["begin_offset"]].strip():
            return False
        end = max(end, span["end_offset"] + 1)
    return not words[end:].strip()


def split_thought(words: str) -> tuple[str, str] | None:
    """Split an assistant's words into a thought and the rest; None if no tags are in it. The result
    is that of Axolotl's `split_thinking`."""
    for begin, end in THOUGHTS:
        if begin in words and end in words:
            thought = words[words.find(begin) + len(begin) : words.find(end)]
            rest = words[words.find(end) + len(end) :].lstrip()
            return thought.strip(), _solution(rest)
    return None


def _solution(words: str) -> str:
    begin, end = SOLUTION
    if begin not in words or end not in words:
        return words
    return words[words.find(begin) + len(begin) : words.find(end)].strip()
