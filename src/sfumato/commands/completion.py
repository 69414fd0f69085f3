"""``sfumato completion``: what a shell asks when Tab is pressed, and what it is told."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import tyro

from sfumato.commands import fields, help
from sfumato.errors import SfumatoError
from sfumato.methods import index
from sfumato.tasks import recipes

ASKED = "--complete"
"""The option that asks for what may stand behind the words that follow it, the last of which is being typed."""
_BASH = """_sfumato() {
  local IFS=$'\\n'
  COMPREPLY=($(sfumato --complete "${COMP_WORDS[@]:1:$COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _sfumato sfumato"""
SCRIPTS = {
    "bash": _BASH,
    # of a shell that completes nothing yet: bashcompinit needs compinit, which is slow to run twice
    "zsh": f"(( $+functions[compdef] )) || {{ autoload -U compinit && compinit; }}\n"
    f"autoload -U +X bashcompinit && bashcompinit\n{_BASH}",
    "fish": 'complete -c sfumato -a "(sfumato --complete (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)"',
}


def completion(
    shell: Annotated[tyro.conf.Positional[Literal["bash", "zsh", "fish"]], tyro.conf.arg(help="Whose.")],
) -> None:
    """Print what teaches a shell to complete commands, methods, options and their words.

    Example: eval "$(sfumato completion bash)"

    Example: sfumato completion fish > ~/.config/fish/completions/sfumato.fish
    """
    print(SCRIPTS[shell])


def complete(
    words: Sequence[str],
    commands: Mapping[str, Callable[..., Any]],
    groups: Mapping[str, Callable[[str], Mapping[str, Callable[..., Any]]]],
    methods: Callable[[str], Collection[str]],
    heads: str,
) -> list[str]:
    """What the last of ``words`` may become; nothing where any file or text may stand.

    ``groups`` give commands that are a word more, ``methods`` the words of those that a command takes; of ``heads``
    they are heads.
    """
    *before, begun = words or [""]
    if before and before[0] in groups:
        group, *before = before
        commands = groups[group](before[0] if before else "")
    if not before:
        return sorted(name for name in commands if name.startswith(begun))
    name, *rest = before
    if name not in commands:
        return []
    found = _next(commands[name], rest, methods(name), name == heads)
    return sorted({word for word in found if word.startswith(begun)})


def _next(command: Callable[..., Any], rest: Sequence[str], words: Collection[str], head: bool) -> Iterator[str]:
    """Choices of the option before it; or else options of the last method and the command, and methods."""
    last = next((word for word in reversed(rest) if word in words), None)
    presets = [] if last is None else recipes.preset_names(index.find(last), head)
    if presets and rest[-1] == "--preset":
        yield from presets
        return
    classes = [command] if last is None else [_class(last, head), command]
    for cls in filter(None, classes):
        for action in help.parser(cls)._actions:
            if rest and rest[-1] in action.option_strings and action.nargs != 0:
                yield from (str(choice) for choice in action.choices or () if str(choice) != "None")
                return
    for cls in filter(None, classes):
        yield from (option for action in help.parser(cls)._actions for option in action.option_strings)
    yield from ["--preset"] if presets else []
    if last is None or rest[-1] == "+":
        yield from words
    elif rest:
        yield "+"


def _class(word: str, head: bool) -> Any:
    try:
        return fields.sketch_of(word, head) or fields.class_of(word, head)
    except SfumatoError:  # of a method that no command line can make
        return None
