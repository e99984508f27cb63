import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from image_classification.cli.dataset import PACK_FORMATS, build_parser, main
from image_classification.core.errors import ConfigError, DataError
from image_classification.data.formats.folder import open_index
from image_classification.data.tools import pack, quarantine

ROOT = Path(__file__).parents[3]


def test_demo_writes_the_data_set_and_prints_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "digits"
    assert main(["demo", str(out)]) == 0
    assert capsys.readouterr().out == f"demo data set: {out}\n"
    assert len(open_index(out, "val", 10)) == 360


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["demo"],
        ["dmeo", "x"],
        ["demo", "x", "y"],
        ["check"],
        ["check", "x", "--workers", "-1"],
        ["fake", "x", "--images", "many", "--classes", "2"],
        ["fake", "x", "--images", "4"],
        ["pack", "x", "--format", "webdataset"],
        ["pack", "x", "-o", "y", "--format", "zip"],
    ],
)
def test_wrong_command_lines_are_config_errors(argv: list[str]) -> None:
    with pytest.raises(ConfigError, match="--help"):
        main(argv)


@pytest.mark.parametrize(
    "argv",
    [
        ["check", "x", "-o", "y", "--no-quarantine"],
        ["pack", "x", "-o", "y", "--format", "tfrecord", "--quality", "80"],
    ],
)
def test_options_without_effect_are_refused(argv: list[str]) -> None:
    with pytest.raises(ConfigError, match="give"):
        main(argv)


@pytest.mark.parametrize("command", ["", "check", "prepare", "pack", "fake", "demo"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*command.split(), "--help"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("usage: python -m image_classification dataset")


def test_pack_help_has_the_default_shard_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(PACK_FORMATS) == set(pack.FORMATS)
    with pytest.raises(SystemExit):
        main(["pack", "--help"])
    assert f"{pack.SHARD_IMAGES:,}" in capsys.readouterr().out


def test_check_describes_a_good_data_set(
    own_image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(own_image_folder), "--workers", "0"]) == 0
    out, err = capsys.readouterr()
    assert "classes   3: cat, dog, owl\n" in out
    assert re.search(r"^train +36 images \(folder, ", out, re.MULTILINE)
    assert "per class  12 / 12 / 12 (min / median / max)" in out
    assert "ready for training" in out
    assert "checking: train" in err and "36/36" in err
    assert not (own_image_folder / quarantine.QUARANTINE_FILE).exists()


def test_check_writes_the_quarantine_list(
    own_image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = own_image_folder / "train" / "cat" / "003.JPEG"
    content = image.read_bytes()
    image.write_bytes(b"")
    argv = ["check", str(own_image_folder), "--workers", "0"]
    with pytest.raises(DataError, match="1 broken image: replace") as found:
        main([*argv, "--no-quarantine"])
    assert found.value.exit_code == 2
    assert "ready for training" not in capsys.readouterr().out
    # Once the image is listed, a run leaves it out.
    for options in ((), ("--no-quarantine",)):
        assert main([*argv, *options]) == 0
        out = capsys.readouterr().out
        assert "BROKEN, empty: 1: train/cat/003.JPEG" in out
        assert "training leaves out the 1 broken train image in quarantine.json: ready" in out
    assert quarantine.load(own_image_folder) == {"train/cat/003.JPEG": "the file is empty"}
    index = open_index(own_image_folder, "train", 3)
    assert (len(index), index.num_quarantined) == (35, 1)
    # A repaired image is used again after another check.
    image.write_bytes(content)
    assert main(argv) == 0
    assert len(open_index(own_image_folder, "train", 3)) == 36


def test_check_writes_the_list_elsewhere_or_not_at_all(
    own_image_folder: Path, tmp_path: Path
) -> None:
    (own_image_folder / "val" / "dog" / "000.JPEG").write_text("no image")
    argv = ["check", str(own_image_folder), "--workers", "0"]
    with pytest.raises(DataError, match="1 broken image: replace"):
        main([*argv, "--no-quarantine"])
    with pytest.raises(DataError, match=r"listed in .*list\.json"):
        main([*argv, "-o", str(tmp_path / "list.json")])
    assert not (own_image_folder / quarantine.QUARANTINE_FILE).exists()
    listed = json.loads((tmp_path / "list.json").read_text())["images"]
    assert listed.keys() == {"val/dog/000.JPEG"}


def test_check_prints_the_report_even_if_the_list_cannot_be_written(
    own_image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_image_folder / "train" / "cat" / "003.JPEG").write_bytes(b"")
    (own_image_folder / quarantine.QUARANTINE_FILE).mkdir()
    with pytest.raises(DataError, match=r"cannot write the quarantine list .* -o"):
        main(["check", str(own_image_folder), "--workers", "0", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["quarantine"]["file"] is None
    assert report["quarantine"]["images"].keys() == {"train/cat/003.JPEG"}


@pytest.mark.slow
def test_a_closed_pipe_does_not_change_the_exit_code(own_image_folder: Path) -> None:
    (own_image_folder / "val" / "cat" / "003.JPEG").write_bytes(b"")
    argv = [sys.executable, "-m", "image_classification", "dataset", "check"]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        done = subprocess.run(
            [*argv, str(own_image_folder), "--workers", "0"],
            cwd=ROOT,
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        f"error: {own_image_folder} would make a run fail"
    )


def test_check_prints_json(own_image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own_image_folder / "train" / "cat" / "003.JPEG").write_bytes(b"")
    assert main(["check", str(own_image_folder), "--workers", "0", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    train = report["splits"]["train"]
    assert (train["num_images"], train["classes"]) == (36, ["cat", "dog", "owl"])
    assert train["formats"] == {"jpeg": 35, "unknown": 1}
    assert train["broken"]["empty"] == ["train/cat/003.JPEG"]
    assert report["quarantine"] == {
        "file": str(own_image_folder / "quarantine.json"),
        "images": {"train/cat/003.JPEG": "the file is empty"},
    }
    assert report["is_usable"] is True and report["imagenet_1k"] == "no"


def test_check_reports_a_problem(own_image_folder: Path) -> None:
    (own_image_folder / "val" / "emu").mkdir()
    with pytest.raises(DataError, match=r"would make a run fail: .* different classes"):
        main(["check", str(own_image_folder), "--workers", "0"])


def test_fake_then_check_then_pack_then_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, packed = str(tmp_path / "made"), str(tmp_path / "packed")
    argv = ["fake", made, "--images", "20", "--classes", "2", "--workers", "0", "--broken"]
    assert main(argv) == 0
    assert "20 train images" in capsys.readouterr().out
    assert main(["check", made, "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert "leaves out the 3 broken train images" in out
    assert "cmyk: 1: " in out and "disguised: 1: " in out and "exif_orientation: 1: " in out
    argv = ["pack", made, "-o", packed, "--format", "webdataset", "--workers", "1"]
    assert main([*argv, "--max-side", "96", "--quality", "70", "--shard-images", "9"]) == 0
    out = capsys.readouterr().out
    assert "train: 17 images in 2 webdataset shards" in out
    assert "3 left out by the quarantine list" in out
    assert main(["check", packed, "--workers", "0"]) == 0
    assert re.search(r"^train +17 images \(webdataset", capsys.readouterr().out, re.MULTILINE)


def test_prepare_prints_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inner, member = io.BytesIO(), tarfile.TarInfo("n00000001_1.JPEG")
    with tarfile.open(fileobj=inner, mode="w") as archive:
        archive.addfile(member)
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar", "w") as archive:
        member = tarfile.TarInfo("n00000001.tar")
        member.size = len(inner.getvalue())
        archive.addfile(member, io.BytesIO(inner.getvalue()))
    assert main(["prepare", str(tmp_path), "-o", str(tmp_path / "out")]) == 0
    expected = f"train: 1 classes, 1 images (1 new) in {tmp_path / 'out' / 'train'}, from "
    assert capsys.readouterr().out.startswith(expected)
    with pytest.raises(DataError, match="nothing to prepare"):
        main(["prepare", str(tmp_path / "out")])


def test_help_and_completion_import_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from image_classification.cli.dataset import build_parser; build_parser();"
        "sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_ctrl_c_removes_unfinished_files(tmp_path: Path) -> None:
    out = tmp_path / "made"
    argv = [sys.executable, "-m", "image_classification", "dataset", "fake", str(out)]
    argv += ["--images", "5000", "--classes", "10", "--workers", "1"]
    process = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        while process.poll() is None and not list(tmp_path.glob(".made-*/built/train/*/*.JPEG")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_split_writes_the_list_that_runs_use(
    own_image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = own_image_folder / "train"
    assert main(["split", str(photos), "--val-fraction", "0.5"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{photos}: 18 train and 18 validation images, listed in {photos}/split")
    assert [len(open_index(photos, split, 3)) for split in ("train", "val")] == [18, 18]
    elsewhere = tmp_path / "mine.json"
    assert main(["split", str(photos), "-o", str(elsewhere), "--seed", "1"]) == 0
    assert f"--set data.split_file={elsewhere}" in capsys.readouterr().out
    assert len(json.loads(elsewhere.read_text())["val"]) == 6
    with pytest.raises(DataError, match="there is nothing to split"):
        main(["split", str(own_image_folder)])
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="has no train/ folder"):
        main(["split", str(tmp_path / "empty")])
    with pytest.raises(DataError, match="name a writable file with -o"):
        main(["split", str(photos), "-o", str(tmp_path / "absent" / "x.json")])
    with pytest.raises(ConfigError, match="is not a fraction between 0 and 1"):
        main(["split", str(photos), "--val-fraction", "20"])


def documented_commands() -> list[str]:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if "image_classification dataset" in line]


def test_documented_commands_parse() -> None:
    shown = set()
    for line in documented_commands():
        words = shlex.split(line, comments=True)
        words = words[words.index("dataset") + 1 :]
        words = words[: words.index(">")] if ">" in words else words
        arguments = build_parser().parse_args(words)
        shown.add(arguments.command)
    assert shown == {"check", "split", "prepare", "pack", "fake", "demo"}
