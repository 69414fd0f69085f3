"""Words of English by which a caption's things are told from what is between them (ReVersion, Huang et al. 2023)."""

from __future__ import annotations

_PREPOSITIONS = """
aboard about above across after against along alongside amid amidst among amongst anti around astride at atop before
behind below beneath beside between beyond by down following from in including inside into near of off on onto opposite
out outside over past regarding round through throughout to toward towards under underneath up upon versus with within
"""
_NAMELESS = """
a an the i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers
herself it its itself they them their theirs themselves what which who whom this that these those all any both each few
more most other some such own same am is are was were be been being have has had having do does did doing can will don
should and but if or because as until while for during again further then once here there when where why how no nor not
only so than too very s t just now
"""
BASIS = tuple(_PREPOSITIONS.split())
"""The 56 prepositions that a relation is steered to."""
_STOP = frozenset(_NAMELESS.split())
"""Words that name nothing, of the usual list of English ones, without prepositions."""


def named(caption: str, word: str) -> list[str]:
    """What a caption names beside ``word``: its words, without prepositions and those that name nothing.

    Marks around words are passed over.
    """
    rest = caption.lower().replace(word.lower(), " ")
    words = [each.strip(".,;:!?\"'()[]{}<>“”‘’«»…") for each in rest.split()]
    return [each for each in words if each and each not in _STOP and each not in BASIS]
