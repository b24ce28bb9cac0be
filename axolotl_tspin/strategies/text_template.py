"""Text templates whose fields are a row's columns: `"{instruction}\\n{input}"`.

A field is an identifier in braces; other braces are text. The prompt that a row gives is the
template with its columns' texts, less the places of columns that are empty in that row:

- a line that has nothing but empty fields goes away;
- a paragraph whose every field is empty goes away with its heading;
- the last line stays if it has words, because the response follows it.
"""

import re
from collections.abc import Mapping, Sequence

PAPER_TEMPLATE = "### Instruction: {prompt}\n\n### Response: "
"""The prompt template of the paper's experiments (section B.1)."""

FIELD = re.compile(r"\{([^\W\d]\w*)\}")


def fields_of(template: str) -> list[str]:
    """List the names in a template's braces, each once."""
    return list(dict.fromkeys(FIELD.findall(template)))


def rendered(template: str, texts: Mapping[str, str]) -> str:
    """Put texts in place of a template's fields, as this module's docstring says.

    Args:
        texts: a text for every field; a blank one is empty. Braces in it are text.
    """
    lines = template.split("\n")
    empty = {name for name, text in texts.items() if not text.strip()}
    left_out = _lines_left_out(lines, empty) if empty else set()
    kept = "\n".join(line for number, line in enumerate(lines) if number not in left_out)
    return FIELD.sub(lambda match: "" if match[1] in empty else texts[match[1]], kept)


def _lines_left_out(lines: Sequence[str], empty: set[str]) -> set[int]:
    left_out = {n for n, line in enumerate(lines) if _is_empty(line, empty) and not _words(line)}
    paragraphs = _paragraphs(lines)
    gone = [p for p in paragraphs if _is_empty("\n".join(lines[n] for n in p), empty)]
    if _words(lines[-1]) and gone and gone[-1][-1] == len(lines) - 1:
        left_out.update(gone.pop()[:-1])
    kept = [paragraph for paragraph in paragraphs if paragraph not in gone]
    for paragraph in gone:
        # With the blank lines behind it. At the end these come before the response and stay, so
        # there it goes with the blank lines before it.
        behind = next((p[0] for p in kept if p > paragraph), None)
        before = kept[-1][-1] + 1 if kept else paragraph[0]
        end = paragraph[-1] + 1
        left_out.update(range(before, end) if behind is None else range(paragraph[0], behind))
    return left_out


def _paragraphs(lines: Sequence[str]) -> list[list[int]]:
    """Group the numbers of lines that no blank line parts."""
    paragraphs: list[list[int]] = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        if number == 0 or not lines[number - 1].strip():
            paragraphs.append([])
        paragraphs[-1].append(number)
    return paragraphs


def _is_empty(text: str, empty: set[str]) -> bool:
    """True if a text has fields and all of them are empty."""
    names = FIELD.findall(text)
    return bool(names) and empty.issuperset(names)


def _words(line: str) -> str:
    """The text of a line around its fields."""
    return FIELD.sub("", line).strip()
