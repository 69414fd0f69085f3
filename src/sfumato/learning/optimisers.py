"""Optimisers whose parameters, rates and moments go by names, so that a run may replace what it learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from sfumato.errors import SfumatoError


def grouped(named: Mapping[str, nn.Parameter], rates: Mapping[str, float]) -> list:
    """What an optimiser takes: the parameters, or groups of them where ``rates`` names some, or modules of them.

    Of several names that hold the longest counts; what none names has the optimiser's own rate. Raises ``SfumatoError``
    for a name of nothing.
    """
    if not rates:
        return list(named.values())
    of: dict[str | None, list[nn.Parameter]] = {}
    for name, parameter in named.items():
        holds = [key for key in rates if f"{name}.".startswith(f"{key}.")]
        of.setdefault(max(holds, key=len, default=None), []).append(parameter)
    if unknown := [key for key in rates if not any(f"{name}.".startswith(f"{key}.") for name in named)]:
        raise SfumatoError(f"there is a rate for {', '.join(unknown)}; what learns is {', '.join(named)}")
    return [{"params": some} | ({} if key is None else {"lr": rates[key]}) for key, some in of.items()]


class Optimisers:
    """Optimisers that step together."""

    def __init__(
        self, named: Mapping[str, nn.Parameter], optimisers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer]
    ) -> None:
        self.named = dict(named)
        """What they move; ``replace`` changes it."""
        self._all = [optimisers] if isinstance(optimisers, torch.optim.Optimizer) else list(optimisers)
        self._rates = [[group["lr"] for group in each.param_groups] for each in self._all]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What they move, in their own order."""
        return [p for each in self._all for group in each.param_groups for p in group["params"]]

    def rate(self, of: Callable[[float], float]) -> None:
        """Set each group's rate, from the one that it began with."""
        for each, rates in zip(self._all, self._rates, strict=True):
            for group, rate in zip(each.param_groups, rates, strict=True):
                group["lr"] = of(rate)

    def rate_of(self, name: str, rate: float) -> None:
        """Set the rate of the group that this parameter is in, for this step."""
        for each in self._all:
            for group in each.param_groups:
                if any(p is self.named[name] for p in group["params"]):
                    group["lr"] = rate

    def step(self) -> None:
        for each in self._all:
            each.step()

    def zero_grad(self) -> None:
        for each in self._all:
            each.zero_grad(set_to_none=True)

    def moments(self) -> dict[str, Tensor]:
        """What they keep of each parameter: ``name.moment``. What no gradient has reached has none."""
        return {
            f"{name}.{key}": torch.as_tensor(value)
            for name, parameter in self.named.items()
            for each in self._all
            for key, value in each.state.get(parameter, {}).items()
            if value is not None
        }

    def restore(self, moments: Mapping[str, Tensor]) -> None:
        names = {parameter: name for name, parameter in self.named.items()}
        of: dict[str, dict[str, Tensor]] = {}
        for place, value in moments.items():
            name, _, key = place.rpartition(".")
            of.setdefault(name, {})[key] = value
        for each in self._all:
            ordered = [parameter for group in each.param_groups for parameter in group["params"]]
            state = {
                i: {key: value if key == "step" else _laid(value, p) for key, value in of[names[p]].items()}
                for i, p in enumerate(ordered)
                if names[p] in of
            }
            each.load_state_dict({**each.state_dict(), "state": state})

    def replace(self, name: str, parameter: nn.Parameter, moved: Callable[[Tensor], Tensor]) -> None:
        """Learn ``parameter`` in the place of what has this name; ``moved`` brings its moments to the new shape."""
        old = self.named[name]
        self.named[name] = parameter
        for each in self._all:
            for group in each.param_groups:
                group["params"] = [parameter if p is old else p for p in group["params"]]
            if old in each.state:
                state = each.state.pop(old)
                each.state[parameter] = {
                    k: moved(v) if k != "step" and isinstance(v, Tensor) else v for k, v in state.items()
                }


def _laid(moment: Tensor, parameter: Tensor) -> Tensor:
    """The moment in its parameter's memory format: a fused optimiser pairs them by their place in memory."""
    return torch.empty_like(parameter).copy_(moment)
