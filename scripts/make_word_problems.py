"""Make examples/data/word_problems.jsonl: word problems with worked solutions.

    python scripts/make_word_problems.py [--rows 256] [--seed 7] [--out FILE]

Every answer is checkable: a solution's last line is `#### <number>`. The same arguments give the
same file, byte for byte; a test compares the committed file.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

NAMES = ["Ada", "Ben", "Clara", "Dario", "Elif", "Femi", "Grace", "Hugo", "Ines", "Jonas"]
THINGS = ["apples", "pencils", "stickers", "marbles", "books", "shells", "cards", "buttons"]

Problem = tuple[str, list[str], int]


def shopping(rng: random.Random) -> Problem:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    count, price, paid = rng.randint(3, 9), rng.randint(2, 8), rng.choice([80, 100])
    cost = count * price
    return (
        f"{name} buys {count} {thing} at ${price} each and pays with ${paid}. "
        f"How many dollars does {name} get back?",
        [
            f"The {thing} cost {count} * {price} = {cost} dollars.",
            f"{name} gets back {paid} - {cost} = {paid - cost} dollars.",
        ],
        paid - cost,
    )


def giving(rng: random.Random) -> Problem:
    name, friend = rng.sample(NAMES, 2)
    thing = rng.choice(THINGS)
    start, given, found = rng.randint(30, 60), rng.randint(5, 25), rng.randint(2, 15)
    left = start - given
    return (
        f"{name} has {start} {thing}. {name} gives {given} of them to {friend} and then finds "
        f"{found} more. How many {thing} does {name} have now?",
        [
            f"After giving some away, {name} has {start} - {given} = {left} {thing}.",
            f"After finding more, {name} has {left} + {found} = {left + found} {thing}.",
        ],
        left + found,
    )


def walking(rng: random.Random) -> Problem:
    name = rng.choice(NAMES)
    distance, days, extra = rng.randint(2, 9), rng.randint(3, 7), rng.randint(3, 20)
    weekly = distance * days
    return (
        f"{name} walks {distance} km a day for {days} days and then {extra} km on one more day. "
        f"How many km does {name} walk in all?",
        [
            f"In {days} days {name} walks {distance} * {days} = {weekly} km.",
            f"In all that is {weekly} + {extra} = {weekly + extra} km.",
        ],
        weekly + extra,
    )


def sharing(rng: random.Random) -> Problem:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    friends, each, kept = rng.randint(3, 8), rng.randint(3, 9), rng.randint(1, 12)
    total = friends * each + kept
    return (
        f"{name} has {total} {thing}, keeps {kept} and shares the rest equally among {friends} "
        f"friends. How many {thing} does each friend get?",
        [
            f"{name} shares {total} - {kept} = {total - kept} {thing}.",
            f"Each friend gets {total - kept} / {friends} = {each} {thing}.",
        ],
        each,
    )


def saving(rng: random.Random) -> Problem:
    name = rng.choice(NAMES)
    weekly, spent, weeks = rng.randint(8, 20), rng.randint(2, 7), rng.randint(3, 9)
    saved = weekly - spent
    return (
        f"{name} earns ${weekly} a week and spends ${spent} of it. "
        f"How many dollars does {name} save in {weeks} weeks?",
        [
            f"Each week {name} saves {weekly} - {spent} = {saved} dollars.",
            f"In {weeks} weeks that is {saved} * {weeks} = {saved * weeks} dollars.",
        ],
        saved * weeks,
    )


KINDS: list[Callable[[random.Random], Problem]] = [shopping, giving, walking, sharing, saving]


def make_rows(rows: int, seed: int) -> list[dict]:
    """Make conversations of one user and one assistant turn, without repeated problems."""
    rng = random.Random(seed)
    made: dict[str, dict] = {}
    while len(made) < rows:
        question, steps, answer = rng.choice(KINDS)(rng)
        solution = "\n".join([*steps, f"#### {answer}"])
        made[question] = {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": solution},
            ],
            "answer": str(answer),
        }
    return list(made.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--seed", type=int, default=7)
    default = Path(__file__).parent.parent / "examples" / "data" / "word_problems.jsonl"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in make_rows(args.rows, args.seed)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(lines))
    print(f"{len(lines)} problems in {args.out}")


if __name__ == "__main__":
    main()
