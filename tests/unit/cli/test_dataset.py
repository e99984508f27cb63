from pathlib import Path

import pytest

from image_classification.cli.dataset import main
from image_classification.core.errors import ConfigError, DataError
from image_classification.data.formats import open_index


def test_demo_writes_the_data_set_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "digits"
    assert main(["demo", str(out)]) == 0
    assert capsys.readouterr().out == f"demo data set: {out}\n"
    assert len(open_index(out, "val", 10)) == 360


def test_demo_refuses_a_filled_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DataError, match="is not empty"):
        main(["demo", str(tmp_path)])


@pytest.mark.parametrize("argv", [[], ["demo"], ["dmeo", "x"], ["demo", "x", "y"]])
def test_bad_command_lines_are_one_line(argv: list[str]) -> None:
    with pytest.raises(ConfigError, match="--help"):
        main(argv)
