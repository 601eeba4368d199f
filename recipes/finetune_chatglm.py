"""Full fine-tuning, or that of the last layers, of any causal language model, on rows of prompts and answers.

    accelerate launch --config_file launch/accelerate/cpu.yaml recipes/finetune_chatglm.py recipes/args/demo_full.json

`tuning` freeze trains the last `freeze_trainable_layers` layers. The trained model is left in `model/`, in
transformers' layout or, with `save_format` chatglm, in the released one. Copy an argument file from recipes/args/, put
in your checkpoint and your rows, and give it in place of demo_full.json. Flags behind the file win over it:
--learning_rate 1e-5. With --help it lists all options.
"""

from softlaunch.arguments import parse_arguments
from softlaunch.arguments.methods import chosen_methods
from softlaunch.data.dataset import load_rows
from softlaunch.entry import run
from softlaunch.evaluation.probes import Probes
from softlaunch.evaluation.report import predict_and_score
from softlaunch.evaluation.scores import scorer
from softlaunch.models import load_base_tokenizer
from softlaunch.training.begin import begin, record_run
from softlaunch.training.finetune import load_to_finetune, saver
from softlaunch.training.trainer import CausalTrainer

METHODS = ("full", "freeze")


def main() -> None:
    arguments = parse_arguments(methods=METHODS, description=__doc__)
    (method,) = chosen_methods(arguments, METHODS)
    arguments = begin(arguments, [method])

    # The rows come before the model, so that whatever is wrong with them is said at once
    tokenizer = load_base_tokenizer(arguments)
    rows = load_rows(arguments, tokenizer)

    # The model, all of which or whose last layers train
    model = load_to_finetune(arguments, method)

    record_run(arguments)
    trainer = CausalTrainer(
        model=model,
        args=arguments.training,
        train_dataset=rows.train,
        eval_dataset=rows.validation,
        pad_token_id=tokenizer.pad_token_id,
        answer_scores=scorer(rows.validation_prompts, tokenizer, arguments),
        callbacks=[Probes(rows, tokenizer, arguments)],
        save_whole=saver(model, tokenizer, arguments),
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
