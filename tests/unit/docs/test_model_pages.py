"""The generated blocks of docs/models are current and complete."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from image_classification.config.catalogue import load_catalogue
from image_classification.reporting.published.load import Source, load_runs

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs" / "models"
MODELS = {
    "resnet50v1.5.md": "resnet50",
    "resnext101-32x4d.md": "resnext101-32x4d",
    "se-resnext101-32x4d.md": "se-resnext101-32x4d",
}


@pytest.fixture(scope="module")
def generator(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("model_pages")


def text_of(page: str) -> str:
    return (FOLDER / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [*MODELS, "README.md"])
def test_a_page_is_current(generator: ModuleType, page: str):
    assert generator.filled(text_of(page), page) == text_of(page), "run `make pages`"


def test_a_stale_block_is_rewritten(generator: ModuleType):
    page = "resnet50v1.5.md"
    stale = text_of(page).replace("| 8 | 90 | 76.88 ± 0.16 |", "| 8 | 90 | 77.88 ± 0.16 |")
    assert stale != text_of(page)
    assert generator.filled(stale, page) == text_of(page)


def test_an_unknown_block_is_refused(generator: ModuleType):
    odd = "<!-- generated: weather -->\n<!-- end: weather -->"
    with pytest.raises(KeyError, match="weather"):
        generator.filled(odd, "resnet50v1.5.md")


@pytest.mark.parametrize("page", MODELS)
def test_every_block_is_on_the_page_and_is_not_empty(generator: ModuleType, page: str):
    blocks = re.findall(r"<!-- generated: ([\w-]+) -->\n(.*?)<!-- end", text_of(page), re.DOTALL)
    names = [name for name, _ in blocks]
    expected = set(generator.model_blocks(MODELS[page]))
    if page != "resnet50v1.5.md":
        expected.remove("criteria")  # Power and memory were published for ResNet-50 alone.
    assert set(names) == expected
    assert len(names) == len(expected)
    assert names[-1] == "sources"
    for name, content in blocks:
        assert len(content.splitlines()) >= 3, name


@pytest.mark.parametrize("page", MODELS)
def test_every_published_run_with_a_name_has_its_command(page: str):
    text = text_of(page)
    checked = 0
    for run in load_runs():
        named = run.named
        if named is None or named.model != MODELS[page]:
            continue
        words = f"--platform {named.platform} "
        if run.kind == "inference":
            words += "--set platform.num_devices=1"
        else:
            entry = load_catalogue().find(named.model, named.platform, named.precision)
            words += f"--recipe {named.recipe or entry.default_recipe} /imagenet"
        names = f"launch.py --model {named.model} --precision {named.precision} "
        assert re.search(re.escape(names) + r"--mode \w+ " + re.escape(words), text), run.id
        checked += 1
    assert checked > 40


def block(page: str, name: str) -> str:
    return text_of(page).partition(f"<!-- generated: {name} -->\n")[2].partition("<!-- end")[0]


def test_figures_are_as_published():
    text = text_of("resnet50v1.5.md")
    assert (
        "| 8 | 90 | 76.88 ± 0.16 | - | ~5 hours | 77.01 ± 0.16 | - | ~12 hours | \\[1\\] |" in text
    )
    assert "| 8 | 8,322 | 2,855 | 2.91 | 6.93 | 7.76 | \\[2\\] |" in text
    assert "| Iluvatar BI-V100 | AMP | 512 | 76.43 | 5,221 | 128 x 8 | 29.1 x 8 | 0.97 |" in text
    assert "| 128 | 3,249 | 43.55 | 39.36 | 40.1 |" in text
    assert "| 16 | 23,400 (BF16) | SGD |" in text
    assert "| 8 | - | 78.6 | 94.19 | - | 78.69 | 94.16 |" in text
    assert "| MXNet | 8 | AMP | 90 | 77.185 | 26,673.72 |" in text


@pytest.mark.parametrize(
    ("name", "figure"), [("accuracy", "top1"), ("training", "train_images_per_s")]
)
@pytest.mark.parametrize("page", MODELS)
def test_no_figure_is_lost_and_each_has_its_source(
    script: Callable[[str], ModuleType], page: str, name: str, figure: str
):
    """Rows of several documents are merged: each value stays, with each document's number."""
    published = script("pages.published")
    sections = dict(re.findall(r"### (.+)\n((?:(?!###).*\n)+)", block(page, name)))
    numbers = dict(
        (source, number)
        for number, source in re.findall(r"^(\d+)\. (.+)$", text_of(page), re.MULTILINE)
    )
    checked = 0
    for run in published.tabled(MODELS[page]):
        figures = published.Figures(run)
        for kind, devices in figures.rows:
            if kind == figure:
                section = sections[run.hardware.name]
                row = rf"\| {devices} \|.* {re.escape(figures.value(figure, devices))} .*\|"
                assert re.search(row, section), (run.id, devices)
                assert f"\\[{numbers[str(run.source)]}\\]" in section, run.id
                checked += 1
    assert checked >= 20


@pytest.mark.parametrize("page", MODELS)
def test_result_tables_have_no_row_twice_and_devices_in_order(page: str):
    for name in ("accuracy", "training"):
        for section in re.split(r"\n\n(?=\*\*|###)", block(page, name)):
            rows = [line for line in section.splitlines() if re.match(r"\| \d", line)]
            assert len(set(rows)) == len(rows)
            devices = [int(row.split("|")[1]) for row in rows]
            assert devices == sorted(devices)
            assert section.count("not stated") <= 1


def test_todays_machines_have_a_row_and_a_command_each():
    text = block("resnet50v1.5.md", "not-measured")
    for platform in ("A100", "H100", "DGXH100", "H200", "DGXH200", "B200", "DGXB200"):
        assert re.search(rf"\| {platform} \| \d \| AMP \| 256 \| not measured yet", text)
        assert f"benchmark_training --platform {platform} /imagenet" in text


@pytest.mark.parametrize(
    ("source", "accuracy", "throughput"),
    [
        ({"version": "accuracy PyTorch NGC 20.12, throughput PyTorch NGC 21.03"}, "20.12", "21.03"),
        ({"version": "PyTorch 20.06 NGC"}, "20.06", "20.06"),
        ({"version": "21.03"}, "21.03", "21.03"),
        ({"name": "README, container 19.10, x", "version": "[placeholder]"}, "19.10", "19.10"),
    ],
)
def test_release_of_a_document(
    script: Callable[[str], ModuleType], source: dict[str, str], accuracy: str, throughput: str
):
    release_of = script("pages.published").release_of
    document = Source(**{"name": "NVIDIA", **source})
    assert release_of(document, "accuracy") == f"NGC {accuracy}"
    assert release_of(document, "throughput") == f"NGC {throughput}"
    assert release_of(Source("x", version="IXUCA SDK 2.2.0 (release 22.09)"), "accuracy") == (
        "IXUCA SDK 2.2"
    )
    assert release_of(Source("x"), "accuracy") == "release not stated"


@pytest.mark.parametrize("page", MODELS)
def test_every_source_number_is_listed(page: str):
    text = text_of(page)
    listed = re.findall(r"^(\d+)\. ", text, re.MULTILINE)
    used = set(re.findall(r"\\\[(\d+)\\\]", text))
    assert used == set(listed)
    assert [int(number) for number in listed] == list(range(1, len(listed) + 1))
