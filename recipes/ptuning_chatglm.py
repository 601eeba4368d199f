"""P-Tuning v2 of ChatGLM2/3, or of any causal language model, on rows of prompts and answers.

    accelerate launch --config_file launch/accelerate/cpu.yaml recipes/ptuning_chatglm.py recipes/args/demo.json

Copy an argument file from recipes/args/, put in your checkpoint and your rows, and give it in place of demo.json. Flags
behind the file win over it: --learning_rate 1e-2. With --help it lists all options.
"""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softlaunch.arguments import TuningArguments, parse_arguments
from softlaunch.data.dataset import load_rows
from softlaunch.entry import run
from softlaunch.errors import ArgumentError
from softlaunch.evaluation.report import predict_and_score
from softlaunch.evaluation.scores import scorer
from softlaunch.models import load_base
from softlaunch.training.begin import begin
from softlaunch.training.trainer import CausalTrainer
from softlaunch.tuning import PrefixModel, add_prefix, earlier_adapter, load_adapter


def main() -> None:
    arguments = parse_arguments(unused=["lora_r", "lora_alpha", "lora_dropout"], description=__doc__)
    arguments = begin(arguments)

    # The base model, frozen, and its prefix
    base, tokenizer = load_base(arguments)
    adapter = earlier_adapter(arguments)
    if adapter is None:
        model = with_new_prefix(base, tokenizer, arguments.tuning)
    else:
        num_virtual_tokens = arguments.tuning.pre_seq_len
        model = load_adapter(
            base, adapter, trainable=arguments.training.do_train, num_virtual_tokens=num_virtual_tokens
        )

    rows = load_rows(arguments, tokenizer)
    trainer = CausalTrainer(
        model=model,
        args=arguments.training,
        train_dataset=rows.train,
        eval_dataset=rows.validation,
        pad_token_id=tokenizer.pad_token_id,
        answer_scores=scorer(rows.validation_prompts, tokenizer, arguments),
    )

    if arguments.training.do_train:
        trainer.run_training()
    if arguments.training.do_eval:
        trainer.report("eval", trainer.evaluate())
    if arguments.training.do_predict:
        scores = predict_and_score(trainer.model_for_generation(), tokenizer, rows.test, arguments)
        trainer.report("predict", scores)


def with_new_prefix(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tuning: TuningArguments) -> PrefixModel:
    """The base with an untrained prefix as the arguments describe it."""
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
