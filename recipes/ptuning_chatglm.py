"""P-Tuning v2 of ChatGLM2/3, or of any causal language model, on rows of prompts and answers.

    accelerate launch --config_file launch/accelerate/cpu.yaml recipes/ptuning_chatglm.py recipes/args/demo.json

Copy an argument file from recipes/args/, put in your checkpoint and your rows, and give it in place of demo.json. Flags
behind the file win over it: --learning_rate 1e-2. With --help it lists all options.
"""

from softlaunch.arguments import parse_arguments
from softlaunch.arguments.methods import chosen_methods
from softlaunch.data.dataset import load_rows
from softlaunch.entry import run
from softlaunch.evaluation.probes import Probes
from softlaunch.evaluation.report import predict_and_score
from softlaunch.evaluation.scores import scorer
from softlaunch.models import load_base, load_base_tokenizer
from softlaunch.training.begin import begin, record_run
from softlaunch.training.trainer import CausalTrainer
from softlaunch.tuning import with_adapter

METHODS = ("p_tuning_v2",)


def main() -> None:
    arguments = parse_arguments(methods=METHODS, description=__doc__)
    methods = chosen_methods(arguments, METHODS)
    arguments = begin(arguments, methods)

    # The rows come before the model, so that whatever is wrong with them is said at once
    tokenizer = load_base_tokenizer(arguments)
    rows = load_rows(arguments, tokenizer)

    # The base model, frozen, and its prefix
    base = load_base(arguments)
    model = with_adapter(base, tokenizer, arguments, methods)

    record_run(arguments)
    trainer = CausalTrainer(
        model=model,
        args=arguments.training,
        train_dataset=rows.train,
        eval_dataset=rows.validation,
        pad_token_id=tokenizer.pad_token_id,
        answer_scores=scorer(rows.validation_prompts, tokenizer, arguments),
        callbacks=[Probes(rows, tokenizer, arguments)],
    )

    if arguments.training.do_train:
        trainer.run_training()
    if arguments.training.do_eval:
        trainer.report("eval", trainer.evaluate())
    if arguments.training.do_predict:
        scores = predict_and_score(trainer.model_for_generation(), tokenizer, rows.test, arguments)
        trainer.report("predict", scores)


if __name__ == "__main__":
    run(main)
