"""`softlaunch …`: everything that is not a training run.

Each command is a module of `softlaunch.commands` with `add_arguments(parser)` and `run(arguments)`. Only the module of
the command that was asked for is imported, for some take seconds and others must not. A parser with the default
`overrides=[]` is given there what it does not know itself: options of a run.
"""

import argparse
import sys
from importlib import import_module

from softlaunch import entry

# command → (module, what it does)
COMMANDS: dict[str, tuple[str, str]] = {
    "plan": ("plan", "say what a run will take and whether it fits, before it starts"),
    "check": ("check", "find all that is wrong with a run before it starts"),
    "submit": ("submit", "start a run as a Slurm job, or write its Kubernetes manifest"),
    "status": ("status", "say how far runs are"),
    "adapters": ("adapters", "list the adapters in directories: method, base, size, scores"),
    "compare": ("compare", "show runs side by side, in a table and a picture"),
    "classify": ("classify", "put texts into the classes that a run of recipes/classify.py has learnt"),
    "convert": ("convert", "put a model or an adapter into the format that another program reads"),
    "merge": ("merge", "put a LoRA or IA3 adapter into its base model"),
    "show": ("show", "the rows of a run as its model sees them: text, ids, loss, what was cut"),
}


def main() -> None:
    """Run the command that the command line names."""
    entry.run(_main)


def _main() -> None:
    asked = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    parser = argparse.ArgumentParser(prog="softlaunch", description="Look at runs, adapters and models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, help) in COMMANDS.items():
        description = f"{help[0].upper()}{help[1:]}."
        command = commands.add_parser(name, help=help, description=description, allow_abbrev=False)
        if name == asked:
            implementation = import_module(f"softlaunch.commands.{module}")
            implementation.add_arguments(command)
            command.set_defaults(run=implementation.run)
    arguments, overrides = parser.parse_known_args()
    if "overrides" in arguments:  # a command that takes a run's options, as the recipes do
        arguments.overrides = [*arguments.overrides, *overrides]
    elif overrides:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    arguments.run(arguments)


if __name__ == "__main__":
    main()
