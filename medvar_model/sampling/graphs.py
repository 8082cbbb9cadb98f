"""Record a pass over a GPU as one CUDA graph, and replay it: a launch for the whole pass in place of one for each kernel.

In: a function of tensors that never asks the device for an answer. Out: the same function, for inputs of the same shapes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UPS = 3  # passes before recording, in which libraries choose their kernels and take their memory


class Recorded:
    """A recorded pass.

    Args:
        run: the pass.
        inputs: its arguments; later ones have the same shapes and types.
    """

    def __init__(self, run: Callable[..., list[Tensor]], inputs: Sequence[Tensor]):
        self._inputs = [tensor.clone() for tensor in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                run(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = run(*self._inputs)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run the pass on new inputs; the answers are copies, which later calls leave alone."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return [output.clone() for output in self._outputs]
