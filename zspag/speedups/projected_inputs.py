"""Projected gradients of wide layers, from projected inputs: the same numbers for less work.

The gradient of a weight is D^T A, with the rows A (R x d) that entered it and the derivatives D (R x d_out) of its
outputs. So its projection is D^T (A P), and to project R rows is less than to project d_out rows where they are fewer:
a linear layer of 3,136 inputs and 128 outputs takes a tenth, a convolution of 512 channels at one position a fiftieth.

In a pass, a layer runs with its weight as a constant. A step of autograd behind it hands the output on as it is, and
gives the weight the gradient D^T (A P). No other array of the size of the weight is made.

Invariant: outputs and gradients are those of the plain pass, projected, up to rounding.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
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
                output: Tensor = func(**(bound | {"weight": weight.detach()}))
                batched = func is F.linear or output.dim() == weight.dim()
                if batched and 2 * output.numel() < weight.shape[0] ** 2:  # R rows, R = output.numel() / d_out
                    self.cheap.add(name)
                    rows = linear_rows(given) if func is F.linear else rows_of_convolution(bound | {"input": given})[0]
                    channels = -1 if func is F.linear else 1
                    return _WithGradient.apply(output, self.project(name, rows), weight, channels)
        if self.names:
            for tensor in tensors_in((args, tuple(kwargs.values()))):
                if (name := self.names.get(id(tensor))) is not None:
                    self.otherwise.add(name)
        return func(*args, **kwargs)


class _WithGradient(torch.autograd.Function):
    """Hands the output of a layer on as it is, and gives its weight the gradient that other rows make."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, rows: Tensor, weight: Tensor, channels: int) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape, ctx.channels = weight.shape, channels
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, derivative: Tensor) -> tuple[Tensor, None, Tensor, None]:
        (rows,) = ctx.saved_tensors
        of_outputs = derivative.movedim(ctx.channels, -1).flatten(0, -2)
        return derivative, None, (of_outputs.T @ rows.flatten(0, -2)).view(ctx.shape), None
