"""apex.amp's interface at O1: patched functions, scale_loss, an optimizer that skips overflows."""

import types
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from apex import amp as _this

_PATCHED = ("conv2d", "linear")


class _Handle:
    def __init__(self):
        self._is_active = True
        self._originals = {name: getattr(F, name) for name in _PATCHED}
        self.cache = {}

    def _clear_cache(self):
        self.cache.clear()

    def _deactivate(self):
        for name, original in self._originals.items():
            setattr(F, name, original)


_amp_state = types.SimpleNamespace()
CALLS = []
"""Names of the calls, which tests read."""


def _casting(original, handle):
    def cast(value):
        if not isinstance(value, torch.Tensor):
            return value
        # Rounded, and its gradient too, then computed in float32: a CPU's float16 takes seconds.
        if not isinstance(value, torch.nn.Parameter):
            return value.half().float()
        # The first cast of a weight is used until the cache is cleared, even if the weight changes.
        if value not in handle.cache:
            handle.cache[value] = value.half().float()
        return handle.cache[value]

    def wrapper(*args, **kwargs):
        if not handle._is_active:
            return original(*args, **kwargs)
        return original(*map(cast, args), **{k: cast(v) for k, v in kwargs.items()})

    return wrapper


def initialize(model, optimizer, opt_level, loss_scale, verbosity):
    import warnings

    warnings.warn("apex.amp is deprecated", FutureWarning, stacklevel=2)
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        raise RuntimeError("initialize comes before DistributedDataParallel")
    assert opt_level == "O1" and verbosity == 0
    CALLS.append("initialize")
    state = _this._amp_state
    state.handle = handle = _Handle()
    state.dynamic = loss_scale == "dynamic"
    state.scale = 2.0**16 if state.dynamic else float(loss_scale)
    state.unskipped = 0
    for name in _PATCHED:
        setattr(F, name, _casting(getattr(F, name), handle))
    step = optimizer.step

    def step_without_casts(self):
        handle._is_active = False
        step()
        handle._is_active = True

    optimizer.step = types.MethodType(step_without_casts, optimizer)
    return model, optimizer


@contextmanager
def scale_loss(loss, optimizer, delay_unscale=False):
    state = _this._amp_state
    CALLS.append("delayed" if delay_unscale else "unscaled")
    yield loss.float() * state.scale
    state.handle._clear_cache()
    if delay_unscale:
        return
    grads = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    for grad in grads:
        grad.mul_(1.0 / state.scale)
    if state.dynamic and not all(bool(torch.isfinite(grad).all()) for grad in grads):
        state.scale /= 2
        state.unskipped = 0
        step = optimizer.step

        def skip(self):
            optimizer.step = step

        optimizer.step = types.MethodType(skip, optimizer)
    else:
        state.unskipped += 1


def state_dict():
    state = _this._amp_state
    return {"loss_scaler0": {"loss_scale": state.scale, "unskipped": state.unskipped}}


def load_state_dict(values):
    state = _this._amp_state
    state.scale = values["loss_scaler0"]["loss_scale"]
    state.unskipped = values["loss_scaler0"]["unskipped"]
