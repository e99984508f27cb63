"""Keep the train/val split of a folder of class folders with the run, and use it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from image_classification.config.schema import DataConfig, RunConfig
from image_classification.core.files import explained
from image_classification.data.formats.folder import is_class_folders, split_of_class_folders
from image_classification.data.formats.split import (
    SPLIT_FILE,
    SplitRule,
    read_split,
    write_split,
)
from image_classification.data.tools.demo import resolve_data_path


def save_split(data: DataConfig, folder: Path) -> None:
    """Write ``split.json`` to the run's ``folder`` if the data set has no train/ and val/.

    Raises:
        WorkspaceError: it cannot be written. DataError: the data set cannot be used.
    """
    if data.backend == "synthetic":
        return
    root = resolve_data_path(data.path)
    split = split_of_class_folders(root, SplitRule.of(data))
    if split is not None:
        path = folder / SPLIT_FILE
        with explained(path):
            write_split(path, root, split)


def use_split_of_run(config: RunConfig) -> RunConfig:
    """Return ``config`` with the split of the run that is continued or evaluated.

    Weights that are evaluated on a folder of class folders which no split is known for are
    evaluated on all its images.

    Raises:
        DataError: the data set cannot be used, or the run's split file is damaged.
    """
    data, evaluates = config.data, config.run.mode == "evaluate"
    if data.backend == "synthetic" or data.split_file is not None:
        return config
    root = resolve_data_path(data.path)
    if not is_class_folders(root):
        if data.val_fraction is None:
            return config
        unused = f"data.val_fraction has no effect: {root} has its own validation images"
        return replace(config, warnings=(*config.warnings, unused))
    if not evaluates and config.run.resume is None:
        return config
    whole = split_of_class_folders(root, SplitRule(1.0, ignore_file=True))
    assert whole is not None
    path = _split_file(config)
    if path is not None:
        listed, there = read_split(path), set(whole.val)
        # Images may have been added to the run's own folder. Another folder may hold other images
        # of the same names. To continue, changed images are reported when restoring.
        is_its_folder = evaluates and listed.get("data_set") == str(root.absolute())
        if there == {*listed["train"], *listed["val"]} or (
            is_its_folder and there.issuperset(listed["val"])
        ):
            if data.val_fraction not in (None, listed.get("val_fraction")):
                unused = f"data.val_fraction has no effect: {path} has the split of the run"
                config = replace(config, warnings=(*config.warnings, unused))
            run = "the run that is evaluated" if evaluates else "the run that is continued"
            return _with_data(config, "split_file", str(path), run)
    if not evaluates or data.val_fraction is not None or (root / SPLIT_FILE).exists():
        return config
    reason = "no split of it is known" if path is None else f"{path} is the split of other images"
    warning = (
        f"all images of {root} are evaluated, as {reason}: this includes any that the model was "
        "trained on (--set data.val_fraction=F evaluates only those that training with F holds out)"
    )
    config = replace(config, warnings=(*config.warnings, warning))
    return _with_data(config, "val_fraction", 1.0, "no split of these images is known")


def _split_file(config: RunConfig) -> Path | None:
    """Return the split file in the folder of the run whose weights are used."""
    resume, given = config.run.resume, config.model.pretrained_from_file
    source = config.run.workspace if resume == "auto" else resume or given
    if source is None:
        return None
    path = Path(source)
    # A run's folder, RUN/checkpoints/NAME, or a file in that.
    for folder in (path, *path.absolute().parents[:3]):
        if (folder / SPLIT_FILE).is_file() and (folder / "config.yml").is_file():
            return folder / SPLIT_FILE
    return None


def _with_data(config: RunConfig, name: str, value: object, origin: str) -> RunConfig:
    provenance = {**config.provenance, f"data.{name}": origin}
    data = replace(config.data, **{name: value})  # type: ignore[arg-type]
    return replace(config, data=data, provenance=provenance)
