"""``launch.py``: the command line, ``--list`` and ``--explain``; nothing is run."""

import json
import shlex
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest

from image_classification import __version__
from image_classification.__main__ import run
from image_classification.cli.launch import Request, main, parse
from image_classification.cli.listing import LISTS, listing, render_explanation, render_listing
from image_classification.config import resolve
from image_classification.config.catalogue import load_catalogue
from image_classification.config.keys import KEYS, explanation
from image_classification.config.options import OPTIONS
from image_classification.core.errors import ConfigError
from image_classification.models import list_models

CATALOGUE = load_catalogue()
TEXT = "--model resnet50 --precision AMP --mode convergence --platform DGX1V"
NAMES = TEXT.split()

# The option names of the published command lines, each with an argument it takes.
PUBLISHED = {
    "--data-backend": "pytorch",
    "-j": "8",
    "--workers": "8",
    "--prefetch": "2",
    "--epochs": "90",
    "--run-epochs": "-1",
    "--early-stopping-patience": "-1",
    "--image-size": "224",
    "-b": "256",
    "--batch-size": "256",
    "--batch_size": "256",
    "--optimizer-batch-size": "2048",
    "--lr": "2.048",
    "--learning-rate": "2.048",
    "--learning_rate": "2.048",
    "--lr-schedule": "cosine",
    "--end-lr": "0",
    "--warmup": "8",
    "--label-smoothing": "0.1",
    "--mixup": "0.0",
    "--optimizer": "sgd",
    "--momentum": "0.875",
    "--mom": "0.875",
    "--weight-decay": "3.0517578125e-05",
    "--wd": "3.0517578125e-05",
    "--bn-weight-decay": None,
    "--rmsprop-alpha": "0.9",
    "--rmsprop-eps": "1e-3",
    "--nesterov": None,
    "-p": "10",
    "--print-freq": "10",
    "--resume": "auto",
    "--static-loss-scale": "128",
    "--dynamic-loss-scale": None,
    "--prof": "100",
    "--amp": None,
    "--seed": "1",
    "--gather-checkpoints": "3",
    "--raport-file": "r.json",
    "--raport_file": "r.json",
    "--evaluate": None,
    "--training-only": None,
    "--no-checkpoints": None,
    "--jit": "no",
    "--checkpoint-filename": "checkpoint.pth.tar",
    "--checkpoint": "checkpoint_2.pth.tar",
    "--workspace": "/tmp/w",
    "--memory-format": "nhwc",
    "--memory_format": "nhwc",
    "--use-ema": "0.9999",
    "--augmentation": "autoaugment",
    "--gpu-affinity": "socket_unique_interleaved",
    "--topk": "5",
    "--interpolation": "bicubic",
    "--num_classes": "1000",
    "--pretrained-from-file": "w.safetensors",
    "-c": "fanin",
    "--model-config": "fanin",
}


def refused(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(argv)
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("option", PUBLISHED)
def test_every_published_option_resolves(option: str) -> None:
    value = PUBLISHED[option]
    request = parse([*NAMES, option, *([] if value is None else [value]), "/imagenet"])
    assert request.data == "/imagenet"
    config = request.read().on()
    assert config.data.path == "/imagenet"


def test_the_amp_backend_is_an_option() -> None:
    names = ["--model=resnet50", "--mode=convergence", "--platform=DGX1V", "/imagenet"]
    config = parse([*names, "--precision=AMP", "--amp-backend", "apex"]).read().on()
    assert config.precision.amp_backend == "apex"
    with pytest.raises(ConfigError, match=r"--amp-backend.*AMP in float16"):
        parse([*names, "--precision=FP32", "--amp-backend=apex"]).read().on()


def test_every_option_is_published_or_tested_elsewhere() -> None:
    tested_elsewhere = {"--save-every", "--stop-at-top1", "--allow-changes", "--track"}
    own = {*tested_elsewhere, *RELIABILITY, "--amp-backend", "--devices"}
    assert {option.name for option in OPTIONS} - own <= set(PUBLISHED)


RELIABILITY = {
    "--max-restarts": ("3", "run.max_restarts", 3),
    "--collective-timeout-s": ("90.5", "run.collective_timeout_s", 90.5),
    "--gradient-compression": ("bf16", "optim.gradient_compression", "bf16"),
}


@pytest.mark.parametrize("option", RELIABILITY)
def test_reliability_options_reach_their_keys(option: str) -> None:
    text, key, value = RELIABILITY[option]
    config = parse([*NAMES, option, text]).read().on()
    section, field = key.split(".")
    assert vars(vars(config)[section])[field] == value
    assert config.provenance[key] == f"{option} on the command line"


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--max-restarts", "-1", "run.max_restarts must be 0 or more"),
        ("--collective-timeout-s", "0", "run.collective_timeout_s must be 1 or more"),
        ("--collective-timeout-s", "1e9", "run.collective_timeout_s must be 86400 or less"),
        ("--gradient-compression", "int8", "optim.gradient_compression cannot be 'int8'"),
    ],
)
def test_reliability_options_are_bounded(option: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse([*NAMES, option, text])


def test_a_published_command_line_runs_verbatim() -> None:
    line = (
        "--model resnet50 --precision AMP --mode convergence --platform DGX1V /imagenet "
        "--workspace /out --raport-file raport.json --epochs 90 --mixup 0.0"
    )
    config = parse(line.split()).read().on()
    assert (config.schedule.epochs, config.mixing.mixup) == (90, 0.0)
    assert config.provenance["schedule.epochs"] == "--epochs on the command line"
    assert (config.run.workspace, config.run.raport_file) == ("/out", "raport.json")


def test_a_published_benchmark_stops_early_on_the_published_schedule() -> None:
    line = (
        "--model resnet50 --precision AMP --mode benchmark_training --platform DGX1V "
        "/imagenet --raport-file benchmark.json --epochs 1 --prof 100"
    )
    config = parse(line.split()).read().on()
    assert (config.run.stop_epoch, config.run.max_steps) == (1, 100)
    assert config.schedule.epochs == 250


@pytest.mark.parametrize("place", range(0, 9, 2))
def test_data_may_be_at_any_position(place: int) -> None:
    argv = [*NAMES[:place], "/imagenet", *NAMES[place:]]
    assert parse(argv).data == "/imagenet"
    assert parse([*argv, "--lr", "1", "--nesterov"]).data == "/imagenet"


def test_names_and_flags() -> None:
    request = parse([*NAMES, "--recipe", "90e", "--explain", "--json"])
    assert request == Request(
        "resnet50", "AMP", "convergence", "DGX1V", recipe="90e", explain=True, json=True
    )
    assert parse([*NAMES, "--cfg_file", "c.yml"]).config_file == Path("c.yml")
    assert parse(["--arch", "resnet50", *NAMES[2:]]).model == "resnet50"
    assert "keep one" in refused("--arch", "resnet18", *NAMES)


def test_set_reaches_every_setting() -> None:
    config = parse([*NAMES, "--set", "run.deterministic=true", "--set=data.resize=288"]).read().on()
    assert (config.run.deterministic, config.data.resize) == (True, 288)


def test_amp_is_a_precision_and_evaluate_a_mode() -> None:
    rest = ["--model", "resnet50", "--platform", "DGX1V"]
    request = parse([*rest, "--amp", "--evaluate"])
    assert (request.precision, request.mode) == ("AMP", "evaluate")
    assert "--amp contradicts --precision FP32" in refused(
        *rest, "--mode", "convergence", "--precision", "FP32", "--amp"
    )
    assert "--evaluate contradicts --mode benchmark_training" in refused(
        *rest, "--mode", "benchmark_training", "--precision", "AMP", "--evaluate"
    )


def test_a_dynamic_loss_scale_overrides_a_static_one() -> None:
    line = [*NAMES, "--dynamic-loss-scale", "--static-loss-scale", "128"]
    assert parse(line).read().on().precision.loss_scale == "dynamic"


def test_the_last_of_a_repeated_option_counts_but_set_must_not_contradict_it() -> None:
    assert parse([*NAMES, "--lr", "1", "--lr", "2"]).read().on().optim.lr == 2.0
    request = parse([*NAMES, "--lr", "1", "--set", "optim.lr=2"])
    with pytest.raises(ConfigError, match="given twice"):
        request.read().on()


def test_one_parse_does_not_leak_into_the_next() -> None:
    parse([*NAMES, "--lr", "1"])
    assert parse(NAMES).overrides == ()


def test_a_missing_name_is_named_with_a_whole_command() -> None:
    message = refused("--model", "resnet50")
    assert message.startswith(
        "--precision, --mode and --platform are missing (--list shows the names); for example: "
    )
    assert message.endswith(
        " --model resnet50 --precision AMP --mode convergence --platform GPU /data/imagenet"
    )
    message = refused("--model=ResNet34", "--precision=FP32", "--mode=evaluate", "/my data")
    assert message.startswith("--platform is missing (valid: CPU, GPU); for example: ")
    assert message.endswith(
        "--model resnet34 --precision FP32 --mode evaluate --platform GPU '/my data'"
    )
    message = refused("--model=resnet18", "--precision=FP32", "--platform=CPU")
    assert "--mode is missing (valid: convergence, benchmark_training, " in message
    assert message.endswith("--mode convergence --platform CPU demo")


def test_a_name_in_another_spelling_is_noted() -> None:
    line = "--model ResNet-50 --precision amp --mode train --platform cuda"
    assert parse(line.split()).read().on().warnings[:3] == (
        "model 'ResNet-50' is read as resnet50",
        "platform 'cuda' is read as GPU",
        "mode 'train' is read as convergence",
    )


def test_the_example_for_a_missing_name_can_be_run() -> None:
    for line in ("", "--platform=T4", "--precision=TF32", "--platform=GAUDI2 --mode=eval"):
        words = shlex.split(refused(*line.split()).partition("for example: ")[2])
        assert parse(words[words.index("--model") :]).read().on()


def test_without_arguments_a_short_help_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    text = capsys.readouterr().err
    assert len(text.splitlines()) < 24 and "--platform GPU" in text and "--help" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    for start in (lambda: run(["--version"]), lambda: main(["--version"])):
        with suppress(SystemExit):
            start()
        text = capsys.readouterr().out
        assert text.startswith(f"image-classification {__version__} (torch {version('torch')}, ")


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (("--lrr", "1"), "unknown option --lrr; did you mean --lr?"),
        (("--memory-fromat=nhwc",), "did you mean --memory-format?"),
        (("--batch",), "unknown option --batch; did you mean --batch-size?"),
        (("--lr",), "expected one argument"),
        (("--lr", "fast"), "--lr: optim.lr must be a number, got 'fast'"),
        (("/a", "/b"), "unexpected argument '/b'"),
        (("--memory-format", "nhcw"), "did you mean 'nhwc'?"),
        (("--data-backend", "pytroch"), "did you mean 'pytorch'?"),
        (("--data-backend", "dali"), "unknown data backend 'dali'"),
        (("--jit", "script"), "--set model.compile=true"),
        (("--set", "optim.weight_decya=1"), "did you mean 'weight_decay'?"),
        (("--set", "optim.lr"), "write section.key=value"),
        (("--json",), "add one of them"),
        (("--resume", ""), "--resume: run.resume is empty; give a value"),
        (("--workspace", ""), "run.workspace is empty"),
        (("--epochs", "9" * 5000), "--epochs: schedule.epochs must be a whole number, got '999"),
        (("--run-epochs", "9" * 5000), "--run-epochs must be a whole number, got '999"),
        (("--epochs", "1__000"), "must be a whole number, got '1__000'"),
        (("/tmp/\udcff",), r"the argument /tmp/\xff is not UTF-8 text"),
        (("--list",), "leave the rest out"),
    ],
)
def test_errors_are_one_line_with_the_remedy(argv: tuple[str, ...], part: str) -> None:
    assert part in refused(*NAMES, *argv)


def test_the_arguments_of_list() -> None:
    assert parse(["--list"]) == Request(list_what="all")
    assert parse(["--list", "models", "--json"]) == Request(list_what="models", json=True)
    assert "did you mean 'models'?" in refused("--list", "model")


def test_help_names_every_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in OPTIONS:
        assert option.name in text
    assert max(map(len, text.splitlines())) <= 80
    for title in ("names (see --list):", "data:", "devices:", "run control:", "examples:"):
        assert f"\n{title}\n" in text
    assert "(one of none, autoaugment, randaugment, trivialaugment)" in " ".join(text.split())
    assert "optimizer steps between log records (default: 20)" in " ".join(text.split())


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("--epochs 99999999999", "2147483647 or less"),
        ("--seed 9223372036854775808", "9223372036854775807 or less"),
        ("--set run.inference_batches=", "run.inference_batches must have a value"),
        ("--set run.inference_batches=4,0", "run.inference_batches must be 1 or more"),
        ("--set schedule.milestone_epochs=-1", "must be 0 or more"),
        ("--raport-file ./metrics.jsonl", "name another file"),
        ("--raport-file .", "name another file"),
        ("--early-stopping-patience 3 --training-only", "leave one of them out"),
    ],
)
def test_invalid_values(line: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse([*NAMES, *line.split()]).read().on()
    assert part in caught.value.message
    assert len(caught.value.message) < 300


def test_an_empty_recipe_is_unknown() -> None:
    with pytest.raises(ConfigError, match="unknown recipe"):
        parse([*NAMES, "--recipe", ""]).read().on()


def test_every_list_can_be_printed_alone() -> None:
    whole = listing(CATALOGUE)
    assert tuple(whole) == LISTS
    for what in LISTS:
        assert listing(CATALOGUE, what) == {what: whole[what]}


def test_all_models_that_can_be_built_are_listed() -> None:
    assert set(listing(CATALOGUE, "models")["models"]) == set(list_models())


def test_the_json_of_the_list_has_names_and_runs() -> None:
    content = json.loads(render_listing(CATALOGUE, "all", as_json=True))
    assert "DGX1V" in content["platforms"]
    run = {
        "model": "resnet50",
        "platform": "DGX1V",
        "precision": "AMP",
        "recipe": "250e",
        "default": True,
    }
    assert run in content["runs"]
    assert {**run, "recipe": "90e", "default": False} in content["runs"]


def test_the_list_has_a_line_per_combination_with_the_default_marked() -> None:
    lines = render_listing(CATALOGUE, "runs").splitlines()
    assert len(lines) == 1 + len(CATALOGUE.entries)
    (line,) = [x for x in lines if x.split()[:3] == ["resnet50", "DGX1V", "AMP"]]
    assert line.split()[3:] == ["50e", "90e", "250e*"]


def test_every_list_names_what_it_lists() -> None:
    for what in ("models", "platforms", "precisions", "modes", "recipes"):
        lines = render_listing(CATALOGUE, what).splitlines()
        first_words = [line.split()[0] for line in lines]
        head = 1 if what in ("models", "platforms") else 0
        assert first_words[head:] == listing(CATALOGUE, what)[what]
    lines = render_listing(CATALOGUE, "platforms").splitlines()
    assert "DGX2V       NVIDIA DGX-2: 16 x V100 32 GB" in "\n".join(lines)
    assert lines[-1].split()[-1] == "-"
    lines = render_listing(CATALOGUE, "models").splitlines()
    assert lines[1].split() == ["resnet50", "25.6", "M", "224", "px", "79.04", "%", "top-1"]


def test_the_list_fits_a_screen() -> None:
    lines = render_listing(CATALOGUE).splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 80
    for what in ("models", "platforms"):
        assert max(map(len, render_listing(CATALOGUE, what).splitlines())) <= 80


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--list", "--json"], 0),
        ([*NAMES, "--explain"], 0),
        ([*NAMES, "--emit", "torchrun"], 0),
        (["--model", "nothing"], 2),
    ],
)
def test_list_explain_and_emit_need_neither_torch_nor_numpy(argv: list[str], code: int) -> None:
    program = (
        "import sys\n"
        "from tests.support.cli import launch as main\n"
        f"code = main({argv!r})\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'rich', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 10 + code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 10 + code, done.stderr
    assert done.stderr.count("\n") == (1 if code else 0)


def test_the_json_of_explain() -> None:
    config = resolve("resnet50", "AMP", "convergence", "DGX1V")
    assert json.loads(render_explanation(config, as_json=True)) == explanation(config)


def test_explain_has_every_key_with_value_and_origin() -> None:
    config = resolve(
        "resnet50", "AMP", "convergence", "DGX1V", overrides={"optim.weight_decay": 5e-5}
    )
    lines = render_explanation(config).splitlines()
    rows = {line.split()[0]: line.split(maxsplit=2) for line in lines if line and line[0] != " "}
    assert set(KEYS) <= set(rows)
    assert rows["optim.weight_decay"][1:] == ["5e-05", "overrides argument"]
    assert rows["batch.accumulation"][1:] == ["1", "formula: 2048 / (256 x 8)"]
    assert rows["run.resume"][1] == "null"
    assert rows["model.compile"][1] == "false"
    assert rows["data.mean"][1] == "[0.485,0.456,0.406]"
    assert "nvidia-resnet50-dgx1v-amp-250e" in [line.strip() for line in lines]


def test_columns_are_aligned() -> None:
    lines = render_explanation(resolve("resnet50", "AMP", "convergence", "CPU")).splitlines()
    head = next(line for line in lines if line.startswith("key "))
    at = head.index("where from")
    table = lines[lines.index(head) : lines.index("notes:")]
    assert all(line[at - 1] == " " and line[at] != " " for line in table if line)


def test_explain_has_assumptions_and_substitutions() -> None:
    text = render_explanation(resolve("resnet50", "AMP", "convergence", "CPU"))
    assert "AMP on a cpu is bfloat16" in text
    assert "assumption: not a published run" in text
