"""What a run can be told: five dataclasses of options, and `Arguments`, which holds one of each.

Every field carries its help text and, where they exist, its limits in its metadata: `choices`; `minimum` and `maximum`
(inclusive); `above` and `below` (exclusive); `required`. Parsing, error messages and `--help` are made from them.
"""

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments

from softlaunch.errors import ArgumentError


def _option(default: Any = MISSING, *, help: str, **limits: Any) -> Any:
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class ModelArguments:
    """Which base model, and how it is loaded."""

    model_name_or_path: str = _option(help="Directory or hub id of the base model, as released.", required=True)
    model_revision: str = _option("main", help="Branch, tag or commit of a base model on the hub.")
    cache_dir: str | None = _option(None, help="Where downloads from the hub are kept; the hub's own cache if unset.")
    token: str | bool | None = _option(
        None, help="Hub token for gated or private models; true takes the one that `hf auth login` stored."
    )
    dtype: str = _option(
        "auto",
        help="Precision of the base model's weights; auto follows bf16 and fp16, else what the hardware is best at: "
        "bfloat16 or float16 on a GPU, float32 on a CPU. What is trained is float32 whatever this says.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    quantization_bit: int | None = _option(
        None, help="Quantize the frozen base model to this many bits; unset leaves it as it is.", choices=(4, 8)
    )
    attn_implementation: str | None = _option(
        None,
        help="How attention is computed; unset takes what transformers holds best for the model.",
        choices=("eager", "sdpa", "flash_attention_2"),
    )
    prompt_style: str = _option(
        "auto",
        help="How a row becomes a prompt; auto goes by the tokenizer, plain joins prompt and answer as they are.",
        choices=("auto", "chatglm2", "chatglm3", "chat_template", "plain"),
    )
    model_parallel_mode: bool = _option(
        False, help="Spread the layers over all GPUs that this one process sees, for a model too large for one."
    )

    @property
    def hub(self) -> dict[str, Any]:
        """What `from_pretrained` is told of the hub."""
        return {"revision": self.model_revision, "cache_dir": self.cache_dir, "token": self.token}


@dataclass(frozen=True)
class TuningArguments:
    """What is trained on top of the base model."""

    adapter: str | None = _option(
        None,
        help="Directory of a trained adapter to evaluate or to train further; its own settings hold, and options that "
        "ask for others are refused.",
    )
    tuning: str | None = _option(
        None,
        help="What is trained; unset takes what the recipe is for. pre_seq_len together with lora_r trains a prefix "
        "and LoRA in one model; head is a frozen encoder under a trained head.",
        choices=("p_tuning_v2", "lora", "ia3", "prompt_tuning", "p_tuning", "full", "freeze", "head"),
    )
    pre_seq_len: int | None = _option(
        None, help="P-Tuning v2, prompt tuning, P-tuning: number of virtual tokens.", minimum=1
    )
    prefix_projection: bool = _option(
        False, help="P-Tuning v2: compute the prefix by a two-layer MLP from an embedding (more to train)."
    )
    prefix_dropout: float = _option(
        0.1, help="P-Tuning v2: dropout on the prefix while training.", minimum=0.0, below=1.0
    )
    prefix_init: str = _option(
        "random",
        help="P-Tuning v2: start from random values, from zeros, or from the base's keys and values for a text.",
        choices=("random", "zero", "text"),
    )
    prefix_init_text: str | None = _option(None, help="The text that prefix_init text starts from.")
    lora_r: int | None = _option(None, help="LoRA: rank of the update matrices; 8 if unset.", minimum=1)
    lora_alpha: float | None = _option(
        None,
        help="LoRA: the update is scaled by lora_alpha / lora_r; 32 if unset, as in the original scripts.",
        above=0.0,
    )
    lora_dropout: float = _option(
        0.0, help="LoRA: dropout in front of the update while training.", minimum=0.0, below=1.0
    )
    lora_target_modules: list[str] | str = _option(
        "auto",
        help="LoRA: which layers: names (q_proj v_proj, also the released query_key_value), one regular expression for "
        "whole paths, all-linear, or auto: those that PEFT knows for the architecture.",
    )
    use_rslora: bool = _option(False, help="LoRA: scale by lora_alpha / sqrt(lora_r), for high ranks (rsLoRA).")
    use_dora: bool = _option(False, help="LoRA: learn the length of each column of the weights too (DoRA).")
    modules_to_save: list[str] | None = _option(
        None, help="LoRA, IA3: layers to train whole and to save with the adapter, as lm_head."
    )
    ia3_target_modules: list[str] | str = _option(
        "auto", help="IA3: which layers are rescaled, as lora_target_modules."
    )
    ia3_feedforward_modules: list[str] | str = _option(
        "auto", help="IA3: those of ia3_target_modules whose input is rescaled instead of their output."
    )
    prompt_init: str = _option(
        "random",
        help="Prompt tuning: start from random values, from random words of the vocabulary, or from prompt_init_text.",
        choices=("random", "vocabulary", "text"),
    )
    prompt_init_text: str | None = _option(
        None, help="Prompt tuning: the text to start from; as many virtual tokens as it has, if pre_seq_len is unset."
    )
    encoder_type: str = _option(
        "mlp", help="P-tuning: network that computes the virtual tokens while training.", choices=("mlp", "lstm")
    )
    encoder_hidden_size: int | None = _option(
        None, help="P-tuning: width of the encoder; that of the base if unset.", minimum=1
    )
    encoder_num_layers: int = _option(2, help="P-tuning: layers of the LSTM encoder.", minimum=1)
    encoder_dropout: float = _option(0.0, help="P-tuning: dropout of the LSTM encoder.", minimum=0.0, below=1.0)
    freeze_trainable_layers: int | None = _option(
        None, help="Freeze: number of layers at the end that train; 2 if unset.", minimum=1
    )
    save_format: str = _option(
        "glm",
        help="Full, freeze: layout of the saved model: glm is transformers' own (of any architecture), chatglm that of "
        "the released ChatGLM checkpoints.",
        choices=("glm", "chatglm"),
    )


@dataclass(frozen=True)
class DataArguments:
    """Which rows, how they are cut and encoded, and how answers are generated."""

    train_file: str | None = _option(None, help="Rows to train on.")
    validation_file: str | None = _option(None, help="Rows to evaluate on, while training and with do_eval.")
    test_file: str | None = _option(None, help="Rows to answer with do_predict.")
    prompt_column: str = _option("prompt", help="Column that holds the prompt.")
    response_column: str = _option("response", help="Column that holds the answer.")
    history_column: str | None = _option(
        None, help="Column that holds the earlier turns of a dialogue: a list of [question, answer] pairs."
    )
    source_prefix: str = _option("", help="Text put in front of every prompt.")
    file_encoding: str = _option("utf-8", help="Character encoding of text files.")
    skip_bad_rows: bool = _option(
        False, help="Leave out rows that cannot be used, and count them, instead of stopping."
    )
    max_train_samples: int | None = _option(None, help="Use only this many training rows.", minimum=1)
    max_eval_samples: int | None = _option(None, help="Use only this many validation rows.", minimum=1)
    max_predict_samples: int | None = _option(None, help="Use only this many test rows.", minimum=1)
    max_source_length: int = _option(64, help="Longest prompt in tokens; longer ones are cut.", minimum=1)
    max_target_length: int = _option(128, help="Longest answer in tokens to train on; longer ones are cut.", minimum=1)
    val_max_target_length: int | None = _option(
        None, help="Longest generated answer in new tokens; max_target_length if unset.", minimum=1
    )
    train_on_all_turns: bool = _option(False, help="Learn every answer of a dialogue, not the last one alone.")
    legacy_truncation: bool = _option(
        False, help="Cut a long prompt at its end as the original scripts did, even where that cuts off the template."
    )
    preprocessing_num_workers: int | None = _option(None, help="Processes that check and encode rows.", minimum=1)
    overwrite_cache: bool = _option(False, help="Read and encode the rows anew even where a cache of them is valid.")
    num_beams: int = _option(1, help="Beams to generate with; 1 is greedy search.", minimum=1)
    do_sample: bool = _option(False, help="Sample answers instead of taking the likeliest token each time.")
    top_p: float = _option(0.7, help="With do_sample: share of probability to sample from.", above=0.0, maximum=1.0)
    temperature: float = _option(0.95, help="With do_sample: flattens (above 1) or sharpens the choice.", above=0.0)
    probe_prompts: list[str] | None = _option(
        None,
        help="Prompts to answer before training and after it; three held-out rows if unset, none for an empty list.",
    )
    compare_with_base: bool = _option(
        False, help="With do_predict: let the base answer without the adapter too, and print both side by side."
    )

    def __post_init__(self) -> None:
        if self.val_max_target_length is None:
            object.__setattr__(self, "val_max_target_length", self.max_target_length)


@dataclass(frozen=True)
class ClassificationArguments:
    """Texts, their classes, and how classes are learnt."""

    text_column: str | int = _option("text", help="Column that holds the text: its name, or its number from 0.")
    text_pair_column: str | int | None = _option(None, help="Column that holds a second text, for pairs of texts.")
    label_column: str | int = _option("label", help="Column that holds the class, as a name or a number.")
    class_file: str | None = _option(
        None,
        help="File with the names of the classes, one to a line; the labels are these names, or line numbers from 0.",
    )
    num_labels: int | None = _option(
        None, help="Number of classes, to be checked against the data; it is counted anyway.", minimum=2
    )
    validation_share: float = _option(
        0.1,
        help="Share of the training rows of every class that is held out where there is no validation file; seed says "
        "which.",
        above=0.0,
        below=1.0,
    )
    class_weights: bool = _option(
        False, help="Weigh rows by how rare their class is in training: number of rows / (classes × rows of the class)."
    )
    early_stopping_patience: int | None = _option(
        None, help="Stop training after so many evaluations without a better metric_for_best_model.", minimum=1
    )
    early_stopping_threshold: float = _option(
        0.0, help="By how much metric_for_best_model must improve to count as better.", minimum=0.0
    )


@dataclass
class TrainingArguments(Seq2SeqTrainingArguments):
    """transformers' training arguments with this project's defaults.

    Construct it once per process: the base class detects the device and starts the process group while it is made. It
    raises ValueError where options contradict each other or the hardware. Where no accelerator is visible it runs on
    the CPU without being told (`use_cpu`). Checkpointing is non-reentrant unless its keyword arguments say otherwise:
    frozen base models then need no gradient on their inputs.
    """

    output_dir: str | None = _option(None, help="Directory for everything that the run leaves.", required=True)
    restart: bool = _option(
        False,
        help="Begin anew although output_dir holds checkpoints. Nothing is deleted before there is something to put in "
        "its place. Without it a run goes on from its newest complete checkpoint.",
    )
    logging_dir: str | None = _option(
        None, help="Directory for TensorBoard's files, with report_to tensorboard; output_dir/runs/… if unset."
    )
    logging_steps: float = _option(
        10, help="Steps from one line, and one record in metrics.jsonl, to the next; below 1 a share of all steps."
    )
    ddp_find_unused_parameters: bool | None = _option(
        False, help="Look for parameters without gradient in every step (DDP); there are none here."
    )
    remove_unused_columns: bool = _option(False, help="Kept off: row ids travel with the batches.")

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            # Otherwise transformers refuses bf16, and processes started by torchrun end up in a world of one each.
            self.use_cpu = True
        if self.fp16 and self.use_cpu:
            raise ArgumentError("fp16 needs a GPU and this run is on the CPU: use bf16 or leave both out")
        if self.logging_dir is not None:
            os.environ["TENSORBOARD_LOGGING_DIR"] = self.logging_dir  # the only way that the callback can be told
        super().__post_init__()
        for name in CHECKPOINTING_KWARGS:
            setattr(self, name, {"use_reentrant": False, **(getattr(self, name) or {})})


# transformers renamed gradient_checkpointing_kwargs within the range that is supported and mirrors the old name.
CHECKPOINTING_KWARGS = tuple(
    f.name
    for f in fields(TrainingArguments)
    if f.name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
)


@dataclass(frozen=True)
class Arguments:
    """The resolved arguments of one run.

    `sources` maps each option that was given to where (`run.json` or `--flag`), and a learning rate that the method
    chose to `default of METHOD`; `warnings` are the lines that were logged while parsing; `argv` is the command line
    after the script's name. `run` is what `training.begin` found out: the content of `run.json`, which a later start of
    the run compares itself with.
    """

    model: ModelArguments
    tuning: TuningArguments
    data: DataArguments
    classification: ClassificationArguments
    training: TrainingArguments
    sources: Mapping[str, str]
    warnings: tuple[str, ...]
    argv: tuple[str, ...]
    run: Mapping[str, Any] = field(default_factory=dict)
