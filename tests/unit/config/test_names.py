import pytest

from image_classification.config.catalogue import load_catalogue
from image_classification.config.names import read_name
from image_classification.config.resolve import read_run
from image_classification.config.schema import MODES
from image_classification.core.errors import ConfigError

CATALOGUE = load_catalogue()
VALID = {
    "model": CATALOGUE.models,
    "precision": tuple(CATALOGUE.precisions),
    "platform": tuple(CATALOGUE.platforms),
    "mode": MODES,
    "recipe": tuple(CATALOGUE.recipes),
}


@pytest.mark.parametrize(
    ("kind", "word", "name"),
    [
        ("model", "ResNet-50", "resnet50"),
        ("model", "resnext101_32x4d", "resnext101-32x4d"),
        ("model", "SE-ResNeXt50", "se-resnext50-32x4d"),
        ("model", "resnext50", "resnext50-32x4d"),
        ("precision", "amp", "AMP"),
        ("precision", "fp16", "AMP"),
        ("precision", "Float32", "FP32"),
        ("precision", "bfloat16", "BF16"),
        ("platform", "cuda", "GPU"),
        ("platform", "gpu", "GPU"),
        ("platform", "cpu", "CPU"),
        ("platform", "dgx1v", "DGX1V"),
        ("platform", "DGX-1", "DGX1V"),
        ("platform", "DGX A100", "DGXA100"),
        ("platform", "a100", "A100"),
        ("platform", "bi-v100X8", "BI-V100x8"),
        ("mode", "train", "convergence"),
        ("mode", "benchmark-training", "benchmark_training"),
        ("mode", "Inference", "benchmark_inference"),
        ("recipe", "90", "90e"),
        ("recipe", "90 epochs", "90e"),
    ],
)
def test_other_spellings(kind: str, word: str, name: str) -> None:
    note = f"{kind} {word!r} is read as {name}"
    assert read_name(kind, word, VALID[kind]) == (
        name,
        note if word.lower() != name.lower() else "",
    )
    assert read_name(kind, name, VALID[kind]) == (name, "")


@pytest.mark.parametrize(
    ("kind", "word", "parts"),
    [
        ("platform", "V100", ("fits several", "DGX1V-16G (NVIDIA DGX-1", "DGX2V", "GPU (any")),
        ("platform", "BI-V100", ("BI-V100x1", "BI-V100x16")),
        ("model", "resnext101", ("resnext101-32x4d, resnext101-64x4d",)),
        ("mode", "benchmark", ("benchmark_training", "benchmark_data")),
    ],
)
def test_a_word_that_fits_several_names(kind: str, word: str, parts: tuple[str, ...]) -> None:
    about = {name: block.about for name, block in CATALOGUE.platforms.items()}
    with pytest.raises(ConfigError) as caught:
        read_name(kind, word, VALID[kind], about)
    for part in parts:
        assert part in caught.value.message


@pytest.mark.parametrize(
    ("kind", "word", "part"),
    [
        ("platform", "RTX4090", "; GPU is any NVIDIA GPU"),
        ("model", "resnet5", "did you mean 'resnet50'?"),
        ("model", "", "unknown model ''"),
        ("precision", "FP8", "unknown precision 'FP8'"),
        ("recipe", "91e", "did you mean '90e'"),
    ],
)
def test_an_unknown_name(kind: str, word: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_name(kind, word, VALID[kind])
    assert part in caught.value.message


def test_the_run_has_the_valid_names_and_a_note_for_each_other_spelling() -> None:
    run = read_run("ResNet-50", "fp16", "train", "cuda", "90")
    names = run.names
    assert (names.model, names.precision, names.mode) == ("resnet50", "AMP", "convergence")
    assert (names.platform, names.recipe) == ("GPU", "90e")
    assert run.warnings[:5] == (
        "model 'ResNet-50' is read as resnet50",
        "precision 'fp16' is read as AMP",
        "mode 'train' is read as convergence",
        "platform 'cuda' is read as GPU",
        "recipe '90' is read as 90e",
    )
