"""The command `diffusekrona`: each of its subcommands is one program of the package."""

from __future__ import annotations

import runpy
import sys

# Subcommand to (module, what it does). A module is imported when its subcommand is run.
PROGRAMS = {
    "train": ("diffusekrona.train_dreambooth", "fine-tune a base model on pictures of a subject"),
    "data": (
        "diffusekrona.check_data",
        "show what a folder would be trained on, and what is wrong",
    ),
    "draw": ("diffusekrona.inference", "draw pictures with a base model and adapters"),
    "convert": ("diffusekrona.convert", "convert adapters from and to other programs' formats"),
    "evaluate": ("diffusekrona.evaluate", "score adapters: CLIP-I, CLIP-T, DINO, diversity"),
    "study": ("diffusekrona.study", "sweep settings over training runs, and report"),
    "inspect": ("diffusekrona.inspect", "show what an adapter has learned, layer by layer"),
    "plan": ("diffusekrona.plan", "find the Kronecker factors for a base model and a budget"),
    "choose": ("diffusekrona.choose", "choose the checkpoint and the weight of a finished run"),
    "quickstart": (
        "diffusekrona.quickstart",
        "draw and score a subject before and after fine-tuning",
    ),
    "format-datasets": ("diffusekrona.format_datasets", "bring downloaded subjects into data/"),
    "ui": ("diffusekrona.ui", "open the programs as a page in the browser"),
}


def usage() -> str:
    """The help text."""
    lines = [f"  {name:17}{what}" for name, (_, what) in PROGRAMS.items()]
    foot = "`diffusekrona COMMAND --help` lists the flags of a command."
    return "\n".join(["usage: diffusekrona COMMAND ...", "", "commands:", *lines, "", foot])


def main() -> None:
    """Entry point: run the program that the first argument names, with the other arguments."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        from diffusekrona import __version__

        print(__version__)
    elif name in PROGRAMS:
        sys.argv = [f"diffusekrona {name}", *sys.argv[2:]]
        runpy.run_module(PROGRAMS[name][0], run_name="__main__", alter_sys=True)
    else:
        names = ", ".join(PROGRAMS)
        print(f"error: {name} is not a command: use one of {names}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
