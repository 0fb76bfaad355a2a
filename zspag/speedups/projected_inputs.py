"""Projected gradients of wide layers, from projected inputs: the same numbers for less work.

The gradient of a weight is D^T A, with the rows A (R x d) that entered it and the derivatives D (R x d_out) of its
outputs. So its projection is D^T (A P), and to project R rows is less than to project d_out rows where they are fewer:
a linear layer of 3,136 inputs and 128 outputs takes a tenth, a convolution of 512 channels at one position a fiftieth.

In a pass, y = A W^T is written as A W0^T + (A P) (W - W0)^T with W0 = W as a constant: the second term is zero, and
the gradient that W gets comes through it alone.

Invariant: outputs and gradients are those of the plain pass, projected, up to rounding.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from zspag.activations import CONVOLUTION_ARGUMENTS, CONVOLUTIONS, bind, linear_rows, rows_of_convolution, tensors_in
from zspag.subspaces import Projector


class ProjectedInputs(TorchFunctionMode):
    """Projects the inputs of layers in the passes inside, where that is cheap.

    ``done`` names the weights whose gradients then come projected.

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
            if project.idempotent and len(project.factors.get(name, ("", ()))[1]) == 1
        }
        self.cheap: set[str] = set()
        self.otherwise: set[str] = set()

    @property
    def done(self) -> set[str]:
        """Weights of which the passes so far gave projected gradients."""
        return self.cheap - self.otherwise

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear or func in CONVOLUTIONS:
            names = ("input", "weight", "bias") if func is F.linear else CONVOLUTION_ARGUMENTS
            bound = bind(names, args, kwargs)
            name = self.names.get(id(bound["weight"]))
            if name is not None and id(bound["input"]) not in self.names:
                weight, given = bound["weight"], bound["input"].detach()
                constant = weight.detach()
                output: Tensor = func(**(bound | {"weight": constant}))
                batched = func is F.linear or output.dim() == weight.dim()
                if batched and 2 * output.numel() < weight.shape[0] ** 2:  # R rows, R = output.numel() / d_out
                    self.cheap.add(name)
                    rows = linear_rows(given) if func is F.linear else rows_of_convolution(bound | {"input": given})[0]
                    change = (weight - constant).flatten(1)
                    moved = F.linear(self.project(name, rows), change)
                    return output + _like_output(moved, output, channels_at=-1 if func is F.linear else 1)
        if self.names:
            for tensor in tensors_in((args, tuple(kwargs.values()))):
                if (name := self.names.get(id(tensor))) is not None:
                    self.otherwise.add(name)
        return func(*args, **kwargs)


def _like_output(rows: Tensor, output: Tensor, *, channels_at: int) -> Tensor:
    """Bring rows (R, d_out), sample by sample and position by position, into the shape of a layer's output."""
    if channels_at == -1:
        return rows.view(output.shape)
    batch, _, *positions = output.shape
    return rows.view(batch, *positions, -1).movedim(-1, 1)
