from pathlib import Path

import pytest

from image_classification.config.yaml_file import Located, load_yaml
from image_classification.core.errors import ConfigError


def load(tmp_path: Path, text: str) -> Located:
    path = tmp_path / "f.yml"
    path.write_text(text, encoding="utf-8")
    return load_yaml(path, "f.yml")


def child(at: Located, *keys: str) -> Located:
    for key in keys:
        assert isinstance(at.value, dict)
        at = at.value[key]
    return at


def test_every_value_knows_its_line(tmp_path: Path) -> None:
    root = load(tmp_path, "a: 1\nb:\n  c: text\n  d: [1.5,\n      true]\n")
    assert child(root, "a") == Located(1, 1, "1")
    assert child(root, "b", "c").line == 3
    items = child(root, "b", "d").value
    assert isinstance(items, list)
    assert [(i.value, i.line) for i in items] == [(1.5, 4), (True, 5)]


def test_a_merged_value_keeps_the_line_it_is_written_on(tmp_path: Path) -> None:
    root = load(tmp_path, "base: &b\n  x: 1\n  y: 2\nuse:\n  <<: *b\n  y: 3\n")
    assert (child(root, "use", "x").value, child(root, "use", "x").line) == (1, 2)
    assert (child(root, "use", "y").value, child(root, "use", "y").line) == (3, 6)


def test_earlier_mappings_of_a_merge_list_win(tmp_path: Path) -> None:
    root = load(tmp_path, "a: &a {x: 1}\nb: &b {x: 2, y: 2}\nuse:\n  <<: [*a, *b]\n")
    assert child(root, "use", "x").value == 1
    assert child(root, "use", "y").value == 2


def test_an_own_key_wins_over_a_merge_that_follows_it(tmp_path: Path) -> None:
    root = load(tmp_path, "a: &a {x: 1}\nuse:\n  x: 5\n  <<: *a\n")
    assert child(root, "use", "x").value == 5


def test_text_keeps_what_yaml_would_reinterpret(tmp_path: Path) -> None:
    at = child(load(tmp_path, "a: no\n"), "a")
    assert (at.value, at.text) == (False, "no")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yml:3: 'a' is already set on line 1; keep one"),
        ("a: [1\nb: 2\n", "f.yml:2: not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "f.yml:1: the tag"),
        ("a: !thing x\n", "f.yml:1: the tag '!thing' is not allowed"),
        ("a: &x\n  b: *x\n", "f.yml:1: this anchor contains itself"),
        ("a: &x [1, *x]\n", "f.yml:1: this anchor contains itself"),
        ("a: 1\nb:\n  <<: 3\n", "f.yml:3: << must name a mapping"),
        ("[1]: 2\n", "f.yml:1: a key must be plain text"),
        ("# nothing\n", "f.yml: the file is empty"),
        ("a: *nowhere\n", "f.yml:1: not valid YAML: found undefined alias"),
    ],
)
def test_invalid_yaml_is_an_error_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert caught.value.message.startswith(message)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file.*--cfg_file"):
        load_yaml(tmp_path / "none.yml", "none.yml")


def test_bytes_that_are_not_utf8_say_so(tmp_path: Path) -> None:
    path = tmp_path / "f.yml"
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match=r"f\.yml: not UTF-8 text at byte 3"):
        load_yaml(path, "f.yml")
