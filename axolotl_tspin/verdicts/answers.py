"""The checkable answer in a response (`t_spin.answer`, `reward-check --answer`)."""

import re


def answer_of(pattern: re.Pattern[str], text: str) -> str | None:
    """Find a response's answer; None if it has none.

    The answer is the first group of the pattern's last match, or the whole match, without thousands
    separators, spaces and a final point.
    """
    matches = list(pattern.finditer(text))
    if not matches:
        return None
    found = matches[-1].group(1 if pattern.groups else 0) or ""
    return re.sub(r"[,\s]", "", found).rstrip(".")


def is_right(pattern: re.Pattern[str], annotated: str, response: str) -> bool | None:
    """True if both answers are equal; None if the annotated response has none."""
    right = answer_of(pattern, annotated)
    return None if right is None else answer_of(pattern, response) == right
