"""Every tuning method of recipes/classify.py on the same encoder and rows: accuracy, macro F1, size and time.

    python benchmarks/classify_methods.py output/encoder/model news.json tags.json reviews.json

The files are argument files with the rows' options (train_file, text_column, num_train_epochs, …) and nothing of a
method. Each method trains with its own learning rate, the head alone for more epochs than the file says: see METHODS.
The best epoch by macro F1 on the validation rows is what is tested. Results are kept in --results, and runs that are
there are not done again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
# options, and how many times the file's epochs
METHODS: dict[str, tuple[dict[str, Any], int]] = {
    "full": ({"learning_rate": 3e-4}, 1),
    "lora": ({"learning_rate": 2e-3, "lora_r": 8, "lora_alpha": 16}, 1),
    "p_tuning_v2": ({"learning_rate": 3e-3, "pre_seq_len": 16}, 1),
    "freeze": ({"learning_rate": 5e-4, "freeze_trainable_layers": 1}, 1),
    "ia3": ({"learning_rate": 3e-3}, 1),
    "prompt_tuning": ({"learning_rate": 3e-3, "pre_seq_len": 16}, 1),
    "p_tuning": ({"learning_rate": 1e-3, "pre_seq_len": 16}, 1),
    "head": ({"learning_rate": 3e-3}, 6),
}
COMMON = {
    **{"do_train": True, "do_eval": True, "do_predict": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
    **{"load_best_model_at_end": True, "save_total_limit": 1, "logging_steps": 50, "report_to": "none"},
    **{"lr_scheduler_type": "cosine", "warmup_steps": 0.06, "per_device_eval_batch_size": 200, "disable_tqdm": True},
}


def run(rows: dict[str, Any], encoder: str, method: str) -> dict[str, float]:
    """Scores on the test rows, trained parameters and seconds of training, of one run of the recipe."""
    own, times = METHODS[method]
    with tempfile.TemporaryDirectory() as output_dir:
        arguments = {**COMMON, **rows, **own, "tuning": method, "model_name_or_path": encoder, "output_dir": output_dir}
        arguments["num_train_epochs"] = times * rows.get("num_train_epochs", 3)
        file = Path(output_dir) / "arguments.json"
        file.write_text(json.dumps(arguments), encoding="utf-8")
        command = [sys.executable, str(ROOT / "recipes" / "classify.py"), str(file)]
        done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr[-4000:])
        predicted, trained = (
            json.loads((Path(output_dir) / f"{step}_results.json").read_text()) for step in ("predict", "train")
        )
    return {
        "accuracy": predicted["predict_accuracy"],
        "f1_macro": predicted["predict_f1_macro"],
        "trained": trained["trainable_parameters"],
        "seconds": trained["train_runtime"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--results", type=Path, default=ROOT / "output" / "classify_methods.jsonl")
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    done = {line["run"]: line["found"] for line in map(json.loads, lines)}
    table = Table("method", *(file.stem for file in options.runs), "trained", "seconds", title="accuracy / macro F1")
    for method in options.methods:
        found = []
        for file in options.runs:
            rows = json.loads(file.read_text(encoding="utf-8"))
            key = json.dumps([rows, options.encoder, method, METHODS[method]], sort_keys=True)
            if key not in done:
                done[key] = run(rows, options.encoder, method)
                with options.results.open("a", encoding="utf-8") as results:
                    results.write(json.dumps({"run": key, "found": done[key]}) + "\n")
            found.append(done[key])
        scores = (f"{one['accuracy']:.4f} / {one['f1_macro']:.4f}" for one in found)
        table.add_row(method, *scores, f"{found[0]['trained']:,}", f"{found[0]['seconds']:.0f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
