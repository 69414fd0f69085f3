"""``sfumato show``: what there is, what a run would do, and a scene from all around."""

from __future__ import annotations

from sfumato.commands.models import models
from sfumato.commands.plan import plan
from sfumato.commands.show_scene import scene
from sfumato.commands.sites import sites

SHOWN = {f.__name__: f for f in (models, sites, plan, scene)}


def show() -> None:
    """Show the models, a model's attention calls, the plan of an edit, or a scene. A word more says which.

    Example: sfumato show models
    """
