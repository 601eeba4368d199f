"""The classification demo's files are what its scripts make, and nothing held out has been pretrained on."""

import importlib.util
import json
from itertools import islice
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM, AutoTokenizer

DEMO = Path(__file__).parents[2] / "recipes" / "demo_titles"
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def titles():
    spec = importlib.util.spec_from_file_location("write_titles", DEMO / "write_titles.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(split):
    return [json.loads(line) for line in (DEMO / f"{split}.json").read_text(encoding="utf-8").splitlines()]


def test_files_are_what_the_generator_writes(titles):
    for split, drawn in titles.draw_splits(42).items():
        assert [(row["title"], row["tag"]) for row in rows(split)] == drawn
    found = [row["title"] for split in SPLITS for row in rows(split)]
    assert len(set(found)) == len(found) == sum(titles.SPLIT_SIZES.values())
    assert {row["tag"] for row in rows("test")} == set(titles.LEXICON["classes"])


def test_pretraining_has_no_held_out_title_and_none_twice(titles):
    seen = list(islice(titles.pretraining_titles(42, set()), 5000))
    assert len(set(seen)) == 5000
    again = list(islice(titles.pretraining_titles(42, set(seen[::2])), 2000))
    assert set(seen[1:2000:2]) <= set(again)
    assert not set(seen[::2]) & set(again)


def test_base_is_small_and_knows_every_character(titles):
    base = DEMO / "base"
    assert {file.name for file in base.iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt")
    }
    assert sum(file.stat().st_size for file in base.iterdir()) <= 4_000_000
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = [row["title"] for split in SPLITS for row in rows(split)]
    ids = tokenizer(texts)["input_ids"]
    assert tokenizer.unk_token_id not in {token for row in ids for token in row}
    model, loading = AutoModelForMaskedLM.from_pretrained(base, output_loading_info=True)
    assert not loading["missing_keys"]
    assert max(map(len, ids)) <= model.config.max_position_embeddings == tokenizer.model_max_length
