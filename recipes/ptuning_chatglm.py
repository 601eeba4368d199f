"""P-Tuning v2 of ChatGLM2/3, or of any causal language model, on rows of prompts and answers.

    accelerate launch --config_file launch/accelerate/cpu.yaml recipes/ptuning_chatglm.py recipes/args/demo.json

Copy an argument file from recipes/args/, put in your checkpoint and your rows, and give it in place of demo.json. Flags
behind the file win over it: --learning_rate 1e-2. With --help it lists all options.
"""

from functools import partial
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from softlaunch.arguments import Arguments, parse_arguments
from softlaunch.data.dataset import prompt_rows, training_rows
from softlaunch.entry import run
from softlaunch.errors import ArgumentError
from softlaunch.evaluation.comparison import side_by_side
from softlaunch.evaluation.predict import GenerationOptions, predict, write_original_format
from softlaunch.evaluation.scores import answer_scores, score_records
from softlaunch.models import choose_dtype, load_model, load_tokenizer
from softlaunch.record import write_record
from softlaunch.training.callbacks import MetricsFile, ReplaceEarlierRun
from softlaunch.training.checkpoint import checkpoint_to_resume
from softlaunch.training.processes import prepare_processes
from softlaunch.training.trainer import CausalTrainer
from softlaunch.tuning import PrefixModel, add_prefix, load_adapter


def main() -> None:
    arguments = parse_arguments(unused=["lora_r", "lora_alpha", "lora_dropout"], description=__doc__)
    model_args, data_args, training_args = arguments.model, arguments.data, arguments.training
    output_dir = Path(training_args.output_dir)
    prepare_processes(training_args)
    if training_args.process_index == 0:
        write_record(arguments, output_dir)
    set_seed(training_args.seed)

    # The base model, frozen, and its prefix
    hub = {"revision": model_args.model_revision, "cache_dir": model_args.cache_dir, "token": model_args.token}
    tokenizer = load_tokenizer(model_args.model_name_or_path, prompt_style=model_args.prompt_style, **hub)
    base = load_model(
        model_args.model_name_or_path,
        dtype=choose_dtype(model_args.dtype, bf16=training_args.bf16, fp16=training_args.fp16),
        quantization_bit=model_args.quantization_bit,
        attn_implementation=model_args.attn_implementation,
        model_parallel=model_args.model_parallel_mode,
        **hub,
    )
    model = with_prefix(base, tokenizer, arguments)
    trainable, total = model.get_nb_trainable_parameters()

    # Rows
    train = eval_rows = eval_prompts = None
    if training_args.do_train:
        train = training_rows(data_args.train_file, data_args, tokenizer, data_args.max_train_samples)
    if training_args.do_eval:
        eval_rows = training_rows(data_args.validation_file, data_args, tokenizer, data_args.max_eval_samples)
        eval_prompts = prompt_rows(data_args.validation_file, data_args, tokenizer, data_args.max_eval_samples)
    if training_args.do_predict:
        test = prompt_rows(data_args.test_file, data_args, tokenizer, data_args.max_predict_samples)

    # How answers are generated, in evaluation and prediction alike
    options = GenerationOptions(
        max_new_tokens=data_args.val_max_target_length,
        num_beams=data_args.num_beams,
        do_sample=data_args.do_sample,
        top_p=data_args.top_p,
        temperature=data_args.temperature,
    )
    share = {
        "batch_size": training_args.per_device_eval_batch_size,
        "process_index": training_args.process_index,
        "num_processes": training_args.world_size,
    }
    score = partial(answer_scores, tokenizer=tokenizer, rows=eval_prompts, options=options, **share)

    trainer = CausalTrainer(
        model=model,
        args=training_args,
        train_dataset=train,
        eval_dataset=eval_rows,
        pad_token_id=tokenizer.pad_token_id,
        answer_scores=score if training_args.predict_with_generate and eval_prompts else None,
        callbacks=[MetricsFile(output_dir / "metrics.jsonl", restart=training_args.restart and training_args.do_train)],
    )

    if training_args.do_train:
        if training_args.restart:
            trainer.add_callback(ReplaceEarlierRun(output_dir))
        result = trainer.train(resume_from_checkpoint=checkpoint_to_resume(training_args))
        trainer.save_model(str(output_dir / "adapter"))
        metrics = {**result.metrics, "trainable_parameters": trainable, "parameters": total}
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)

    if training_args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    if training_args.do_predict:
        model = trainer.model_for_generation()
        answers = partial(predict, model, tokenizer, test, options, **share)
        after = answers(directory=output_dir, settings=options.settings(model.digest(), test))
        if data_args.compare_with_base:
            with model.disable_adapter():
                before = answers(directory=output_dir / "base", settings=options.settings(model.digest(), test))
        if trainer.is_world_process_zero():
            write_original_format(after, output_dir / "generated_predictions.txt")
            scores = score_records(after)
            trainer.save_metrics("predict", {f"predict_{name}": value for name, value in scores.items()})
            trainer.log_metrics("predict", scores)
            if data_args.compare_with_base:
                Console().print(side_by_side(test["prompt"][:], before, after, [score_records(before), scores]))


def with_prefix(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, arguments: Arguments) -> PrefixModel:
    """The base with a new prefix, or with the one that `adapter` (or an earlier run in `output_dir`) left."""
    tuning, training = arguments.tuning, arguments.training
    adapter = tuning.adapter
    if adapter is None and not training.do_train and (Path(training.output_dir) / "adapter").is_dir():
        adapter = str(Path(training.output_dir) / "adapter")
    if adapter is not None:
        return load_adapter(base, adapter, trainable=training.do_train, num_virtual_tokens=tuning.pre_seq_len)
    if not training.do_train:
        raise ArgumentError("there is no prefix to evaluate: give adapter, the directory of a trained one, or do_train")
    if tuning.pre_seq_len is None and tuning.prefix_init != "text":
        raise ArgumentError("pre_seq_len is not set: give the number of virtual tokens, 16 to 128 as a rule")
    init_ids = tokenizer(tuning.prefix_init_text)["input_ids"] if tuning.prefix_init == "text" else None
    return add_prefix(
        base,
        num_virtual_tokens=tuning.pre_seq_len,
        initialisation=tuning.prefix_init,
        init_ids=init_ids,
        projection=tuning.prefix_projection,
        dropout=tuning.prefix_dropout,
    )


if __name__ == "__main__":
    run(main)
