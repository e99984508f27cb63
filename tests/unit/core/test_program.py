import pytest

from image_classification.core.program import command, launch_words

AS_MODULE = ("-m", "image_classification", "launch")


@pytest.mark.parametrize(
    ("started_as", "launch", "report", "words"),
    [
        ("./launch.py", "launch.py", "python -m image_classification report", ("./launch.py",)),
        (
            "/venv/bin/image-classification",
            "image-classification launch",
            "image-classification report",
            AS_MODULE,
        ),
        (
            "/lib/image_classification/__main__.py",
            "python -m image_classification launch",
            "python -m image_classification report",
            AS_MODULE,
        ),
    ],
)
def test_commands_fit_how_the_program_was_started(started_as, launch, report, words, monkeypatch):
    monkeypatch.setattr("sys.argv", [started_as, "--list"])
    assert (command("launch"), command("report"), launch_words()) == (launch, report, words)
