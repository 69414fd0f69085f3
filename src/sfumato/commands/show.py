"""``sfumato show``: what there is, and what a run would do."""

from __future__ import annotations

from sfumato.commands.methods import methods
from sfumato.commands.models import models
from sfumato.commands.plan import plan
from sfumato.commands.sites import sites

SHOWN = {f.__name__: f for f in (models, methods, sites, plan)}


def show() -> None:
    """Show the models, the methods, a model's attention calls, or the plan of an edit. One word more says which.

    Example: sfumato show methods
    """
