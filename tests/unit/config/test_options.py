from typing import Any

import pytest

from image_classification.config.keys import KEYS
from image_classification.config.options import OPTIONS, read_option
from image_classification.core.errors import ConfigError

BY_NAME = {option.name: option for option in OPTIONS}


def test_every_option_has_a_key_and_no_flag_occurs_twice() -> None:
    spellings = [flag for option in OPTIONS for flag in option.flags]
    assert len(spellings) == len(set(spellings))
    for option in OPTIONS:
        assert option.key in KEYS
        assert not KEYS[option.key].computed


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("--batch-size", "64", "batch.per_device", 64),
        ("--optimizer-batch-size", "4096", "batch.global", 4096),
        ("--optimizer-batch-size", "-1", "batch.global", None),
        ("--epochs", "90", "schedule.epochs", 90),
        ("--run-epochs", "5", "run.run_epochs", 5),
        ("--run-epochs", "-1", "run.run_epochs", None),
        ("--early-stopping-patience", "-1", "run.early_stopping_patience", None),
        ("--prof", "100", "run.max_steps", 100),
        ("--prof", "-1", "run.max_steps", None),
        ("--gather-checkpoints", "0", "run.keep_checkpoints", 1),
        ("--gather-checkpoints", "3", "run.keep_checkpoints", 3),
        ("--gather-checkpoints", "-1", "run.keep_checkpoints", -1),
        ("--data-backend", "syntetic", "data.backend", "synthetic"),
        ("--model-config", "fanout", "model.init", "fan_out"),
        ("--bn-weight-decay", None, "optim.decay_rule", "all"),
        ("--nesterov", None, "optim.nesterov", True),
        ("--no-checkpoints", None, "run.save_checkpoints", False),
        ("--training-only", None, "run.validate", False),
        ("--dynamic-loss-scale", None, "precision.loss_scale", "dynamic"),
        ("--static-loss-scale", "128", "precision.loss_scale", 128.0),
        ("--use-ema", "0.9999", "ema.decay", 0.9999),
        ("--save-every", "1 epoch", "run.save_every", "1 epochs"),
        ("--save-every", "10 minutes", "run.save_every", "10 minutes"),
        ("--stop-at-top1", "75.9", "run.stop_at_top1", 75.9),
        ("--allow-changes", None, "run.allow_changes", True),
        ("--devices", "2", "platform.num_devices", 2),
        ("--devices", "all", "platform.num_devices", None),
        (
            "--checkpoint-filename",
            "checkpoint.pth.tar",
            "run.checkpoint_name",
            "checkpoint.pth.tar",
        ),
    ],
)
def test_an_option_is_read_as_a_setting(name: str, text: str | None, key: str, value: Any) -> None:
    override, note = read_option(BY_NAME[name], text, "convergence")
    assert override is not None
    assert (override.key, override.value) == (key, value)
    assert override.origin == f"{name} on the command line"
    assert note == ""


@pytest.mark.parametrize(
    ("mode", "name", "text", "key", "value"),
    [
        ("benchmark_training", "--epochs", "1", "run.stop_epoch", 1),
        ("benchmark_training_short", "--epochs", "2", "run.stop_epoch", 2),
        ("benchmark_training", "--prof", "9", "run.max_steps", 9),
        ("benchmark_inference", "--batch-size", "8", "run.inference_batches", [8]),
        ("benchmark_inference", "--prof", "9", "run.inference_iterations", 9),
    ],
)
def test_options_with_another_meaning_in_benchmarks(
    mode: str, name: str, text: str, key: str, value: Any
) -> None:
    override, _ = read_option(BY_NAME[name], text, mode)
    assert override is not None
    assert (override.key, override.value) == (key, value)


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("benchmark_inference", "--epochs"),
        ("evaluate", "--prof"),
        ("evaluate", "--stop-at-top1"),
        ("benchmark_inference", "--stop-at-top1"),
    ],
)
def test_an_option_without_effect_returns_a_note(mode: str, name: str) -> None:
    override, note = read_option(BY_NAME[name], "1", mode)
    assert override is None
    assert note.startswith(f"{name} 1 has no effect in mode {mode}: ")


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("--run-epochs", "0", "the nearest valid value is 1"),
        ("--run-epochs", "two", "must be a whole number"),
        ("--gather-checkpoints", "-2", "-1 keeps all"),
        ("--save-every", "0 steps", "'N steps', 'N minutes' or 'N epochs'"),
        ("--model-config", "fanon", "did you mean 'fanin'?"),
        ("--lr-schedule", "cosin", "did you mean 'cosine'?"),
        ("--stop-at-top1", "759", "100 or less"),
        ("--topk", "0", "the nearest valid value is 1"),
        ("--gpu-affinity", "sockets", "did you mean 'socket'?"),
    ],
)
def test_an_invalid_argument_is_an_error_with_the_option(name: str, text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_option(BY_NAME[name], text, "convergence")
    assert caught.value.message.startswith(name)
    assert part in caught.value.message
