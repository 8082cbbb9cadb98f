"""Take the steps of a training: passes and their gradients, the exchange between processes, clipping, AdamW.

In: a process's part of a batch. Out: the mean loss and its parts; the weights after the step.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from medvar_model.machine.processes import Process
from medvar_model.training.objective import Batch, Draw, Objective
from medvar_model.training.parallel import exchange_gradients, replica, whole
from medvar_model.training.settings import LoopSettings

FIRST_SCALE = (
    2.0**11
)  # of float16's losses; halved where gradients overflow, doubled after 2,000 steps without (VAR begins so)


class Stepper:
    """An objective's optimizer, and how one step is made of passes.

    Args:
        objective: what is trained.
        parameter_groups: of AdamW; see `objective.decay_groups`.
        settings: of the run.
        process: this process.

    Attributes:
        parameters: in the order of the groups.
        optimizer: AdamW.
        dtype: what autocast computes in; None for float32.
        scaler: of float16's losses; does nothing in other types.
    """

    def __init__(
        self, objective: Objective, parameter_groups: list[dict[str, Any]], settings: LoopSettings, process: Process
    ) -> None:
        self.objective, self.settings, self.process = objective, settings, process
        self.parameters: list[nn.Parameter] = [p for group in parameter_groups for p in group["params"]]
        # One kernel for all parameters: 3 to 5 times faster than torch's default on a CPU (58 to 203 tensors).
        self.fused = process.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(parameter_groups, lr=0.0, betas=settings.betas, eps=1e-8, fused=self.fused)
        self.dtype = settings.compute_type(process.device)
        device = process.device.type
        self.autocast = torch.autocast(device, self.dtype or torch.bfloat16, enabled=self.dtype is not None)
        self.scaler = torch.amp.GradScaler(device, init_scale=FIRST_SCALE, enabled=self.dtype is torch.float16)
        self._replica = replica(objective, process)

    def gradients(self, step: int, examples: Batch) -> dict[str, Tensor]:
        """Add up the gradients of this process's images, pass by pass; return the mean loss and its parts."""
        settings, count = self.settings, len(examples)
        size = settings.micro_batch or count
        sums: dict[str, Tensor] = {}
        for start in range(0, count, size):
            part = examples.part(start, min(start + size, count))
            draw = Draw(settings.seed, step, self.process.rank * count + start)
            exchange_gradients(self._replica, self.objective.network, start + size >= count)
            with self.autocast:
                losses = self._replica(part, draw)
            share = len(part) / count
            self.scaler.scale(losses["loss"] * share).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach().float() * share
        return sums

    def norm(self) -> Tensor:
        """Return the length of the gradient, of all processes together."""
        self.scaler.unscale_(self.optimizer)
        return whole(nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))

    def step(self, norm: float, rate: float) -> None:
        """Take a step of the given rate, with the gradient of the given length shortened to `clip`."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if norm > self.settings.clip:
            factor = self.settings.clip / (norm + 1e-6)  # as torch's clip_grad_norm_
            torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], factor)
        self.optimizer.step()

    def finish(self) -> None:
        """Forget the gradients, and choose the scale of float16's next losses."""
        if self.scaler.is_enabled():
            self.scaler.update()
        self.optimizer.zero_grad()

    def overflowed(self, loss: float, norm: float) -> bool:
        """Tell whether a gradient is not finite because float16's scale was too large, which the next step mends."""
        return (
            self.scaler.is_enabled() and math.isfinite(loss) and not math.isfinite(norm) and self.scaler.get_scale() > 1
        )

    def scale(self) -> Tensor:
        """Return float16's scale and the steps since it last changed."""
        state = self.scaler.state_dict()
        return torch.tensor([state["scale"], state["_growth_tracker"]], dtype=torch.float64)

    def set_scale(self, values: Tensor) -> None:
        """Go on from what `scale` returned."""
        scale, steps = values.tolist()
        self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": scale, "_growth_tracker": int(steps)})
