"""Every tuning method on the demo's data, from the same base, with the same rows and number of steps.

    python benchmarks/methods.py --seeds 0 1 2 --write_docs    # half an hour on 2 cores; docs/methods.md, .zh.md, .svg
    python benchmarks/methods.py --methods lora ia3 --steps 20 --seeds 0
    python benchmarks/methods.py --methods ia3 --learning_rate 3e-2 --seeds 0

Each method has a learning rate of its own; some rows differ in nothing but that, the length or the initialisation.
Every finished run is a line in `--results` at once, and what stands there is not run again: several processes may work
side by side on one file. Peak memory is what training takes above the loaded base.
"""

import argparse
import dataclasses
import gc
import json
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import MIB, Clock, Peak
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase, set_seed

from softlaunch.arguments import Arguments, parse_arguments
from softlaunch.data.dataset import prompt_rows, training_rows
from softlaunch.evaluation.predict import GenerationOptions, generate_answers
from softlaunch.evaluation.scores import score_records
from softlaunch.models import load_model, load_tokenizer
from softlaunch.models.save import save_model_directory
from softlaunch.training.trainer import CausalTrainer
from softlaunch.tuning import AdapterModel, PrefixModel, train_all, train_last_layers, trainable_summary, with_adapter

ROOT = Path(__file__).parents[1]
RUN = "recipes/args/demo.json"
TEXT = "根据商品的属性，写一段吸引人的商品描述。"
SCORES = ("rouge-1", "rouge-2", "rouge-l", "bleu-4")
MARKERS = ("<!-- table: benchmarks/methods.py --write_docs -->", "<!-- end of the table -->")


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    label: str
    methods: tuple[str, ...]
    learning_rate: float
    options: dict[str, Any] = field(default_factory=dict)
    quantization_bit: int | None = None


def prefix(init: str, length: int, learning_rate: float, **options: Any) -> Variant:
    more = " with projection" if options.get("prefix_projection") else ""
    label = f"P-Tuning v2, {init}, {length}{more}"
    text = {"prefix_init_text": TEXT} if init == "text" else {}
    return Variant(
        label, ("p_tuning_v2",), learning_rate, {"pre_seq_len": length, "prefix_init": init, **text, **options}
    )


VARIANTS = {
    "full": Variant("full fine-tuning", ("full",), 1e-3),
    "freeze": Variant("last layer alone", ("freeze",), 3e-3, {"freeze_trainable_layers": 1}),
    "lora": Variant("LoRA, r 8", ("lora",), 1e-2, {"lora_r": 8}),
    "lora_all": Variant(
        "LoRA, r 8, all linear layers", ("lora",), 1e-2, {"lora_r": 8, "lora_target_modules": "all-linear"}
    ),
    "rslora": Variant("rsLoRA, r 32", ("lora",), 3e-3, {"lora_r": 32, "use_rslora": True}),
    "dora": Variant("DoRA, r 8", ("lora",), 1e-2, {"lora_r": 8, "use_dora": True}),
    "qlora": Variant("QLoRA (4 bits), r 8", ("lora",), 1e-2, {"lora_r": 8}, quantization_bit=4),
    "ia3": Variant("IA3", ("ia3",), 1e-1),
    "prefix": prefix("random", 32, 1e-1),
    "prefix_slow": prefix("random", 32, 3e-2),
    "prefix_short": prefix("random", 8, 1e-1),
    "prefix_long": prefix("random", 128, 1e-1),
    "prefix_zero": prefix("zero", 32, 1e-1),
    "prefix_text": prefix("text", 32, 1e-1),
    "prefix_zero_slow": prefix("zero", 32, 3e-2),
    "prefix_text_slow": prefix("text", 32, 3e-2),
    "prefix_projection": prefix("random", 32, 3e-3, prefix_projection=True),
    "prefix_lora": Variant(
        "P-Tuning v2, random, 32, with LoRA, r 8",
        ("lora", "p_tuning_v2"),
        1e-2,
        {"pre_seq_len": 32, "lora_r": 8},
    ),
    "prompt": Variant(
        "prompt tuning, words, 32", ("prompt_tuning",), 3e-1, {"pre_seq_len": 32, "prompt_init": "vocabulary"}
    ),
    "prompt_text": Variant(
        "prompt tuning, text, 32",
        ("prompt_tuning",),
        3e-1,
        {"pre_seq_len": 32, "prompt_init": "text", "prompt_init_text": TEXT},
    ),
    "p_tuning": Variant("P-tuning (v1), MLP, 32", ("p_tuning",), 3e-3, {"pre_seq_len": 32}),
    "p_tuning_lstm": Variant(
        "P-tuning (v1), LSTM, 32", ("p_tuning",), 1e-2, {"pre_seq_len": 32, "encoder_type": "lstm"}
    ),
}
FAMILIES = {"full": "C3", "freeze": "C3", "lora": "C0", "ia3": "C4", "p_tuning_v2": "C2"}  # colours; else soft prompts


def run(variant: Variant, arguments: Arguments, tokenizer: PreTrainedTokenizerBase, seed: int) -> dict[str, float]:
    """Train and score one variant; JSON types only."""
    set_seed(seed)
    base = load_model(arguments.model.model_name_or_path, quantization_bit=variant.quantization_bit)
    tuning = dataclasses.replace(arguments.tuning, **{"pre_seq_len": None, **variant.options})
    model = make(base, variant, dataclasses.replace(arguments, tuning=tuning), tokenizer)
    train = training_rows(arguments.data.train_file, arguments.data, tokenizer, arguments.data.max_train_samples)
    options: dict[str, Any] = {"learning_rate": variant.learning_rate, "seed": seed, "output_dir": tempfile.mkdtemp()}
    options |= {"eval_strategy": "no", "save_strategy": "no", "restart": False, "report_to": "none"}
    training = dataclasses.replace(arguments.training, **options)
    clock: Any = Clock()
    trainer = CausalTrainer(
        model=model, args=training, train_dataset=train, pad_token_id=tokenizer.pad_token_id, callbacks=[clock]
    )
    with Peak() as peak:
        trainer.train()
    seconds = statistics.mean(clock.times[1:])
    rows_per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
    tokens_per_row = statistics.mean(map(len, train["input_ids"]))
    summary = trainable_summary(model)
    found = {
        "trained": summary.trainable,
        "share": summary.share,
        "peak_mib": peak.mib,
        "s_per_step": seconds,
        "tokens_per_s": rows_per_step * tokens_per_row / seconds,
        "saved_mib": saved_mib(model, tokenizer),
        **scores(model, tokenizer, arguments),
    }
    del trainer, model, base
    gc.collect()
    return found


def make(base: Any, variant: Variant, arguments: Arguments, tokenizer: PreTrainedTokenizerBase) -> Any:
    if variant.methods == ("full",):
        return train_all(base)
    if variant.methods == ("freeze",):
        return train_last_layers(base, arguments.tuning.freeze_trainable_layers)
    return with_adapter(base, tokenizer, arguments, variant.methods)


def saved_mib(model: Any, tokenizer: PreTrainedTokenizerBase) -> float:
    with tempfile.TemporaryDirectory() as directory:
        if isinstance(model, (AdapterModel, PrefixModel)):
            model.save_pretrained(directory)
        else:
            save_model_directory(model, tokenizer, directory)
        return sum(file.stat().st_size for file in Path(directory).rglob("*") if file.is_file()) / MIB


def scores(model: Any, tokenizer: PreTrainedTokenizerBase, arguments: Arguments) -> dict[str, float]:
    data = arguments.data
    rows = prompt_rows(data.test_file, data, tokenizer, data.max_predict_samples)
    options = GenerationOptions(data.val_max_target_length)
    batch_size = arguments.training.per_device_eval_batch_size
    records = list(generate_answers(model, tokenizer, rows, options, batch_size=batch_size))
    found = score_records(sorted(records, key=lambda record: record["row_id"]))
    return {name: found[name] for name in SCORES}


def read_results(file: Path) -> dict[str, Any]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {line["run"]: line["found"] for line in map(json.loads, lines)}


def title(name: str) -> tuple[str, str]:
    return VARIANTS[name].label, f"{VARIANTS[name].learning_rate:g}"


def columns(found: list[dict[str, float]]) -> list[str]:
    """The cells of a row: means over the seeds, of scores with the standard deviation; the speed of the fastest run."""

    def mean(name: str) -> float:
        return statistics.mean(one[name] for one in found)

    def spread(name: str) -> str:
        values = [one[name] for one in found]
        return f"{mean(name):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")

    fastest = min(found, key=lambda one: one["s_per_step"])
    cost = [f"{mean('share'):.2%}", f"{mean('peak_mib'):.0f}", f"{fastest['tokens_per_s']:,.0f}"]
    cost += [f"{fastest['s_per_step']:.3f}", f"{mean('saved_mib'):.2f}"]
    return [*cost, *map(spread, SCORES)]


HEADS = {
    "md": [
        "method",
        "learning rate",
        "trained",
        "peak MiB",
        "tokens/s",
        "s/step",
        "saved MiB",
        "ROUGE-1",
        "ROUGE-2",
        "ROUGE-L",
        "BLEU-4",
    ],
    "zh.md": [
        "方法",
        "学习率",
        "训练比例",
        "峰值 MiB",
        "token/秒",
        "秒/步",
        "保存 MiB",
        "ROUGE-1",
        "ROUGE-2",
        "ROUGE-L",
        "BLEU-4",
    ],
}
CAPTIONS = {
    "md": "{steps} steps of {rows} rows, {seeds} seeds, mean ± standard deviation, speed of the fastest; float32, "
    "CPU threads: {threads}.",
    "zh.md": "每次 {steps} 步，每步 {rows} 行，{seeds} 个随机种子，均值 ± 标准差，速度取最快的一次；float32，"
    "{threads} 个 CPU 线程。",
}


def write_docs(table: dict[str, list[dict[str, float]]], arguments: Arguments) -> None:
    """Replaces what stands between the markers of both documents, and draws the picture."""
    training, counts = arguments.training, list(map(len, table.values()))
    facts = {
        "steps": training.max_steps,
        "rows": training.per_device_train_batch_size * training.gradient_accumulation_steps,
        "seeds": "–".join(sorted({f"{min(counts)}", f"{max(counts)}"})),
        "threads": torch.get_num_threads(),
    }
    for suffix, heads in HEADS.items():
        rows = [heads, ["---", *["---:"] * (len(heads) - 1)]]
        rows += [[*title(name), *columns(found)] for name, found in table.items()]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        file = ROOT / "docs" / f"methods.{suffix}"
        text = file.read_text(encoding="utf-8")
        before, after = text.partition(MARKERS[0])[0], text.partition(MARKERS[1])[2]
        picture = "![](methods.svg)"
        middle = "\n".join([MARKERS[0], CAPTIONS[suffix].format(**facts), "", *lines, "", picture, "", MARKERS[1]])
        file.write_text(before + middle + after, encoding="utf-8")
    draw(table, ROOT / "docs" / "methods.svg")


def draw(table: dict[str, list[dict[str, float]]], file: Path) -> None:
    """Score against memory."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "methods", "font.size": 9})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    points = sorted((statistics.mean(one["rouge-l"] for one in found), name) for name, found in table.items())
    for place, (score, name) in enumerate(points):  # names beside the axes, by score, for many points lie together
        memory = statistics.mean(one["peak_mib"] for one in table[name])
        values = [one["rouge-l"] for one in table[name]]
        error = statistics.stdev(values) if len(values) > 1 else 0.0
        colour = FAMILIES.get(VARIANTS[name].methods[-1], "C1")
        axes.errorbar(memory, score, yerr=error, fmt="o", markersize=4, capsize=2, color=colour)
        axes.annotate(
            ", ".join(title(name)),
            (memory, score),
            (1.04, (place + 0.5) / len(points)),
            textcoords="axes fraction",
            verticalalignment="center",
            color=colour,
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": colour, "shrinkB": 3, "relpos": (0, 0.5)},
        )
    axes.set_xlabel("peak memory of training above the base, MiB")
    axes.set_ylabel("ROUGE-L")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def show(table: dict[str, list[dict[str, float]]]) -> None:
    printed = Table(title="the demo's held-out rows")
    for head in HEADS["md"]:
        printed.add_column(head, justify="left" if head == "method" else "right")
    for name, found in table.items():
        printed.add_row(*title(name), *columns(found))
    Console(width=160).print(printed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning_rate", type=float, help="another one for all of --methods, to try")
    parser.add_argument("--results", type=Path, default=ROOT / "output" / "methods.jsonl")
    parser.add_argument("--write_docs", action="store_true")
    options = parser.parse_args()
    for name in options.methods if options.learning_rate is not None else ():
        VARIANTS[name] = dataclasses.replace(VARIANTS[name], learning_rate=options.learning_rate)
    arguments = parse_arguments([RUN, "--max_steps", str(options.steps), "--output_dir", tempfile.mkdtemp()])
    tokenizer = load_tokenizer(arguments.model.model_name_or_path)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    table: dict[str, list[dict[str, float]]] = {name: [] for name in options.methods}
    warm, two_steps = False, dataclasses.replace(arguments.training, max_steps=2, output_dir=tempfile.mkdtemp())
    for seed in options.seeds:
        for name in options.methods:
            variant = VARIANTS[name]
            key = json.dumps([dataclasses.astuple(variant), options.steps, seed], ensure_ascii=False, sort_keys=True)
            if key not in (done := read_results(options.results)):
                if not warm:  # what a process takes once and keeps would count as the first run's
                    run(variant, dataclasses.replace(arguments, training=two_steps), tokenizer, seed)
                    warm = True
                done[key] = run(variant, arguments, tokenizer, seed)
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"run": key, "found": done[key]}, ensure_ascii=False) + "\n")
            table[name].append(done[key])
    show(table)
    if options.write_docs:
        write_docs(table, arguments)


if __name__ == "__main__":
    main()
