"""Tuning methods by name: which options belong to which, and which one a run asks for."""

from collections.abc import Collection, Container

from softlaunch.arguments.groups import Arguments, TuningArguments
from softlaunch.errors import ArgumentError

# method → (recipe, its own options)
_METHODS: dict[str, tuple[str, frozenset[str]]] = {
    "p_tuning_v2": (
        "ptuning_chatglm.py",
        frozenset({"pre_seq_len", "prefix_projection", "prefix_dropout", "prefix_init", "prefix_init_text"}),
    ),
    "lora": (
        "lora_chatglm.py",
        frozenset(
            {
                *("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora", "use_dora"),
                "modules_to_save",
            }
        ),
    ),
    "ia3": ("lora_chatglm.py", frozenset({"ia3_target_modules", "ia3_feedforward_modules", "modules_to_save"})),
    "prompt_tuning": ("prompt_tuning.py", frozenset({"pre_seq_len", "prompt_init", "prompt_init_text"})),
    "p_tuning": (
        "prompt_tuning.py",
        frozenset({"pre_seq_len", "encoder_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout"}),
    ),
    "full": ("finetune_chatglm.py", frozenset({"save_format"})),
    "head": ("classify.py", frozenset()),
    "freeze": ("finetune_chatglm.py", frozenset({"freeze_trainable_layers", "save_format"})),
}
_TOGETHER = ("p_tuning_v2", "lora")


def chosen_methods(arguments: Arguments, allowed: Collection[str]) -> tuple[str, ...]:
    """What the run trains: `tuning`, else the first of the methods that the recipe allows; a prefix and LoRA together
    where options of both are given.

    Raises ArgumentError for a method of another recipe, and for options of a method that is not trained.
    """
    return choose_methods(arguments.tuning, arguments.sources, allowed)


def choose_methods(tuning: TuningArguments, given_names: Container[str], allowed: Collection[str]) -> tuple[str, ...]:
    """As `chosen_methods`, from what is known while the arguments are read."""
    given = [name for name in _options() if name in given_names and getattr(tuning, name) != _default(name)]
    chosen = tuning.tuning or _first(allowed, given)
    if chosen not in allowed:
        raise ArgumentError(
            "tuning is {method}, which is not what this recipe does ({allowed}); take recipes/{recipe}",
            method=chosen,
            allowed=", ".join(allowed),
            recipe=_METHODS[chosen][0],
        )
    methods: tuple[str, ...] = (chosen,)
    asked = [m for m in _TOGETHER if m == chosen or any(name in _METHODS[m][1] for name in given)]
    if chosen in _TOGETHER and len(asked) == 2:
        methods = _TOGETHER
    foreign = [name for name in given if not any(name in _METHODS[method][1] for method in methods)]
    if foreign:
        others = methods_with(foreign[0])
        raise ArgumentError(
            "two methods are asked for at once: {method}, and {other} by {options}; take these options out, or set "
            "tuning to {other} (recipes/{recipe}). Only p_tuning_v2 and lora go together",
            method=chosen,
            other=others[0],
            options=", ".join(foreign),
            recipe=_METHODS[others[0]][0],
        )
    return methods


def given_options(arguments: Arguments, methods: Container[str]) -> list[str]:
    """The options of `methods` that were given, and those of others that were given another than the default value."""

    def counts(name: str) -> bool:
        value, is_own = getattr(arguments.tuning, name), any(method in methods for method in methods_with(name))
        return value is not None if is_own else value != _default(name)

    return [name for name in _options() if name in arguments.sources and counts(name)]


def methods_with(option: str) -> list[str]:
    """The methods that have this option."""
    return [method for method, (_, options) in _METHODS.items() if option in options]


def _first(allowed: Collection[str], given: list[str]) -> str:
    """The first method that all given options belong to, else the first one that is allowed."""
    fits = [method for method in allowed if given and set(given) <= _METHODS[method][1]]
    return [*fits, *allowed][0]


def _options() -> list[str]:
    return sorted({name for _, options in _METHODS.values() for name in options})


def _default(name: str) -> object:
    return getattr(TuningArguments(), name)
