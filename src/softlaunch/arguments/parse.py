"""From a command line to the resolved `Arguments`, or to one error that lists every problem."""

import dataclasses
import difflib
import json
import logging
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from softlaunch.arguments.checks import Finding, find_conflicts, find_idle_values
from softlaunch.arguments.groups import (
    Arguments,
    ClassificationArguments,
    DataArguments,
    ModelArguments,
    TrainingArguments,
    TuningArguments,
)
from softlaunch.arguments.help import format_help
from softlaunch.arguments.learning_rates import find_far_learning_rate, in_words, learning_rate_of
from softlaunch.arguments.methods import choose_methods, method_of_classifier
from softlaunch.arguments.old_names import Idle, current_options, find_idle, find_old_name, idle_names, old_names
from softlaunch.arguments.options import Option, Refused, from_json, from_text
from softlaunch.arguments.packages import find_missing_packages
from softlaunch.arguments.sources import Given, read_sources
from softlaunch.errors import ArgumentError
from softlaunch.messages import say

logger = logging.getLogger(__name__)

_SWITCH = Option(name="", group="", kinds=frozenset({"bool"}), default=False, help="")


def parse_arguments(
    argv: list[str] | None = None,
    *,
    methods: Collection[str] = (),
    unused: Iterable[str] = (),
    classifies: bool = False,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    description: str = "",
) -> Arguments:
    """Reads `run.json`, `run.json --option value …` or flags alone; flags win over the file, later flags over earlier.

    Flags are `--option value`, `--option=value`, `--option a b` for lists, `--option` and `--no_option` for switches,
    JSON text for options that take an object, and `null` to unset what may be unset. Relative paths, in the file too,
    are relative to the current directory. `--help` prints all options and exits.

    Args:
        argv: the command line after the script's name; that of this process if None.
        methods: those that the recipe can train (see `methods`); the one that the run asks for decides about the
            learning rate if none is given.
        unused: options that the calling recipe does not read: a line says so if one is given.
        classifies: whether the calling recipe reads the options of classification, and may do without files that it
            takes out of train_file; otherwise they are unused.
        defaults: values of the calling recipe for options that are not given.
        description: what the recipe does, for `--help`.

    Returns:
        The arguments. Warnings (old names, options without effect, keys given twice) are logged on the first process.

    Raises:
        ArgumentError: lists all problems, each with its file and key or its flag, the value, and what is allowed.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if "-h" in argv or "--help" in argv:
        told = format_help(description, unused=frozenset(unused), classifies=classifies, defaults=defaults)
        sys.stdout.write(told)
        raise SystemExit(0)
    return _construct(_read(argv, unused, methods, classifies=classifies, defaults=defaults), argv)


def parse_to_look(
    argv: list[str], *, classifies: bool = False, defaults: Mapping[str, Any] = MappingProxyType({})
) -> tuple[ModelArguments, DataArguments, ClassificationArguments]:
    """As `parse_arguments`, for who only looks at a run: the training's options are checked, but its devices, files,
    packages and processes need not be there."""
    reading = _read(argv, classifies=classifies, defaults=defaults)
    return (
        ModelArguments(**reading.of_group("model")),
        DataArguments(**reading.of_group("data")),
        ClassificationArguments(**reading.of_group("classification")),
    )


def check_options(
    argv: list[str], *, methods: Collection[str], classifies: bool, defaults: Mapping[str, Any]
) -> list[str]:
    """As `parse_arguments` for who starts a run elsewhere: it need not be able to run here. Raises ArgumentError.

    Returns the warnings, which are not logged.
    """
    return _read(argv, (), methods, classifies=classifies, defaults=defaults, logs=False).warnings


def refuse_unknown(given: Iterable[Given], own: Collection[str]) -> None:
    """Raises ArgumentError for names that no option has; one of `own` may be meant too."""
    known = {*current_options(), *idle_names(), *old_names()}
    unknown = [item for item in given if _expand_negation(item).name not in known]
    if unknown:
        raise _list_problems([_no_such_option(item, own) for item in unknown])


def _read(
    argv: list[str],
    unused: Iterable[str] = (),
    methods: Collection[str] = (),
    *,
    classifies: bool = False,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    logs: bool = True,
) -> "_Reading":
    given, warnings = read_sources(argv)
    reading = _Reading(warnings=warnings)
    for item in given:
        reading.take(item)
    reading.values = {**defaults, **reading.values}
    reading.check(frozenset(unused), classifies)
    if methods and not reading.problems:
        reading.settle_learning_rate(methods, classifies=classifies)
    if logs and os.environ.get("RANK", "0") == "0":  # before the process group exists there is nothing else to ask
        for warning in reading.warnings:
            logger.warning(warning)
    if reading.problems:
        raise _list_problems(reading.problems)
    return reading


@dataclasses.dataclass
class _Reading:
    """What has been understood so far. `refused` names options that were given, but not understood."""

    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    origins: dict[str, Given] = dataclasses.field(default_factory=dict)
    refused: set[str] = dataclasses.field(default_factory=set)
    warnings: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    settled: dict[str, str] = dataclasses.field(default_factory=dict)

    def take(self, given: Given) -> None:
        """Adds one given value to the values, the warnings or the problems."""
        given = _expand_negation(given)
        idle, old = find_idle(given.name), find_old_name(given.name)
        if idle is not None:
            if not _is_harmless(idle, given):
                self.warnings.append(say("{given} has no effect: {reason}", given=given.shown, reason=say(idle.reason)))
            return
        name = old.new if old else given.name
        option = current_options().get(name)
        if option is None:
            self.problems.append(_no_such_option(given))
            return
        try:
            if old is not None and old.when_true is not None:
                value = old.when_true if _convert(_SWITCH, given) else option.default
            elif old is not None and old.below is not None:
                value = _convert(dataclasses.replace(option, below=old.below), given)
            else:
                value = _convert(option, given)
        except Refused as error:
            self.refused.add(name)
            self.problems.append(say("{given}: {problem}", given=given.shown, problem=error))
            return
        if old is not None:
            setting = _as_given(name, value, given).setting
            self.warnings.append(
                say("{old} is called {name} today: write {setting}", old=given.where, name=name, setting=setting)
            )
        self._set(name, value, given)

    def _set(self, name: str, value: Any, given: Given) -> None:
        earlier = self.origins.get(name)
        if earlier is not None and earlier.file == given.file and self.values[name] != value:
            if earlier.name == given.name:  # --option and --no_option
                self.warnings.append(
                    say("{first} and {last} are both given: the last one counts", first=earlier.shown, last=given.shown)
                )
            else:
                self.problems.append(
                    say(
                        "{first} and {last} name the same option: give {name} alone",
                        first=earlier.shown,
                        last=given.shown,
                        name=name,
                    )
                )
        self.values[name] = value
        self.origins[name] = given

    def check(self, unused: frozenset[str], classifies: bool) -> None:
        """Adds the problems and warnings that concern several options, or options that were not given."""
        options = current_options()
        values = {name: option.default for name, option in options.items()} | self.values
        for name, option in options.items():
            if option.required and not values[name] and name not in self.refused:
                self.problems.append(say("{name} is missing: {help}", name=name, help=say(option.help)))
        conflicts = find_conflicts(values, classifies=classifies)
        self.problems += [self._trace(finding) for finding in conflicts if self._is_sure(finding)]
        idle = [self._trace(finding) for finding in find_idle_values(values, self.values) if self._is_sure(finding)]
        idle += [
            say("{given} has no effect in this recipe", given=self.origins[name].shown)
            for name in self.origins
            if name in unused or (options[name].group == "classification" and not classifies)
        ]
        self.warnings += idle

    def of_group(self, group: str) -> dict[str, Any]:
        """The values of one group of options."""
        return {name: value for name, value in self.values.items() if current_options()[name].group == group}

    def find_missing_packages(self) -> list[str]:
        """The problems with what is installed here."""
        values = {name: option.default for name, option in current_options().items()} | self.values
        return [self._trace(finding) for finding in find_missing_packages(values)]

    def settle_learning_rate(self, allowed: Collection[str], *, classifies: bool) -> None:
        """The method's own where none is given; a warning where one is given that is far from it."""
        values = {name: option.default for name, option in current_options().items()} | self.values
        if not values["do_train"]:
            return
        tuning = TuningArguments(**self.of_group("tuning"))
        trained = method_of_classifier(tuning.adapter) if classifies and tuning.adapter else None
        methods = (trained,) if trained else choose_methods(tuning, self.values, allowed)
        works = learning_rate_of(methods, values, classifies=classifies)
        if "learning_rate" in self.values:
            far = find_far_learning_rate(methods, works, self.values["learning_rate"])
            self.warnings += [self._trace(finding) for finding in far]
        else:
            self.values["learning_rate"] = works
            self.settled["learning_rate"] = f"default of {in_words(methods)}"

    def _is_sure(self, finding: Finding) -> bool:
        names, _ = finding
        return self.refused.isdisjoint(names)

    def _trace(self, finding: Finding) -> str:
        names, message = finding
        given = "; ".join(self.origins[name].shown for name in names if name in self.origins)
        return say("{message} (given: {given})", message=message, given=given) if given else message


def _expand_negation(given: Given) -> Given:
    """`--no_option` as `--option false`; other flags unchanged. `no_cuda` is a name of its own."""
    if given.file is not None or not given.name.startswith("no_") or given.value or find_old_name(given.name):
        return given
    positive = given.name.removeprefix("no_")
    old = find_old_name(positive)
    option = current_options().get(old.new if old else positive)
    is_switch = find_idle(positive) is not None or (option is not None and "bool" in option.kinds)
    return Given(positive, ["false"]) if is_switch else given


def _is_harmless(idle: Idle, given: Given) -> bool:
    if given.file is not None:
        return given.value in (None, idle.harmless)
    return (" ".join(given.value).lower() or "true") == str(idle.harmless).lower()


def _convert(option: Option, given: Given) -> Any:
    return from_text(option, given.value) if given.file is None else from_json(option, given.value)


def _as_given(name: str, value: Any, like: Given) -> Given:
    """`value` under `name`, written the way `like` was."""
    if like.file is not None:
        return Given(name, value, like.file)
    return Given(name, [value if isinstance(value, str) else json.dumps(value)])


def _no_such_option(given: Given, own: Collection[str] = ()) -> str:
    names = {**{name: name for name in (*current_options(), *idle_names())}, **old_names()}
    if not given.file:
        names |= {name: name.replace("_", "-") for name in own}
    near = difflib.get_close_matches(given.name.lower().replace("-", "_"), names, n=1)
    if not near:
        return say("{given}: there is no such option (--help lists all)", given=given.where)
    name = names[near[0]] if given.file else f"--{names[near[0]]}"
    return say("{given}: there is no such option; did you mean {name}?", given=given.where, name=name)


def _list_problems(problems: list[str]) -> ArgumentError:
    title = [say("{number} problems in the arguments:", number=len(problems))] if len(problems) > 1 else []
    return ArgumentError("\n  ".join([*title, *problems]))


def _construct(reading: _Reading, argv: list[str]) -> Arguments:
    """The five groups. TrainingArguments come last: to make them touches devices and the process group."""
    missing = reading.find_missing_packages()
    if missing:
        raise _list_problems(missing)
    model = ModelArguments(**reading.of_group("model"))
    tuning = TuningArguments(**reading.of_group("tuning"))
    data = DataArguments(**reading.of_group("data"))
    classification = ClassificationArguments(**reading.of_group("classification"))
    try:
        training = TrainingArguments(**reading.of_group("training"))
    except ArgumentError:
        raise
    except (ValueError, TypeError, OSError, ImportError) as error:
        # transformers' own checks, nested settings that it hands on, a file or package that an option needs
        raise ArgumentError(
            "the training arguments do not fit each other or this machine: {error}", error=error
        ) from error
    return Arguments(
        model=model,
        tuning=tuning,
        data=data,
        classification=classification,
        training=training,
        sources=MappingProxyType(
            {name: item.file or f"--{item.name}" for name, item in reading.origins.items()} | reading.settled
        ),
        warnings=tuple(reading.warnings),
        argv=tuple(argv),
    )
