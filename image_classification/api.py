"""What notebooks and scripts call: load, transform, train and evaluate on one device.

`image_classification` exports these functions without importing torch until one is used.
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Union

import numpy as np
import PIL.Image
import torch
from torch import nn
from torchvision.transforms import v2

from image_classification.config import schema
from image_classification.config.from_run import FILE_NAME, read_run_folder
from image_classification.config.keys import KEYS
from image_classification.core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    unknown,
)
from image_classification.core.types import Activity, EvalResult, Record, WorldInfo
from image_classification.data.formats.split import SPLIT_FILE
from image_classification.data.loaders.device_prefetch import normalization, normalize
from image_classification.data.transforms import decode_rgb, eval_image, rgb_of, turned
from image_classification.devices.accelerator import get_accelerator, out_of_memory
from image_classification.distributed.launcher_env import detect_world
from image_classification.engine import evaluate as evaluation
from image_classification.engine.build import open_split
from image_classification.engine.checkpoints import files
from image_classification.engine.precision import TorchAmp
from image_classification.engine.runs import EvaluationRun, Parts, Run
from image_classification.engine.stop import Stopped, StopRequest
from image_classification.launch.run import MODES, opened_run, out_of_memory_error
from image_classification.models import Preprocessing, weights
from image_classification.models.classifier import Classifier

StrPath = Union[str, "os.PathLike[str]"]
_TRAINING_MODES = ("convergence", "benchmark_training", "benchmark_training_short")
_EXIF_ORIENTATION = 0x0112


def load_model(
    source: StrPath, checkpoint: str | int = "best", *, use_ema: bool = False
) -> Classifier:
    """Return a trained model in evaluation mode, on the CPU.

    It has the ``class_names`` (None if the file does not state them) and the ``preprocessing`` of
    its training. Torch's random state does not change.

    Args:
        source: a run's folder, a checkpoint's folder, or a safetensors file.
        checkpoint: of a run's folder: ``best`` (by validation), ``last``, or the number of a step.
        use_ema: load the moving average of the weights, which a run with ``ema.decay`` saves and
            by which it decides what is best. A warning says so if it is not loaded.

    Raises:
        CheckpointError: there is no such file or checkpoint, or it is damaged, or it has no moving
            average. ConfigError: ``checkpoint`` does not apply to ``source``.
    """
    file = _weights_file(source, checkpoint)
    model = weights.load_model(file).eval()
    average = files.moving_average(file.parent) if file.name == files.MODEL else {}
    if use_ema and not average:
        raise CheckpointError(f"{file} has no moving average beside it: leave use_ema out")
    if use_ema:
        weights.load_state(model, average, where=str(file.parent))
    elif average:
        text = f"{file.parent} has a moving average too, which is not loaded: give use_ema=True"
        warnings.warn(text, stacklevel=2)
    return model


def model_transforms(source: nn.Module | StrPath, checkpoint: str | int = "best") -> EvalTransform:
    """Return the transform that makes a model's input of an image, as in its run's validation.

    Args:
        source: a model of `create_model` or `load_model`, or what `load_model` takes.
        checkpoint: see `load_model`.

    Raises:
        CheckpointError: see `load_model`. ConfigError: the model states no ``preprocessing``.
    """
    if isinstance(source, nn.Module):
        return EvalTransform(_preprocessing_of(source))
    return EvalTransform(weights.read_header(_weights_file(source, checkpoint)).preprocessing)


class EvalTransform(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """Resize, center-crop and normalize an image with the values of the run's validation.

    Input: the path of an image file, a Pillow image of any mode, or a uint8 tensor
    ``[3, H, W]`` or ``[N, 3, H, W]`` of RGB values. Output: a float32 tensor ``[3, S, S]`` or
    ``[N, 3, S, S]``, bit for bit what the data backend ``pytorch`` makes of the pixels.
    Files and Pillow images are turned upright by EXIF if the run did so.

    As other transforms of torchvision, it transforms the images of nested inputs such as
    ``(image, label)`` and leaves the rest, and can be part of a ``v2.Compose``.

    Raises, when called:
        DataError: a file that cannot be decoded, or a tensor of another type or shape.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self._data = schema.DataConfig(**asdict(preprocessing))

    def forward(self, *inputs: Any) -> Any:
        """Transform one image, or the images of nested inputs."""
        if len(inputs) == 1 and isinstance(inputs[0], (str, os.PathLike)):
            path = Path(inputs[0])
            try:
                content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
            except OSError as error:
                raise DataError(f"cannot read {path} ({error.strerror}): check the path") from error
            inputs = (decode_rgb(content.copy(), str(path), self._data.exif_orientation),)
        return super().forward(*inputs)

    def transform(self, inpt: Any, params: dict[str, Any]) -> torch.Tensor:
        """Transform one image; called by `forward`."""
        if isinstance(inpt, PIL.Image.Image):
            image = rgb_of(inpt)
            if self._data.exif_orientation:
                image = turned(image, inpt.getexif().get(_EXIF_ORIENTATION, 1))
        else:
            image = inpt.as_subclass(torch.Tensor)
        if image.dtype != torch.uint8 or image.ndim not in (3, 4) or image.shape[-3] != 3:
            shape = list(image.shape)
            raise DataError(f"an image must be uint8 [3, H, W] RGB, not {image.dtype} {shape}")
        single = image.ndim == 3
        whole = image[None] if single else image
        cropped = torch.stack([eval_image(one, self._data) for one in whole])
        constants = normalization(self._data.mean, self._data.std, image.device)
        normalized = normalize(cropped, *constants)
        return normalized[0] if single else normalized

    def extra_repr(self) -> str:
        """Return the values."""
        return ", ".join(f"{name}={value}" for name, value in asdict(self.preprocessing).items())


def train(config: schema.RunConfig) -> Iterator[Record]:
    """Train as ``launch.py`` does, in this process on one device, and yield the run's records.

    Nothing happens until the records are read. The run's folder (``run.workspace``, in the record
    ``start``) gets all files that ``launch.py`` writes, but nothing is printed. Ctrl-C, SIGTERM
    and leaving the loop early end the run after its current step, save it and write its report;
    with ``run.resume: auto`` and the same folder it goes on. Signal handlers are set only while the
    next record is computed, and only in the main thread; torch's random state and settings are as
    before once the run has ended.

    In a script, call it under ``if __name__ == "__main__":``, since loader processes
    (``data.workers`` above 0) import the script. Start several devices with ``launch.py``.

    Args:
        config: from `resolve`, for one device and a mode that trains.

    Yields:
        ``start``, ``step``, ``epoch``, ``validation``, ``validation_ema``, ``checkpoint``,
        ``warning`` and, last, ``end``, whose ``values["results"]`` are ``results`` of report.json.

    Raises:
        UserError: what can be fixed: settings, data, device, folder, checkpoint.
        DivergedError: the loss is not finite; the last good checkpoint is kept.
        KeyboardInterrupt: after Ctrl-C, once the run is saved.
        Stopped: after SIGTERM or SIGUSR1, once the run is saved.
    """
    if config.run.mode not in _TRAINING_MODES:
        raise ConfigError(unknown("mode of train", config.run.mode, _TRAINING_MODES))
    world = detect_world(os.environ)
    if config.world_size > 1 or (world is not None and world.world_size > 1):
        raise ConfigError(
            f"train uses one device and this run has {max(config.world_size, 2)}: start it with "
            'launch.py, or set overrides={"platform.num_devices": 1, "platform.num_nodes": 1}'
        )
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigError(
            "train was called while a loader process imports this script: call it under "
            'if __name__ == "__main__":'
        )
    activity = Activity()
    stop = StopRequest(activity=activity)
    return _interruptible(_training_records(config, activity, stop), stop)


def _training_records(
    config: schema.RunConfig, activity: Activity, stop: StopRequest
) -> Iterator[Record]:
    accelerator = get_accelerator(config.platform.device)
    found = accelerator.found()
    with ExitStack() as stack:
        stack.enter_context(_torch_restored())
        device = accelerator.device(0)
        try:
            recorder = stack.enter_context(
                opened_run(config, WorldInfo(), accelerator, device, found, activity, shown=False)
            )
            run = recorder.run
            for record in recorder.recorded(MODES[config.run.mode].records(run, stop)):
                if record.kind == "start":
                    values = {**record.values, "workspace": str(run.workspace)}
                    record = replace(record, values=values)
                yield record
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise out_of_memory_error(config) from error


def _interruptible(records: Iterator[Record], stop: StopRequest) -> Iterator[Record]:
    """Yield ``records``; handle signals while one is computed, and end the run if left early."""
    try:
        while True:
            with stop:
                record = next(records, None)
            if record is None:
                return
            yield record
    except GeneratorExit:
        stop.signal_name = "the end of the loop over its records"
        with stop, suppress(Stopped):
            for _ in records:
                pass
        raise
    except Stopped as stopped:
        if stop.signal_name == "SIGINT":
            raise KeyboardInterrupt(str(stopped)) from None
        raise


def evaluate(
    source: nn.Module | StrPath,
    data: StrPath | None = None,
    *,
    checkpoint: str | int = "best",
    batch_size: int = 64,
    device: str | None = None,
    precision: str = "FP32",
    workers: int = 0,
) -> EvalResult:
    """Evaluate a model on a data set's validation images, each counted exactly once.

    Args:
        source: a model of `create_model` or `load_model`, or what `load_model` takes.
        data: the data set's folder or ``demo``; None: that of the run's folder ``source``. Labels
            are mapped to the model's class names, if it has them.
        checkpoint: see `load_model`.
        batch_size: images per forward pass.
        device: such as ``cuda:0``, to which the model is moved; None: where its weights are.
        precision: ``FP32``, ``TF32``, ``BF16`` or ``AMP`` (float16; bfloat16 on a CPU).
        workers: loader processes; 0 loads in this process. For more see `train` on scripts.

    Returns:
        top-1 and top-5 in percent, mean cross-entropy in nats, number of images, seconds.

    Raises:
        UserError: what can be fixed: no such data or checkpoint, other classes, precision, device.
    """
    if isinstance(source, nn.Module):
        model = source
        settings = None
    else:
        settings = _data_of_run(Path(source)) if data is None else None
        model = load_model(source, checkpoint)
    if data is None and settings is None:
        raise ConfigError("evaluate needs data: name a folder, or 'demo'")
    shown = _preprocessing_of(model)
    settings = settings or schema.DataConfig(path=os.fspath(data or ""), **asdict(shown))
    settings = replace(settings, workers=workers, backend="pytorch")
    if device is not None:
        model.to(device)
    where = next(model.parameters()).device
    config = _evaluation_config(model, settings, batch_size, where, precision)
    accelerator = get_accelerator(where.type)
    with _torch_restored(), ExitStack() as stack:
        base = Run(config, WorldInfo(), accelerator, accelerator.device(where.index or 0), Path())
        stack.callback(base.close)
        accelerator.check_precision(precision, config.precision.dtype)
        accelerator.set_matmul_precision(precision)
        names = getattr(model, "class_names", None)
        loader = open_split(base, "val", tuple(names) if names else None)
        if not names and loader.class_names is not None:
            warnings.warn(
                "the model does not name its classes: whether the data set has the same ones in "
                "the same order cannot be checked",
                stacklevel=2,
            )
        for note in loader.notes:
            warnings.warn(note, stacklevel=2)
        idle = torch.optim.SGD(model.parameters(), lr=0.0)
        amp = TorchAmp(accelerator, config.precision.dtype, accelerator.grad_scaler(None), idle)
        parts = Parts(model, model, None, idle, amp, nn.functional.cross_entropy, None, None)
        run = EvaluationRun(**vars(base), parts=parts, val_loader=loader)
        return evaluation.evaluate(run, model, loader, StopRequest())


def _evaluation_config(
    model: nn.Module, data: schema.DataConfig, batch_size: int, device: torch.device, precision: str
) -> schema.RunConfig:
    dtypes = {
        "FP32": "float32",
        "TF32": "float32",
        "BF16": "bfloat16",
        "AMP": "float16" if device.type == "cuda" else "bfloat16",
    }
    if precision not in dtypes:
        raise ConfigError(unknown("precision", precision, dtypes))
    name, num_classes = str(getattr(model, "name", "")), getattr(model, "num_classes", None)
    if not isinstance(num_classes, int):
        raise ConfigError(f"{type(model).__name__} does not state num_classes: set the attribute")
    return schema.RunConfig(
        names=schema.RunNames(name, precision, "evaluate", "", ""),
        model=schema.ModelConfig(name=name, num_classes=num_classes),
        data=data,
        batch=schema.BatchConfig(
            per_device_batch=batch_size, global_batch=batch_size, accumulation=1
        ),
        optim=schema.OptimConfig(lr=0.0, weight_decay=0.0),
        schedule=schema.ScheduleConfig(epochs=1),
        loss=schema.LossConfig(),
        mixing=schema.MixingConfig(),
        ema=schema.EmaConfig(),
        precision=schema.PrecisionConfig(name=precision, dtype=dtypes[precision]),
        platform=schema.PlatformConfig(name="", device=device.type),
        run=schema.RunControl(mode="evaluate"),
    )


def _weights_file(source: StrPath, checkpoint: str | int) -> Path:
    path, which = Path(source), KEYS["run.checkpoint"].check(str(checkpoint), "checkpoint")
    is_run = not path.is_file() and files.checkpoint_folder(str(path), path) is not None
    if which != "best" and not is_run:
        raise ConfigError(
            f"checkpoint={checkpoint!r} chooses among the checkpoints of a run, and {path} is not "
            "a run: leave it out, or name the run's folder"
        )
    if path.is_file():
        return path
    found, problems = files.find(str(path), path, which)
    for problem in problems:
        warnings.warn(problem, stacklevel=3)
    if found is None:
        raise CheckpointError(f"no checkpoint in {path}: give a run's or a checkpoint's folder")
    return files.weights_file(found)


def _data_of_run(folder: Path) -> schema.DataConfig | None:
    """Return the data settings of a run with its split; None if ``folder`` is not a run's."""
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    keys = {KEYS[key]: v for key, v in read_run_folder(folder).values.items() if key[:5] == "data."}
    data = schema.DataConfig(**{key.field: key.check(v, str(path)) for key, v in keys.items()})
    split_file = folder / SPLIT_FILE
    if split_file.is_file():  # data.split_file may name it where the folder was before
        data = replace(data, split_file=str(split_file))
    return data


@contextmanager
def _torch_restored() -> Iterator[None]:
    """Restore torch's random state and global settings at the end of the block."""
    backends: Any = torch.backends
    holders = [backends.mkldnn.matmul, backends.mkldnn.conv]
    holders += [backends.cuda.matmul, backends.cudnn.conv]
    precisions = [holder.fp32_precision for holder in holders]
    matmul = torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    benchmark = backends.cudnn.benchmark
    # Where CUDA is not used yet, it has no random state to restore.
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = [torch.cuda.current_device()] if in_use else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
            backends.cudnn.benchmark = benchmark
            torch.set_float32_matmul_precision(matmul)
            for holder, precision in zip(holders, precisions, strict=True):
                holder.fp32_precision = precision


def _preprocessing_of(model: nn.Module) -> Preprocessing:
    found = getattr(model, "preprocessing", None)
    if not isinstance(found, Preprocessing):
        raise ConfigError(
            f"{type(model).__name__} does not state its preprocessing: set the attribute "
            "preprocessing to a models.Preprocessing"
        )
    return found
