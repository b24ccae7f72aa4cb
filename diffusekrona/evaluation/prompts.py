"""What a fine-tuned subject is asked to do: prompts in the manner of DreamBooth's protocol.

Two kinds of subject, objects and live ones, and two kinds of prompt: a "context" puts the subject
somewhere or beside something and must leave it as it is; an "attribute" changes it. In a template

    {subject}   becomes "a sks dog" (with the right article)
    {name}      becomes "sks dog", for words between article and name: "a wet {name}"

Your own list is a text file with one template per line; `attribute:` before it says its kind,
`#` begins a comment.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..common.errors import UserError, shortened
from ..common.paths import as_path
from ..common.text_files import read_text


@dataclass(frozen=True)
class Prompt:
    """One template and its kind, "context" or "attribute"."""

    template: str
    kind: str = "context"

    def text(self, name: str) -> str:
        """The prompt for a subject called `name`, such as "sks dog"."""
        return self.template.replace("{subject}", f"{article(name)} {name}").replace("{name}", name)


def article(name: str) -> str:
    """ "a" or "an"."""
    return "an" if name[:1].lower() in set("aeiou") else "a"


def _contexts(*templates: str) -> tuple[Prompt, ...]:
    return tuple(Prompt(template) for template in templates)


def _attributes(*templates: str) -> tuple[Prompt, ...]:
    return tuple(Prompt(template, "attribute") for template in templates)


_PLACES = _contexts(
    "{subject} among the plants of a rainforest",
    "{subject} in deep snow",
    "{subject} on a sandy beach by the sea",
    "{subject} in a narrow street paved with stones",
    "{subject} lying on pink silk",
    "{subject} on wooden floorboards",
    "{subject} in front of the skyline of a big city",
    "{subject} with snowy mountains behind it",
    "{subject} in front of a house painted blue",
    "{subject} on a violet carpet between forest trees",
)

_CHANGES = _attributes(
    "a bright red {name}",
    "a purple {name}",
    "a glossy, polished {name}",
    "a dripping wet {name}",
    "a {name} in the shape of a cube",
)

OBJECT = (
    *_PLACES,
    *_contexts(
        "{subject} in a field of ripe wheat",
        "{subject} under a tree with orange autumn leaves",
        "{subject} with the Eiffel Tower far behind it",
        "{subject} drifting on a calm lake",
        "{subject} in a sea of white milk",
        "{subject} on a lawn surrounded by sunflowers",
        "{subject} standing on a mirror",
        "{subject} on the pavement among many passers-by",
        "{subject} on a dusty country road",
        "{subject} on a fluffy white rug",
    ),
    *_CHANGES,
)

LIVE = (
    *_PLACES,
    *_attributes(
        "{subject} with a red hat on its head",
        "{subject} with a Father Christmas hat",
        "{subject} with a scarf in the colours of the rainbow",
        "{subject} with a black top hat and a monocle",
        "{subject} dressed as a cook",
        "{subject} dressed as a firefighter",
        "{subject} in a police uniform",
        "{subject} with pink glasses",
        "{subject} in a yellow shirt",
        "{subject} in a purple wizard's robe",
    ),
    *_CHANGES,
)

# Within the words that the bundled base models know; none of these places is in a sample photo.
POCKET = _contexts(
    "{subject} in the forest",
    "{subject} on the beach",
    "{subject} in the snow",
    "{subject} in the desert",
    "{subject} in front of mountains",
    "{subject} by a lake",
    "{subject} in the city",
    "{subject} at sunset",
)

# A colour for the subject, and a place.
POCKET_COLOURS = _attributes(
    "a red {name} in the forest",
    "a blue {name} on the beach",
    "a green {name} in the snow",
    "a purple {name} in the desert",
    "a yellow {name} in front of mountains",
    "a black {name} by a lake",
    "a white {name} in the city",
    "a pink {name} at sunset",
)

LISTS = {"object": OBJECT, "live": LIVE, "pocket": POCKET, "pocket-colours": POCKET_COLOURS}


def choose_list(asked: str, bundled_base: bool) -> str:
    """ "auto" to the list that suits the base; whatever else is asked for stays."""
    if asked != "auto":
        return asked
    return "pocket" if bundled_base else "object"


def get_prompts(name_or_file: str) -> tuple[Prompt, ...]:
    """A list by name, or from a text file.

    Raises:
        UserError: neither; a file with a line that does not name the subject, or with none.
    """
    if name_or_file in LISTS:
        return LISTS[name_or_file]
    path = as_path(name_or_file)
    if not os.path.exists(path):
        raise UserError(
            f"No prompts {shortened(name_or_file)}: give a text file, or one of: "
            f"{', '.join(LISTS)}."
        )
    lines = read_text(path).split("\n")
    return parse_prompts([line for line in lines if not line.lstrip().startswith("#")], str(path))


def parse_prompts(lines: Sequence[str], source: str) -> tuple[Prompt, ...]:
    """Templates from lines of text. Raises UserError for a line without the subject."""
    prompts = []
    for line in filter(None, map(str.strip, lines)):
        head, colon, rest = line.partition(":")
        kind = head.strip().lower() if colon else ""
        named = kind in ("context", "attribute")
        template = rest.strip() if named else line
        if "{subject}" not in template and "{name}" not in template:
            raise UserError(
                f"{source}: {shortened(line)!r} has neither {{subject}} nor {{name}}, where the "
                "subject goes."
            )
        prompts.append(Prompt(template, kind if named else "context"))
    if not prompts:
        raise UserError(f"{source} holds no prompt: write one template per line.")
    return tuple(prompts)
