"""FusedSGD's interface: zero_grad has no argument; the first step creates the buffers."""

import torch


class FusedSGD(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening}
        super().__init__(params, {**defaults, "weight_decay": weight_decay, "nesterov": nesterov})

    def zero_grad(self):
        super().zero_grad()

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            with_grad = [p for p in group["params"] if p.grad is not None]
            # The kernel takes one flag for the group, set by its last parameter.
            first = bool(with_grad) and "momentum_buffer" not in self.state[with_grad[-1]]
            for p in with_grad:
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                # The kernel walks all three side by side in memory.
                assert p.stride() == p.grad.stride() == buffer.stride()
                grad = p.grad + group["weight_decay"] * p
                if group["momentum"]:
                    buffer.copy_(grad if first else group["momentum"] * buffer + grad)
                    grad = grad + group["momentum"] * buffer if group["nesterov"] else buffer
                p.sub_(grad, alpha=group["lr"])
