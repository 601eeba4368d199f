"""Pretrain a small BERT on your own texts by masked language modelling, with a vocabulary that you have.

    python recipes/pretrain_encoder.py --tokenizer recipes/demo_titles/base --text_column title \
        --train_file recipes/demo_titles/train.json --output_dir output/encoder --max_steps 200

The tokenizer is a directory, a hub id or a vocab.txt. A .txt file holds one text to a line; JSON, CSV, TSV and Parquet
have a text column. The shape is that of a small BERT unless you say otherwise; --model_name_or_path goes on from an
encoder's weights instead. output_dir/model is what recipes/classify.py takes as model_name_or_path. With --bf16 it
takes half the time where the hardware knows it; `accelerate launch` spreads it over several processes. A run that was
stopped, by SIGTERM or in any other way, goes on from its newest checkpoint.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from softlaunch import preemption
from softlaunch.arguments import TrainingArguments
from softlaunch.data.sources import records, require_source
from softlaunch.entry import run
from softlaunch.errors import ArgumentError, DataError
from softlaunch.training.checkpoint import checkpoint_to_resume
from softlaunch.training.masked_lm import MaskedLanguageTrainer, begin_with_frequencies


@dataclass
class EncoderArguments:
    tokenizer: str = field(metadata={"help": "Directory or hub id of a tokenizer, or a vocab.txt."})
    train_file: list[str] = field(metadata={"help": "Texts to train on; several files may be given."})
    validation_file: list[str] = field(default_factory=list, metadata={"help": "Texts to measure the loss on."})
    text_column: str = field(default="text", metadata={"help": "Column of the texts; a .txt file needs none."})
    file_encoding: str = field(default="utf-8", metadata={"help": "Character encoding of text files."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "An encoder whose weights to start from."})
    hidden_size: int = field(default=256, metadata={"help": "Width of a new encoder; a multiple of 64."})
    num_layers: int = field(default=4, metadata={"help": "Layers of a new encoder."})
    max_length: int = field(default=128, metadata={"help": "Longest text in tokens; longer ones are cut."})
    dropout: float = field(default=0.1, metadata={"help": "While pretraining; 0 for few passes over few texts."})
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of the tokens that are masked."})
    save_dtype: str = field(default="float32", metadata={"help": "Precision of the saved weights."})


def main() -> None:
    parser = HfArgumentParser((EncoderArguments, TrainingArguments))
    arguments, training, unknown = parser.parse_args_into_dataclasses(return_remaining_strings=True)
    if unknown:
        raise ArgumentError("{names}: there is no such option (--help lists all)", names=" ".join(unknown))
    preemption.listen(Path(training.output_dir), is_first=training.process_index == 0)
    set_seed(training.seed)
    tokenizer = read_tokenizer(arguments.tokenizer)
    model = build_model(arguments, tokenizer)

    def encoded(files: list[str]) -> datasets.Dataset | None:
        texts = [text for file in files for text in read_texts(Path(file), arguments)]
        if not texts:
            return None
        ids = tokenizer(texts, truncation=True, max_length=arguments.max_length, return_special_tokens_mask=True)
        columns = {name: ids[name] for name in ("input_ids", "special_tokens_mask")}
        return datasets.Dataset.from_dict({**columns, "length": list(map(len, ids["input_ids"]))})

    training.train_sampling_strategy = "group_by_length"
    rows = encoded(arguments.train_file)
    if not arguments.model_name_or_path:
        begin_with_frequencies(model, rows["input_ids"])
    trainer = MaskedLanguageTrainer(
        model=model,
        args=training,
        train_dataset=rows,
        eval_dataset=encoded(arguments.validation_file),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=arguments.mlm_probability),
    )
    result = trainer.train(resume_from_checkpoint=checkpoint_to_resume(training))
    trainer.save_metrics("train", result.metrics)
    if arguments.validation_file:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics | {"eval_perplexity": math.exp(metrics["eval_loss"])})
        trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        save(model, tokenizer, Path(training.output_dir) / "model", getattr(torch, arguments.save_dtype))


def read_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """A vocab.txt becomes BERT's tokenizer; it lower-cases nothing, as the Chinese BERT."""
    if path.endswith(".txt"):
        return BertTokenizer(vocab=path, do_lower_case=False)
    return AutoTokenizer.from_pretrained(path)


def build_model(arguments: EncoderArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The encoder that was named, or a new BERT with the released one's settings in a smaller shape."""
    if arguments.model_name_or_path:
        return AutoModelForMaskedLM.from_pretrained(arguments.model_name_or_path, dtype=torch.float32)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=arguments.hidden_size,
        num_hidden_layers=arguments.num_layers,
        num_attention_heads=arguments.hidden_size // 64,
        intermediate_size=4 * arguments.hidden_size,
        max_position_embeddings=arguments.max_length,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = BertForMaskedLM(config)
    for module in model.modules():  # the config, and so what is saved, keeps BERT's 0.1 for tuning
        if isinstance(module, torch.nn.Dropout):
            module.p = arguments.dropout
    return model


def read_texts(path: Path, arguments: EncoderArguments) -> Iterator[str]:
    """The texts of a file that are not empty."""
    require_source(path)
    if path.suffix == ".txt":
        yield from filter(None, map(str.strip, path.read_text(encoding=arguments.file_encoding).splitlines()))
        return
    for number, fields in records(path, arguments.file_encoding):
        text = fields.get(arguments.text_column) if isinstance(fields, dict) else None
        if not isinstance(text, str):
            where = {"path": path, "line": number, "column": arguments.text_column}
            raise DataError('{path}:{line}: there is no text in the column "{column}" (text_column).', **where)
        if text.strip():
            yield text.strip()


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, dtype: torch.dtype) -> None:
    """The encoder in its released layout: config.json, model.safetensors, the tokenizer, and BERT's vocab.txt."""
    model.to(dtype).save_pretrained(path)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(path)
    if isinstance(tokenizer, BertTokenizer):
        tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        (path / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in tokens), encoding="utf-8")


if __name__ == "__main__":
    run(main)
