"""Projected gradients of wide linear layers, from projected inputs: the same numbers for less work.

The gradient of a linear layer's weight is D^T A, with the rows A (R x d) that entered it and the derivatives D (R x
d_out) of its outputs. So its projection is D^T (A P), and to project R rows is less than to project d_out rows where a
batch is small: for 3,136 inputs and 128 outputs a tenth.

In a pass, y = A W^T is written as A W0^T + (A P) (W - W0)^T with W0 = W as a constant: the second term is zero, and
the gradient that W gets comes through it alone.

Invariant: outputs and gradients are those of the plain pass, projected, up to rounding.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from zspag.activations import bind, linear_rows, tensors_in
from zspag.subspaces import Projector


class ProjectedLinear(TorchFunctionMode):
    """Projects inputs of linear layers in the passes inside; ``done`` names the weights whose gradients need no more.

    A weight that anything else uses, too, is projected by the caller again, which is why the projector must be
    idempotent.

    Args:
        parameters: The parameters that move, by name.
        project: A hard projector, in the precision of the parameters.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], project: Projector) -> None:
        super().__init__()
        self.project = project
        self.names = {
            id(parameter): name
            for name, parameter in parameters.items()
            if project.idempotent and name in project.factors and len(project.factors[name][1]) == 1
        }
        self.linear: set[str] = set()
        self.otherwise: set[str] = set()

    @property
    def done(self) -> set[str]:
        """Weights of which the passes so far gave projected gradients."""
        return self.linear - self.otherwise

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            bound = bind(("input", "weight", "bias"), args, kwargs)
            name = self.names.get(id(bound["weight"]))
            if name is not None and 2 * linear_rows(bound["input"]).shape[0] < bound["weight"].shape[0]:
                self.linear.add(name)
                return self._linear(name, bound["input"], bound["weight"], bound.get("bias"))
        if self.names:
            for tensor in tensors_in((args, tuple(kwargs.values()))):
                if (name := self.names.get(id(tensor))) is not None:
                    self.otherwise.add(name)
        return func(*args, **kwargs)

    def _linear(self, name: str, given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        constant = weight.detach()
        rows = linear_rows(given.detach())
        kept = self.project(name, rows).reshape(given.shape)  # a gradient's rows and these are projected alike
        return F.linear(given, constant, bias) + F.linear(kept, weight - constant)
