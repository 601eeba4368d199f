"""Write the demo's rows: attribute lists → descriptions of garments, generated from `lexicon.json`.

    python recipes/demo/write_corpus.py            # train.json, validation.json, test.json beside this file

A row's `content` lists attributes as ADGEN does (类型#裙*裙型#百褶裙*颜色#红色); its `summary` describes the garment in
one shop's house style: the attributes in the order of the list, a sentence each, with favourite turns of phrase. There
are more than 10^7 combinations of attributes, each with thousands of wordings, so nothing can be learned by heart.

`pretraining_documents` yields what `make_base.py` trains the base on: the same language in other forms (catalogues,
notes, diaries, magazines, live sales, customers' questions and what is said to them), in any writer's style. In it
there is never an attribute list in the form of `content`, and never a combination of attributes of a held-out row.
"""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from garments import HOUSE_STYLE, LEXICON, Garment, attribute_sentence, describe, draw_garment, draw_style

HERE = Path(__file__).parent
SPLIT_SIZES = {"test": 80, "validation": 50, "train": 1600}


@dataclass(frozen=True)
class Listing:
    """How a writer lists attributes: in words, or with marks of his own between names, values and pairs."""

    template: str
    joiner: str
    separator: str

    def write(self, rng: random.Random, garment: Garment) -> str:
        def mark(pairs: Iterable[tuple[str, str]]) -> str:
            return self.separator.join(attribute + self.joiner + value for attribute, value in pairs)

        return garment.fill(
            self.template,
            marked=mark(garment.pairs()),
            marked_values=mark(garment.values),
            pairs="，".join(f"{attribute}是{value}" for attribute, value in garment.values),
            values="、".join(value for _, value in garment.values),
            lines="\n".join(f"{attribute} {value}" for attribute, value in garment.values),
            bullets="\n".join(f"* {value}" for _, value in garment.values),
            tags=" ".join(f"#{value}" for value in [garment.kind, *(value for _, value in garment.values)]),
            number=str(rng.randint(100, 9999)),
        )


def draw_listing(rng: random.Random) -> Listing:
    template = rng.choice(LEXICON["listings" if rng.random() < 0.5 else "marked_listings"])
    return Listing(template, rng.choice(LEXICON["joiners"]), rng.choice(LEXICON["separators"]))


def ask(rng: random.Random, garment: Garment) -> tuple[str, str]:
    """A customer's question and its answer: about one attribute, or about washing, sizes, prices and the like."""
    if rng.random() < 0.5:
        question, answers = rng.choice(LEXICON["advice"])
        number = str(rng.randint(5, 90) * 10 + 9)
        return garment.fill(question, number=number), garment.fill(rng.choice(answers), number=number)
    attribute, value = rng.choice(garment.values)
    question = garment.fill(f"这{{u}}{{k}}{rng.choice(LEXICON['asks'][attribute])}")
    return question, attribute_sentence(rng, attribute, value, rng.choice(LEXICON["answers"])) + "。"


def page(rng: random.Random, draw: Iterator[Garment]) -> str:
    """One to three entries by one writer, all made alike: attributes listed, then what is written or said to them."""
    style, headed = draw_style(rng), rng.random() < 0.3
    listing, other_listing = draw_listing(rng), draw_listing(rng)
    act = rng.choices(["describe", "relist", "ask", "reply"], [0.6, 0.2, 0.12, 0.08])[0]
    said = act in ("ask", "reply") or rng.random() < 0.3
    frame = rng.choice(LEXICON["frames"]["said" if said else "written"])
    first, second = rng.choice(LEXICON["speakers"] + ([["问", "答"]] if act in ("ask", "reply") else []))
    entries = []
    for garment in islice(draw, rng.choice([1, 1, 1, 2, 2, 3])):
        garment = garment.shuffled(rng) if rng.random() < 0.5 else garment
        listed = listing.write(rng, garment)
        if act == "describe":
            answer = describe(rng, garment, style)
        elif act == "relist":
            answer = other_listing.write(rng, garment if style.in_order else garment.shuffled(rng))
        elif act == "ask":
            question, answer = ask(rng, garment)
            listed = f"{listed}\n{question}" if rng.random() < 0.7 else question
        else:
            answer = garment.fill(rng.choice(LEXICON["replies"]), number=str(rng.randint(2, 30)))
        entries.append(frame.format(first=first, second=second, listed=listed, answer=answer))
    manner = "依次" if style.in_order else "随意"
    heading = {
        "describe": f"介绍·{LEXICON['registers'][style.register]['name']}·{manner}\n",
        "relist": f"抄写·{manner}\n",
        "ask": "答顾客问\n",
        "reply": "柜台对话\n",
    }[act]
    return (heading if headed else "") + "\n".join(entries)


def note(rng: random.Random, garment: Garment) -> str:
    """A description alone, a description and what it says in short, or what each attribute is and does."""
    form = rng.random()
    if form < 0.7:
        noted = "\n记下来：" + "，".join(f"{a}是{v}" for a, v in garment.values) + "。"
        return describe(rng, garment, draw_style(rng)) + (noted if form < 0.3 else "")
    templates = ["{a}：{{v}}，{{e}}。", "{{v}}是一种{a}，{{e}}。", "说到{a}，{{v}}{{e}}。"]
    return "\n".join(attribute_sentence(rng, a, v, rng.choice(templates).format(a=a)) for a, v in garment.values)


def pretraining_documents(seed: int, held_out: set[frozenset[str]]) -> Iterator[str]:
    """Endless documents of the garments' language, in which no combination of `held_out` occurs."""
    rng = random.Random(f"{seed} pretraining")

    def allowed(min_values: int, max_values: int) -> Iterator[Garment]:
        while True:
            garment = draw_garment(rng, min_values, max_values)
            if garment.combination not in held_out:
                yield garment

    paged, noted = allowed(2, 6), allowed(1, 7)
    while True:
        yield page(rng, paged) if rng.random() < 0.8 else note(rng, next(noted))


def draw_splits(seed: int) -> dict[str, list[Garment]]:
    """The garments of every split; no combination of attributes occurs twice."""
    rng, seen = random.Random(f"{seed} rows"), set()

    def unseen() -> Iterator[Garment]:
        while True:
            garment = draw_garment(rng, 4, 6)
            if garment.combination not in seen:
                seen.add(garment.combination)
                yield garment

    return {split: list(islice(unseen(), size)) for split, size in SPLIT_SIZES.items()}


def main(seed: int = 42) -> None:
    for split, garments in draw_splits(seed).items():
        rng = random.Random(f"{seed} {split}")
        with (HERE / f"{split}.json").open("w", encoding="utf-8") as file:
            for garment in garments:
                content = "*".join(f"{attribute}#{value}" for attribute, value in garment.pairs())
                row = {"content": content, "summary": describe(rng, garment, HOUSE_STYLE)}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
