"""Options that contradict each other, as far as the arguments alone can tell."""

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from softlaunch.messages import say

# (names of the options concerned, what is wrong and what to do)
Finding = tuple[tuple[str, ...], str]

# a run's step and the file that it works on
_STEPS = (("do_train", "train_file"), ("do_eval", "validation_file"), ("do_predict", "test_file"))

# What an evaluation finds, by which the best checkpoint can be chosen
CLASS_SCORES = (
    *("accuracy", "precision_macro", "recall_macro", "f1_macro"),
    *("precision_weighted", "recall_weighted", "f1_weighted"),
)
ANSWER_SCORES = (
    *("rouge-1", "rouge-2", "rouge-l", "bleu-4"),
    *("empty_predictions", "repeated_predictions", "looping_predictions"),
)


def find_conflicts(values: Mapping[str, Any], *, classifies: bool = False) -> Iterator[Finding]:
    """What makes a run with these values (all options, defaults included) impossible.

    A run that `classifies` may take validation rows and test rows out of what train_file names.
    """
    evaluates_while_training = values["eval_strategy"] != "no"
    if not evaluates_while_training and not any(values[step] for step, _ in _STEPS):
        yield ("do_train", "do_eval", "do_predict"), say("there is nothing to do: set do_train, do_eval or do_predict")
    for step, file in _STEPS:
        if values[step] and not values[file] and not (classifies and values["train_file"]):
            yield (step, file), say("{step} needs {file}, the file with its rows", step=step, file=file)
    has_validation = values["validation_file"] or (classifies and values["train_file"])
    if evaluates_while_training and not values["do_eval"] and not has_validation:
        yield ("eval_strategy", "validation_file"), say("eval_strategy needs validation_file: rows to evaluate on")
    if values["load_best_model_at_end"] and not evaluates_while_training:
        yield (
            ("load_best_model_at_end", "eval_strategy"),
            say(
                "load_best_model_at_end needs evaluation while training: set eval_strategy to steps or epoch, and "
                "save_strategy alike"
            ),
        )
    yield from _check_metric(values, classifies)
    if values["prefix_init"] == "text" and not values["prefix_init_text"]:
        yield (
            ("prefix_init", "prefix_init_text"),
            say("prefix_init text needs prefix_init_text: the text to start from"),
        )
    if values["early_stopping_patience"] and not values["load_best_model_at_end"]:
        yield (
            ("early_stopping_patience", "load_best_model_at_end"),
            say("early_stopping_patience needs load_best_model_at_end: stopping early means keeping the best"),
        )
    if values["prefix_init"] == "text" and values["prefix_projection"]:
        yield (
            ("prefix_init", "prefix_projection"),
            say("prefix_init text sets the prefix itself, which prefix_projection computes: give one of them"),
        )
    if values["restart"] and values["resume_from_checkpoint"]:
        yield (
            ("restart", "resume_from_checkpoint"),
            say("restart begins anew and resume_from_checkpoint goes on from a checkpoint: give one of them"),
        )
    if values["fp16"] and values["bf16"]:
        yield ("fp16", "bf16"), say("fp16 and bf16 exclude each other: bf16 where the hardware has it, else fp16")


def _check_metric(values: Mapping[str, Any], classifies: bool) -> Iterator[Finding]:
    metric = values["metric_for_best_model"]
    if metric is None:
        return
    name, known = metric.removeprefix("eval_"), ("loss", *(CLASS_SCORES if classifies else ANSWER_SCORES))
    if name not in known:
        message = say(
            "metric_for_best_model {metric} is no score of this recipe, which has: {known}. {hint}",
            metric=metric,
            known=", ".join(known),
            hint=did_you_mean(name.lower(), known),
        )
        yield ("metric_for_best_model",), message.rstrip()
    elif name in ANSWER_SCORES and not values["predict_with_generate"]:
        yield (
            ("metric_for_best_model", "predict_with_generate"),
            say(
                "metric_for_best_model {metric} scores generated answers: set predict_with_generate or choose loss",
                metric=metric,
            ),
        )


def did_you_mean(name: str, known: Collection[str]) -> str:
    """A question for the nearest of the names that there are; empty when none is near."""
    near = get_close_matches(name, known, n=1)
    return say('Did you mean "{near}"?', near=near[0]) if near else ""


def find_idle_values(values: Mapping[str, Any], given: Collection[str]) -> Iterator[Finding]:
    """What was given although it changes nothing in a run with these values."""
    for name in ("top_p", "temperature"):
        if name in given and not values["do_sample"]:
            message = say("{name} has no effect without do_sample: answers are generated greedily", name=name)
            yield (name, "do_sample"), message
    if values["do_predict"] is False and "compare_with_base" in given and values["compare_with_base"]:
        yield ("compare_with_base", "do_predict"), say("compare_with_base has no effect without do_predict")
    if "val_max_target_length" in given and not values["do_predict"] and not values["predict_with_generate"]:
        yield (
            ("val_max_target_length", "predict_with_generate"),
            say("val_max_target_length has no effect where no answers are generated: set predict_with_generate"),
        )
    if "prefix_init_text" in given and values["prefix_init"] != "text":
        yield (
            ("prefix_init_text", "prefix_init"),
            say(
                "prefix_init_text has no effect with prefix_init {prefix_init}: set prefix_init to text",
                prefix_init=values["prefix_init"],
            ),
        )
