"""Make examples/data/calendar_notes.jsonl: made-up notes, each with its entry of a calendar.

    python scripts/make_calendar_notes.py [--rows 48] [--seed 7] [--out FILE]

The entries are of one form, which a chat model does not choose by itself, and short: a small model
learns it within minutes on a CPU, and whether an entry is right can be checked.
"""

import argparse
import json
import random
from pathlib import Path

NAMES = [
    "Amira",
    "Ben",
    "Clara",
    "Dario",
    "Elena",
    "Farid",
    "Greta",
    "Hugo",
    "Ines",
    "Jonas",
    "Kira",
    "Leo",
    "Mona",
    "Nils",
    "Olga",
    "Paul",
]
EVENTS = [
    "lunch",
    "dinner",
    "coffee",
    "tennis",
    "chess",
    "a concert",
    "a film",
    "a walk",
    "a swim",
    "breakfast",
    "a piano lesson",
    "a meeting",
]
PLACES = [
    "the harbour",
    "the library",
    "the station",
    "the old market",
    "the museum",
    "the park",
    "the office",
    "the town hall",
    "the river",
    "the school",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MINUTES = ["00", "15", "30", "45"]
NOTES = [
    "{name} and I have {event} on {day} at {time}, at {place}.",
    "On {day} at {time}: {event} with {name} at {place}.",
    "{name} asked me to {place} on {day}. It is for {event}, at {time}.",
    "Do not forget {event} with {name}! It is at {place}, {day} at {time}.",
    "I meet {name} at {place} at {time} on {day} for {event}.",
]


def make_rows(rows: int, seed: int) -> list[dict]:
    """Make conversations of one user and one assistant turn, without repeated notes."""
    rng = random.Random(seed)
    made: dict[str, dict] = {}
    while len(made) < rows:
        name, event, place = rng.choice(NAMES), rng.choice(EVENTS), rng.choice(PLACES)
        day = rng.choice(DAYS)
        time = f"{rng.randint(8, 21)}:{rng.choice(MINUTES)}"
        note = rng.choice(NOTES).format(name=name, event=event, place=place, day=day, time=time)
        entry = f"{day} {time} | {event.removeprefix('a ')}"
        made[note] = {
            "messages": [
                {
                    "role": "user",
                    "content": f"Write this note as one line of a calendar: {note}",
                },
                {"role": "assistant", "content": entry},
            ]
        }
    return list(made.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--seed", type=int, default=7)
    default = Path(__file__).parent.parent / "examples" / "data" / "calendar_notes.jsonl"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    lines = [json.dumps(row) + "\n" for row in make_rows(args.rows, args.seed)]
    args.out.write_text("".join(lines))
    print(f"{len(lines)} notes in {args.out}")


if __name__ == "__main__":
    main()
