"""Classes of texts with a BERT-style encoder: LoRA, P-Tuning v2, a frozen encoder, full fine-tuning and more.

    accelerate launch --config_file launch/accelerate/cpu.yaml recipes/classify.py recipes/args/classify_news_lora.json

`tuning` says what is trained: lora, full, head (a frozen encoder under a trained head), p_tuning_v2, prompt_tuning,
p_tuning, ia3 or freeze. Copy an argument file from recipes/args/, put in your encoder and your rows, and give it in
place of that one. Flags behind the file win over it: --learning_rate 1e-3. With --help it lists all options.
"""

from pathlib import Path
from typing import Any

from softlaunch.arguments import parse_arguments
from softlaunch.data.classification import load_class_rows
from softlaunch.entry import run
from softlaunch.evaluation.label_metrics import label_scores
from softlaunch.evaluation.label_report import draw_classes, report_classes
from softlaunch.models.encoder import load_text_tokenizer
from softlaunch.training.begin import begin, record_run
from softlaunch.training.classifier import ClassifierTrainer, balanced_weights, stop_early
from softlaunch.training.classifier_model import (
    choose_method,
    load_classifier_model,
    num_virtual_tokens,
    trained_classes,
)
from softlaunch.training.features import encode_once
from softlaunch.tuning.classifier import METHODS

# The best checkpoint is the one that does best on all classes alike
DEFAULTS = {"metric_for_best_model": "f1_macro", "max_source_length": 128}
UNUSED = [
    *("prompt_column", "response_column", "history_column", "source_prefix", "train_on_all_turns", "legacy_truncation"),
    *("max_target_length", "val_max_target_length", "num_beams", "do_sample", "top_p", "temperature"),
    *("predict_with_generate", "compare_with_base", "prompt_style", "model_parallel_mode", "preprocessing_num_workers"),
    *("dtype", "quantization_bit", "prefix_init_text", "prompt_init_text", "save_format"),
]


def main() -> None:
    arguments = parse_arguments(methods=METHODS, classifies=True, defaults=DEFAULTS, unused=UNUSED, description=__doc__)
    method = choose_method(arguments)
    arguments = begin(arguments)

    # Texts and their classes, before any weights are read
    base, max_length = arguments.model.model_name_or_path, arguments.data.max_source_length
    virtual = num_virtual_tokens(arguments, method)
    tokenizer = load_text_tokenizer(base, max_length, num_virtual_tokens=virtual, **arguments.model.hub)
    rows = load_class_rows(arguments, tokenizer, trained_classes(arguments))

    # The encoder with a head for these classes, and what is trained of it
    model, settings = load_classifier_model(arguments, method, rows.classes.names)
    encoded: dict[str, Any] = {step: texts.encoded for step, texts in rows.steps.items()}
    if method == "head":
        overwrite = arguments.data.overwrite_cache
        encoded = encode_once(model, encoded, tokenizer, arguments.training, overwrite_cache=overwrite)
    weights = None
    if arguments.classification.class_weights and rows.train is not None:
        weights = balanced_weights(rows.train.encoded["labels"], len(rows.classes))

    record_run(arguments)
    trainer = ClassifierTrainer(
        model=model,
        args=arguments.training,
        train_dataset=encoded.get("train"),
        eval_dataset=encoded.get("validation"),
        tokenizer=tokenizer,
        settings=settings,
        scores=label_scores,
        class_weights=weights,
        callbacks=stop_early(arguments),
    )
    if arguments.training.do_train:
        trainer.run_training()
    output_dir = Path(str(arguments.training.output_dir))
    for step, texts in (("eval", rows.validation), ("predict", rows.test)):
        if texts is not None:
            logits, metrics = trainer.predict_rows(encoded[texts.step], step)
            if trainer.is_world_process_zero():
                metrics |= report_classes(step, texts, logits, rows.classes.names, output_dir)
            trainer.report(step, metrics)
            if trainer.is_world_process_zero():
                draw_classes(step, metrics, output_dir)


if __name__ == "__main__":
    run(main)
