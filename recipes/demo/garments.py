"""The demo's small world: garments drawn from `lexicon.json`, and descriptions of them in many styles."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

LEXICON = json.loads((Path(__file__).parent / "lexicon.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Garment:
    """One garment: its type (裙), its kind (百褶裙) and the values of its other attributes."""

    type: str
    kind: str
    values: tuple[tuple[str, str], ...]

    @property
    def combination(self) -> frozenset[str]:
        return frozenset({self.kind, *(f"{attribute}#{value}" for attribute, value in self.values)})

    def pairs(self) -> list[tuple[str, str]]:
        """Every attribute with its value, type and kind first."""
        return [("类型", self.type), (LEXICON["garments"][self.type]["kind"], self.kind), *self.values]

    def fill(self, template: str, **more: str) -> str:
        info = LEXICON["garments"][self.type]
        return template.format(k=self.kind, u=info["unit"], n=info["noun"], **more)

    def shuffled(self, rng: random.Random) -> "Garment":
        return Garment(self.type, self.kind, tuple(rng.sample(self.values, len(self.values))))


def draw_garment(rng: random.Random, min_values: int, max_values: int) -> Garment:
    """A garment with so many attributes beside its kind, in the lexicon's order."""
    garment_type = rng.choice(list(LEXICON["garments"]))
    info = LEXICON["garments"][garment_type]
    chosen = set(rng.sample(info["attributes"], rng.randint(min_values, max_values)))
    values = tuple(
        (attribute, rng.choice(info["limits"].get(attribute, list(LEXICON["values"][attribute]))))
        for attribute in info["attributes"]
        if attribute in chosen
    )
    return Garment(garment_type, rng.choice(list(LEXICON["kinds"][info["kind"]])), values)


@dataclass(frozen=True)
class Style:
    """How a writer describes garments; `taste` ranks every set of phrases, and 0 keeps the lexicon's order."""

    register: str
    in_order: bool
    closes: bool
    taste: int

    def choose(self, rng: random.Random, options: list[str]) -> str:
        """One of the options, each half as likely as the one that this writer likes better."""
        ranked = list(options)
        if self.taste:
            random.Random(f"{self.taste} {options[0]}").shuffle(ranked)
        return rng.choices(ranked, [2.0**-i for i in range(len(ranked))])[0]


HOUSE_STYLE = Style("shop", in_order=True, closes=True, taste=0)


def draw_style(rng: random.Random) -> Style:
    register = rng.choice(list(LEXICON["registers"]))
    return Style(register, rng.random() < 0.6, rng.random() < 0.6, rng.randrange(1, 1_000_000))


def with_effect(rng: random.Random, template: str, effects: list[str]) -> str:
    """The template with its `{e}` filled; an effect longer than a few words is a clause and takes a comma."""
    effect = HOUSE_STYLE.choose(rng, effects)  # what a thing is praised for depends on the thing, not on the writer
    comma = "，" if len(effect) > 6 and "，{e}" not in template else ""
    return template.replace("{e}", comma + effect)


def attribute_sentence(rng: random.Random, attribute: str, value: str, template: str) -> str:
    return with_effect(rng, template, LEXICON["values"][attribute][value]).format(v=value)


def describe(rng: random.Random, garment: Garment, style: Style) -> str:
    """A paragraph: an opening with the kind, a sentence for every attribute, and for some writers a closing."""
    words = LEXICON["registers"][style.register]
    values = list(garment.values if style.in_order else garment.shuffled(rng).values)
    links = [""] * len(values)
    for link in words["link"]:  # no connective twice
        if rng.random() < 0.25:
            links[rng.randrange(len(values))] = link
    kind_effects = LEXICON["kinds"][LEXICON["garments"][garment.type]["kind"]][garment.kind]
    sentences = [garment.fill(with_effect(rng, style.choose(rng, words["open"]), kind_effects))]
    for link, (attribute, value) in zip(links, values, strict=True):
        template = style.choose(rng, LEXICON["sentences"][attribute])
        sentences.append(link + attribute_sentence(rng, attribute, value, template))
    if style.closes:
        sentences.append(garment.fill(style.choose(rng, words["close"])))
    return "。".join(sentences) + "。"
