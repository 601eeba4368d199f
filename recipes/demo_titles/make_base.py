"""Make the demo's encoder: a small BERT that knows the titles' language but no classes, in the released layout.

    python recipes/demo_titles/make_base.py       # recipes/demo_titles/base, about 8 minutes on 2 cores

Its vocabulary are the characters of the titles; `recipes/pretrain_encoder.py` pretrains it on titles without tags, none
of which is a row of the validation or the test file. Words behind this command are handed on to that recipe.
"""

import shutil
import string
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

from write_titles import draw_splits, pretraining_titles

HERE = Path(__file__).parent
SEED = 42
NUM_TITLES = {"train": 200_000, "validation": 2_000}
SHAPE = ["--hidden_size", "192", "--num_layers", "3", "--max_length", "64", "--save_dtype", "float16"]
TRAINING = [
    *("--per_device_train_batch_size", "64", "--max_steps", "3100", "--learning_rate", "1e-3", "--warmup_steps", "200"),
    *("--logging_steps", "100", "--save_strategy", "no", "--disable_tqdm", "true", "--report_to", "none"),
]


def vocabulary(titles: list[str]) -> list[str]:
    """BERT's special tokens, ASCII (also inside words) and every other character of the titles."""
    ascii_characters = string.digits + string.ascii_letters
    others = sorted(
        {c for title in titles for c in title if not c.isspace()} - set(ascii_characters + string.punctuation)
    )
    inside = [f"##{c}" for c in ascii_characters]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ascii_characters, *string.punctuation, *inside, *others]


def main() -> None:
    splits = draw_splits(SEED)
    held_out = {title for split in ("validation", "test") for title, _ in splits[split]}
    titles = pretraining_titles(SEED, held_out)
    with tempfile.TemporaryDirectory() as directory:
        files = {name: Path(directory) / f"{name}.txt" for name in (*NUM_TITLES, "vocab")}
        texts = {name: list(islice(titles, number)) for name, number in NUM_TITLES.items()}
        texts["vocab"] = vocabulary(texts["train"])
        for name, lines in texts.items():
            files[name].write_text("\n".join(lines) + "\n", encoding="utf-8")
        given = {"tokenizer": files["vocab"], "train_file": files["train"], "validation_file": files["validation"]}
        words = [word for name, file in given.items() for word in (f"--{name}", str(file))]
        recipe = [sys.executable, str(HERE.parent / "pretrain_encoder.py")]
        rest = ["--output_dir", directory, "--seed", str(SEED), *SHAPE, *TRAINING, *sys.argv[1:]]
        subprocess.run([*recipe, *words, *rest], check=True)
        (HERE / "base").mkdir(exist_ok=True)
        for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"):
            shutil.copyfile(Path(directory) / "model" / name, HERE / "base" / name)


if __name__ == "__main__":
    main()
