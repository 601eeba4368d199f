"""All cases of one strategy in one launch, for starting processes costs more than running them: `cases.py
DIRECTORY`, or `cases.py DIRECTORY CASE…` for some.

The directory holds `train.json` and `test.json`; each case leaves a run directory there, and each process
`rank-N.json`: the lengths of the batches it trained on, and what of the model it held.
"""

import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import torch

from softlaunch.entry import run
from softlaunch.evaluation import whole
from softlaunch.training.trainer import CausalTrainer
from tests.distributed.deepspeed_ops import skip_compilation
from tests.distributed.inputs import DEMO

RECIPES = Path(__file__).parents[2] / "recipes"
# Every other method: its recipe, and its options
METHODS = {
    "lora": ("lora_chatglm", {"lora_r": 4, "save_steps": 1}),
    "lora_resumed": ("lora_chatglm", {"lora_r": 4}),
    "qlora": ("lora_chatglm", {"lora_r": 4, "quantization_bit": 4}),
    "dora": ("lora_chatglm", {"lora_r": 4, "use_dora": True, "modules_to_save": "lm_head"}),
    "ia3": ("lora_chatglm", {"tuning": "ia3"}),
    "both": ("lora_chatglm", {"lora_r": 4, "pre_seq_len": 2, "prefix_dropout": 0}),
    "prompt": ("prompt_tuning", {"prompt_init": "text", "prompt_init_text": "这款上衣"}),
    "p_tuning": ("prompt_tuning", {"tuning": "p_tuning", "pre_seq_len": 4, "encoder_type": "lstm"}),
    "full": ("finetune_chatglm", {"tuning": "full"}),
    "freeze": ("finetune_chatglm", {"tuning": "freeze", "freeze_trainable_layers": 1}),
    "full_bf16": ("finetune_chatglm", {"tuning": "full", "bf16": True, "save_format": "chatglm"}),
}
CASES = ("train", "resume", "predict", "text", "bf16", "4bit", *METHODS)
ALL_SPLIT = ("train",)  # the cases in which ZeRO-3 leaves nothing whole, the others run with the file as it is
METHOD_STEPS, METHOD_LEARNING_RATE = 2, 1e-3
ROWS_PER_UPDATE, GRADIENT_ACCUMULATION = 8, 2
NUM_STEPS, MIDDLE = 6, 3
RESUMED = {"resume": ("train", MIDDLE), "lora_resumed": ("lora", 1)}  # where they come from, after how many steps


def arguments(directory: Path, case: str, num_processes: int) -> list[str]:
    """The command line of a case; the global batch is the same for any number of processes."""
    options = {
        "model_name_or_path": DEMO / "base",
        "output_dir": directory / case,
        "train_file": directory / "train.json",
        "validation_file": directory / "test.json",
        "test_file": directory / "test.json",
        "prompt_column": "content",
        "response_column": "summary",
        "max_source_length": 64,
        "max_target_length": 48,
        "val_max_target_length": 8,
        "per_device_train_batch_size": ROWS_PER_UPDATE // GRADIENT_ACCUMULATION // num_processes,
        "gradient_accumulation_steps": GRADIENT_ACCUMULATION,
        "per_device_eval_batch_size": 3,
        "do_eval": True,
        "do_predict": True,
        "predict_with_generate": True,
        "disable_tqdm": True,
    }
    training = {
        "do_train": True,
        "pre_seq_len": 2,  # so few numbers that ZeRO-3 leaves them whole if its file is taken as it is
        "prefix_dropout": 0,
        "learning_rate": 0.1,
        "max_steps": NUM_STEPS,
        "logging_steps": 1,
        "save_steps": MIDDLE,
        "eval_strategy": "steps",
        "eval_steps": MIDDLE,
    }
    match case:
        case "train":  # the worst checkpoint at the end, for the best one is the last
            best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
            options |= training | best
        case "resume":
            options |= training | {"gradient_checkpointing": True}
        case "predict":
            options |= {"adapter": directory / "train" / "adapter", "compare_with_base": True}
        case "text":
            options |= training | {"prefix_init": "text", "prefix_init_text": "这款上衣", "max_steps": 1}
        case "bf16":
            options |= training | {"bf16": True, "prefix_projection": True, "learning_rate": 0.01, "max_steps": 2}
        case "4bit":
            options |= training | {"quantization_bit": 4, "num_beams": 2, "max_steps": 2}
        case _:
            few = {"max_steps": METHOD_STEPS, "save_steps": METHOD_STEPS, "learning_rate": METHOD_LEARNING_RATE}
            options |= {"do_train": True, "logging_steps": 1, **few, **METHODS[case][1]}
    if case in RESUMED:  # named, for the run that it comes from is another to it, with other options
        options["resume_from_checkpoint"] = directory / case / f"checkpoint-{RESUMED[case][1]}"
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def run_cases(directory: Path) -> None:
    watched = watch()
    rank, num_processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    shipped = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    for case in sys.argv[2:] or CASES:
        if case in RESUMED and rank == 0:
            run_name, step = RESUMED[case]
            shutil.copytree(directory / run_name / f"checkpoint-{step}", directory / case / f"checkpoint-{step}")
        wait_for_all()
        # ZeRO-3's weights are put together for answers while training, and left split in the run that only predicts
        whole._MEMORY_SHARE = 0 if case == "predict" else 0.5
        if shipped:
            os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = (
                str(without_persistence(directory, shipped)) if case in ALL_SPLIT else shipped
            )
        recipe = str(RECIPES / f"{METHODS[case][0] if case in METHODS else 'ptuning_chatglm'}.py")
        sys.argv = [recipe, *arguments(directory, case, num_processes)]
        runpy.run_path(recipe)["main"]()
        wait_for_all()
    (directory / f"rank-{rank}.json").write_text(json.dumps(watched))


def without_persistence(directory: Path, shipped: str) -> Path:
    """The DeepSpeed file, but with nothing so small that ZeRO-3 leaves it whole on every process."""
    config = json.loads(Path(shipped).read_text())
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    file = directory / Path(shipped).name
    file.write_text(json.dumps(config))
    return file


def watch() -> dict:
    """Record what the training steps of this process see."""
    found = {"world_size": [], "lengths": [], "num_parameters": [], "num_partitioned": []}
    training_step = CausalTrainer.training_step

    def recording(self, model, inputs, *args, **kwargs):
        parameters = list(self.model.parameters())
        found["world_size"].append(torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1)
        found["lengths"].append(inputs["input_ids"].shape[1])
        found["num_parameters"].append(len(parameters))
        found["num_partitioned"].append(sum(hasattr(p, "ds_id") and p.numel() == 0 for p in parameters))
        return training_step(self, model, inputs, *args, **kwargs)

    CausalTrainer.training_step = recording
    return found


def wait_for_all() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


if __name__ == "__main__":
    skip_compilation()
    run(lambda: run_cases(Path(sys.argv[1])))
