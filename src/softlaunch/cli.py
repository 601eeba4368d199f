"""`softlaunch …`: everything that is not a training run.

Each command is a module of `softlaunch.commands` with `add_arguments(parser)` and `run(arguments)`. Only the module of
the command that was asked for is imported, for some take seconds and others must not.
"""

import argparse
import sys
from importlib import import_module

from softlaunch import entry

# command → (module, what it does)
COMMANDS: dict[str, tuple[str, str]] = {
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
        command = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        if name == asked:
            implementation = import_module(f"softlaunch.commands.{module}")
            implementation.add_arguments(command)
            command.set_defaults(run=implementation.run)
    arguments = parser.parse_args()
    arguments.run(arguments)
