"""Disentangled textual inversion (Jambon 2023, section 6.1): what lies around a thing is absorbed by a word of its own.

Things are photographed where they stand, and one word learns both. Here two words are learned together: whole pictures
under "a photo of a <thing> in a scene <around>", and what lies around the thing under "a photo of a scene <around>", so
that nothing of the surroundings is left for the thing's word to say. The second word absorbs, and is not kept.

Defaults: as textual inversion, as the text has it, half of each step for either. Different from it: in the place of
crops of the surroundings the loss of the second half leaves out what is in the thing's mask.

Needs: as textual inversion, and a mask of the thing in each picture.

Families: Stable Diffusion 1, 2, XL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from sfumato.core.conditions import Cond
from sfumato.core.settings import Between, Count, Weight
from sfumato.errors import SfumatoError
from sfumato.learning.concepts import Concept, padded
from sfumato.learning.personal import Asked, Personalisation
from sfumato.learning.teaching import Part, Taught, Teaching, filled
from sfumato.methods.personalise.templates import OBJECT
from sfumato.methods.personalise.textual_inversion import begun


@dataclass(frozen=True)
class DisentangledInversion(Personalisation):
    """Learns the vectors of a word beside those of what lies around."""

    wants_masks: ClassVar[bool] = True
    steps: Count = 3000
    """How often the vectors move."""
    batch: Annotated[int, Between(2, 4096)] = 4
    """Pictures of a step: half whole, half of what lies around."""
    rate: Weight = 2e-3
    """Of AdamW."""
    vectors: Count = 1
    """How many each word is read as."""
    scene: str = "scene"
    """What lies around, in words that the model knows, such as room."""
    templates: tuple[str, ...] = ()
    """Other captions than those of objects, with {} for the word."""

    def problem(self, asked: Asked) -> Both:
        masks = asked.lesson.masks
        assert masks is not None
        outside = 1 - masks
        if full := [i for i, mask in enumerate(outside.sum((1, 2, 3)).tolist()) if mask < 1]:
            raise SfumatoError(f"nothing lies around the mask of picture {full[0] + 1}; leave that picture out")
        around, templates = f"{asked.word}@", self.templates or OBJECT
        seen = f"{self.scene} {around}"
        parts = [
            Part(
                replace(asked.lesson, masks=None),
                filled([f"{template} in a {seen}" for template in templates], asked.word),
                self.batch - self.batch // 2,
            ),
            Part(replace(asked.lesson, masks=outside), filled(templates, seen), self.batch // 2),
        ]
        rows = {key: padded(own, self.vectors) for key, own in asked.model.vectors(self.scene).items()}
        return Both(asked.model, parts, asked.seed, words={asked.word: begun(asked, self.vectors), around: rows})

    def concept(self, asked: Asked, problem: Any) -> Concept:
        return Concept(asked.word, {key: rows.detach().clone() for key, rows in problem.rows[asked.word].items()})


@dataclass(eq=False)
class Both(Teaching):
    """The rows of several words are to make the network see the pictures."""

    words: Mapping[str, Mapping[str, Float[Tensor, "k d"]]] = field(default_factory=dict)
    """What each begins as."""
    name: str = "the words"

    def __post_init__(self) -> None:
        self.rows = {
            word: nn.ParameterDict({key: nn.Parameter(rows.clone()) for key, rows in own.items()})
            for word, own in self.words.items()
        }
        self.modules = {f"word{i}": own for i, own in enumerate(self.rows.values())}
        self.model = self.model.with_words(self.words)

    def cond(self, taught: Sequence[Taught]) -> Cond:
        rows = {word: dict(own) for word, own in self.rows.items()}
        return self.model.read([c for each in taught for c in each.captions], rows)
