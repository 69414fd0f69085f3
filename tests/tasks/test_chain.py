"""Methods in order: each gets its own, and one of them says where to start."""

from __future__ import annotations

import pytest

from sfumato.errors import SfumatoError
from sfumato.inversion import Direct
from sfumato.methods.edit import DiffEdit, PromptToPrompt, SDEdit
from sfumato.tasks.chain import NONE, Chain


def chain(**items: object) -> Chain:
    return Chain(tuple(items.values()), tuple(items))


def test_a_chain_gives_each_its_own():
    both = chain(sdedit=SDEdit(strength=0.3), p2p=PromptToPrompt()).given(seed=7).stepped(12)
    start = both.starter(Direct())
    assert isinstance(start, SDEdit) and (start.seed, start.steps, start.strength) == (7, 12, 0.3)
    assert [type(m) for m in both.methods] == [PromptToPrompt]
    assert chain(p2p=PromptToPrompt()).starter(Direct()) == NONE.starter(Direct()) == Direct()
    explicit = chain(sdedit=SDEdit(seed=3)).given(seed=7).items[0]
    assert explicit.seed == 3


def test_one_says_where_to_start():
    with pytest.raises(SfumatoError, match="sdedit and diffedit both say where to start"):
        chain(sdedit=SDEdit(), diffedit=DiffEdit()).starter(Direct())
