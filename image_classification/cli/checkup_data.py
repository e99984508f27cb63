"""The doctor's look at the data set, in processes of their own: a network disk can hang."""

from __future__ import annotations

from collections.abc import Iterator

from image_classification.cli.isolated import IsolatedError, call
from image_classification.core.checkup import Check, fail, skipped, warn
from image_classification.data import probe_data_set
from image_classification.engine.needs import RunNeeds

_PROBE = "image_classification.data.probe_data_set"
_DATA_LIMIT_S = 20.0


def data_set_checks(data: str | None, needs: RunNeeds | None) -> Iterator[Check]:
    """Yield data-set and data-sample. data: where the user says; None: the platform's own."""
    path = data or (needs.data_path if needs is not None else None)
    if path is None or path == "synthetic":
        why = "neither --data nor --platform given" if path is None else "synthetic data"
        yield skipped("data-set", why)
        return
    layout = "auto" if needs is None else needs.data_format
    classes = None if needs is None else needs.num_classes
    try:
        target = f"{_PROBE}:look"
        found: probe_data_set.Layout = call(target, path, layout, classes, limit_s=_DATA_LIMIT_S)
    except IsolatedError as error:
        yield _data_failure("data-set", path, error)
        return
    yield probe_data_set.check_layout(found)
    # Shards are indexed whole; the validation split is the small one.
    is_folder = found.formats["train"] == "folder"
    split = "train" if is_folder or "val" not in found.formats else "val"
    try:
        target = f"{_PROBE}:sample"
        sampled = call(target, found.root, split, found.formats[split], limit_s=_DATA_LIMIT_S)
    except IsolatedError as error:
        if error.is_late and not is_folder:
            later = "a run indexes the shards at its start and takes as long; later runs do not"
            yield warn("data-sample", f"not indexed within {_DATA_LIMIT_S:g} s", later)
        else:
            yield _data_failure("data-sample", found.root, error)
        return
    yield probe_data_set.check_sample(sampled, found.root)


def _data_failure(name: str, path: str, error: IsolatedError) -> Check:
    if error.is_late:
        found = f"{path} did not answer within {_DATA_LIMIT_S:g} s"
        return fail(name, found, "check the disk or its mount (df, ls)")
    found, _, remedy = str(error).partition(": ")
    if not error.is_user_error or not remedy:
        return fail(name, f"{path}: {error}", "check the disk, its mount and its permissions")
    return fail(name, found, remedy)
