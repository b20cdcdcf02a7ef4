"""Print the script with which a shell completes the words of `lgf` on Tab.

  eval "$(lgf completion bash)"                                  in ~/.bashrc
  eval "$(lgf completion zsh)"                                   in ~/.zshrc, after compinit
  lgf completion fish > ~/.config/fish/completions/lgf.fish      once

The script contains the words of the installed version; no Python runs when Tab is pressed.
"""

import argparse
import importlib.util
from pathlib import Path

from . import doctor, verify

BASH = """\
_lgf() {{
    local words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    else
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o bashdefault -o default -F _lgf lgf
"""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="lgf completion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("shell", choices=SHELLS)
    return result


def main(arguments: list[str]) -> int:
    print(SHELLS[parser().parse_args(arguments).shell](words()), end="")
    return 0


def words() -> dict[str, list[str]]:
    """Return the words that may follow each command, besides files; for commands that import torch only --help."""
    from .main import COMMANDS

    return {name: ["--help"] for name in COMMANDS} | {
        "doctor": _words(doctor.parser()),
        "verify": _words(verify.parser()),
        "train": ["--help", *recipes()],
        "eval": ["--help", "vbench", "fvd", "motion", "tracks", "encoder"],
        "completion": _words(parser()),
    }


def _words(command: argparse.ArgumentParser) -> list[str]:
    return [word for action in command._actions for word in action.option_strings or action.choices or ()]


def recipes() -> list[str]:
    """Return the names of the trainer's own recipes, without importing the trainer."""
    trainer = importlib.util.find_spec("lgf_trainer")
    folders = trainer.submodule_search_locations if trainer else []
    return sorted(path.stem for folder in folders for path in Path(folder, "recipes").glob("*.yaml"))


def bash(words: dict[str, list[str]]) -> str:
    cases = "\n".join(f'            {name}) words="{" ".join(found)}" ;;' for name, found in words.items())
    return BASH.format(commands=" ".join(words), cases=cases)


def zsh(words: dict[str, list[str]]) -> str:
    return "autoload -U +X bashcompinit && bashcompinit\n" + bash(words)


def fish(words: dict[str, list[str]]) -> str:
    from .main import COMMANDS

    lines = []
    for name, found in words.items():
        lines.append(f"complete -c lgf -n __fish_use_subcommand -a {name} -d '{COMMANDS[name].summary}'")
        lines += [f"complete -c lgf -n '__fish_seen_subcommand_from {name}' -a '{word}'" for word in found]
    return "\n".join(lines) + "\n"


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
