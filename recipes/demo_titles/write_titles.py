"""Write the demo's rows: news titles of eight classes, generated from `lexicon.json`.

    python recipes/demo_titles/write_titles.py       # train.json, validation.json, test.json beside this file

A row has a `tag` (财经, 房产, …) and a `title`. A title is a template of its class, filled with words of the class and
with people, companies, cities, times and figures that all classes share. One in eight fits two classes alike (whether a
person whose engagement is announced plays football or sings, the title does not say), so that nobody is always right.

`pretraining_titles` yields what `make_base.py` trains the encoder on: titles without tags, none of a held-out row.
"""

import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

HERE = Path(__file__).parent
LEXICON = json.loads((HERE / "lexicon.json").read_text(encoding="utf-8"))
SPLIT_SIZES = {"test": 800, "validation": 400, "train": 1600}
SHARED_PORTION = 1 / 8


def draw_title(rng: random.Random) -> tuple[str, str]:
    """A title and its tag."""
    if rng.random() < SHARED_PORTION:
        shared = rng.choice(LEXICON["shared"])
        tag, templates = rng.choice(shared["classes"]), shared["templates"]
    else:
        tag = rng.choice(list(LEXICON["classes"]))
        templates = LEXICON["classes"][tag]["templates"]
    words = LEXICON["slots"] | LEXICON["classes"][tag]["slots"]
    values = {name: rng.choice(options) for name, options in words.items()} | numbers(rng) | names(rng)
    values |= {f"{name}2": rng.choice(words[name]) for name in ("place", "who") if name in words}
    title = rng.choice(templates).format(**values)
    return rng.choice(LEXICON["wraps"]).format(t=title, react=values["react"]), tag


def numbers(rng: random.Random) -> dict[str, str]:
    s2 = rng.randint(0, 3)
    values: dict[str, object] = {
        "n": rng.randint(2, 99),
        "p": f"{rng.uniform(0.2, 40):.1f}" if rng.random() < 0.5 else rng.randint(2, 60),
        "a": rng.randint(40, 90),
        "b": rng.randint(91, 190),
        "s": s2 + rng.randint(1, 3),
        "s2": s2,
        "age": rng.randint(3, 90),
        "year": rng.randint(2008, 2026),
        "money": rng.randint(2, 99) * 100,
    }
    return {name: str(value) for name, value in values.items()}


def names(rng: random.Random) -> dict[str, str]:
    def person() -> str:
        return rng.choice(LEXICON["surnames"]) + rng.choice(LEXICON["given"])

    company = rng.choice(LEXICON["company_first"]) + rng.choice(LEXICON["company_last"])
    return {"person": person(), "person2": person(), "company": company}


def draw_splits(seed: int) -> dict[str, list[tuple[str, str]]]:
    """Titles and tags of every split; no title occurs twice."""
    rng, seen = random.Random(f"{seed} rows"), set()

    def unseen() -> Iterator[tuple[str, str]]:
        while True:
            title, tag = draw_title(rng)
            if title not in seen:
                seen.add(title)
                yield title, tag

    return {split: list(islice(unseen(), size)) for split, size in SPLIT_SIZES.items()}


def pretraining_titles(seed: int, held_out: set[str]) -> Iterator[str]:
    """Endless titles, each at most once, none of them in `held_out`."""
    rng, seen = random.Random(f"{seed} pretraining"), set(held_out)
    while True:
        title, _ = draw_title(rng)
        if title not in seen:
            seen.add(title)
            yield title


def main(seed: int = 42) -> None:
    for split, rows in draw_splits(seed).items():
        lines = [json.dumps({"tag": tag, "title": title}, ensure_ascii=False) + "\n" for title, tag in rows]
        (HERE / f"{split}.json").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
