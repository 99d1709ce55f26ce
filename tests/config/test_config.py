"""The strict loader: what it accepts, and the sentence for everything else."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_fields.config.loader import dump_yaml, from_mapping, load_yaml, nest_keys, parse_yaml, to_mapping
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.suggestions import nearest_word


@dataclass(frozen=True)
class HashGrid:
    kind: ClassVar[str] = "hash"
    n_levels: int = 16
    growth: float = 1.4


@dataclass(frozen=True)
class Fourier:
    kind: Literal["fourier"] = "fourier"
    octaves: int = 10


@dataclass(frozen=True)
class Texture:
    encoding: HashGrid | Fourier = field(default_factory=lambda: HashGrid(n_levels=8))
    extra: Fourier | None = None
    size: tuple[int, int] = (64, 36)
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class Toy:
    name: str
    texture: Texture = field(default_factory=Texture)
    batch: Literal["frames", "pixels"] = "frames"
    seed: int | None = None
    limit: int | str = "none"
    soft: bool = True
    rates: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch == "pixels" and self.soft:
            raise ValueError("batch: pixels needs soft: false")


@pytest.mark.parametrize(
    ("mapping", "sentence"),
    [
        (
            {"name": "a", "texture": {"encoding": {"n_level": 3}}},
            "bear.texture.encoding.n_level: unknown key; did you mean 'n_levels'?",
        ),
        ({"name": "a", "sede": 3}, "bear.sede: unknown key; did you mean 'seed'?"),
        ({"name": "a", "zzzzz": 3}, "bear.zzzzz: unknown key"),
        ({}, "bear.name: missing; expected text"),
        ({"name": 3}, "bear.name: expected text, got 3"),
        ({"name": None}, "bear.name: expected text, got null"),
        ({"name": "a", "soft": 1}, "bear.soft: expected true or false, got 1"),
        ({"name": "a", "seed": True}, "bear.seed: expected a whole number or null, got true"),
        ({"name": "a", "seed": 1.5}, "bear.seed: expected a whole number or null, got 1.5"),
        (
            {"name": "a", "batch": "frame"},
            "bear.batch: expected one of [frames, pixels], got 'frame'; did you mean 'frames'?",
        ),
        ({"name": "a", "texture": 7}, "bear.texture: expected a group of keys, got 7"),
        ({"name": "a", "texture": None}, "bear.texture: expected a group of keys, got null"),
        ({"name": "a", "texture": {"size": [1]}}, "bear.texture.size: expected 2 items, got 1"),
        ({"name": "a", "texture": {"size": "12"}}, "bear.texture.size: expected a list of 2 items, got '12'"),
        ({"name": "a", "texture": {"weights": [1, "x"]}}, "bear.texture.weights[1]: expected a finite number, got 'x'"),
        (
            {"name": "a", "texture": {"weights": [float("nan")]}},
            "bear.texture.weights[0]: expected a finite number, got nan",
        ),
        (
            {"name": "a", "texture": {"encoding": {"kind": "furier"}}},
            "bear.texture.encoding.kind: expected one of [hash, fourier], got 'furier'; did you mean 'fourier'?",
        ),
        (
            {"name": "a", "texture": {"extra": {"kind": "hash"}}},
            "bear.texture.extra.kind: expected 'fourier', got 'hash'",
        ),
        ({"name": "a", "rates": {"slow": "x"}}, "bear.rates.slow: expected a finite number, got 'x'"),
        ({"name": "a", "batch": "pixels"}, "bear: batch: pixels needs soft: false"),
    ],
)
def test_wrong_config_is_named_with_its_dotted_path(mapping: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        from_mapping(Toy, mapping, "bear", where="bear.yaml")
    assert caught.value.what == sentence
    assert caught.value.code == ExitCode.BAD_INPUT
    assert caught.value.where == "bear.yaml"


def test_kind_is_asked_for_where_nothing_tells_the_variant() -> None:
    with pytest.raises(UserError, match=r"needs 'kind', one of \[hash, fourier\]"):
        from_mapping(Needy, {"encoding": {"octaves": 3}})


@dataclass(frozen=True)
class Needy:
    encoding: HashGrid | Fourier


def test_left_out_keys_keep_the_default_of_the_parent() -> None:
    toy = from_mapping(Toy, {"name": "a", "texture": {"encoding": {"growth": 2}}})
    assert toy.texture.encoding == HashGrid(n_levels=8, growth=2.0)


def test_a_changed_kind_starts_from_its_own_defaults() -> None:
    toy = from_mapping(Toy, {"name": "a", "texture": {"encoding": {"kind": "fourier"}}})
    assert toy.texture.encoding == Fourier(octaves=10)


def test_overrides_change_only_what_they_name() -> None:
    base = Toy("a", Texture(Fourier(octaves=4), weights=(1.0,)), seed=7)
    changed = from_mapping(Toy, nest_keys({"texture.encoding.octaves": 6, "soft": False}), base=base)
    assert changed == Toy("a", Texture(Fourier(octaves=6), weights=(1.0,)), seed=7, soft=False)


def test_numbers_convert_only_without_loss() -> None:
    toy = from_mapping(Toy, {"name": "a", "seed": 1e4, "texture": {"weights": [1]}})
    assert toy.seed == 10_000 and type(toy.seed) is int
    assert type(toy.texture.weights[0]) is float
    assert from_mapping(Toy, {"name": "a", "limit": 5}).limit == 5


def test_dotted_keys_that_contradict_each_other_are_refused() -> None:
    for keys in (["training", "training.steps"], ["training.steps", "training"]):
        with pytest.raises(UserError, match="training"):
            nest_keys(dict.fromkeys(keys, 1))


def test_nearest_forgives_case_and_dashes_but_not_strangers() -> None:
    assert nearest_word("N-Levels", ["n_levels", "growth"]) == "n_levels"
    assert nearest_word("banana", ["n_levels", "growth"]) is None


tricky = ["1e-3", "0:50", "10:20", "010", "yes", "null", "~", "2020-01-01", "=", "<<", "a: b", "\x85", "\ufeff"]
texts = st.text(max_size=8) | st.sampled_from(tricky)
toys = st.builds(
    Toy,
    name=texts,
    texture=st.builds(
        Texture,
        encoding=st.builds(HashGrid, n_levels=st.integers(-99, 99)) | st.builds(Fourier, octaves=st.integers(0, 9)),
        extra=st.none() | st.builds(Fourier),
        size=st.tuples(st.integers(0, 2**62), st.integers(0, 9)),
        weights=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3).map(tuple),
    ),
    seed=st.none() | st.integers(-(10**9), 10**9),
    rates=st.dictionaries(texts, st.floats(-1, 1), max_size=2),
)


@given(toys)
def test_writing_and_reading_a_config_gives_the_same_config(toy: Toy) -> None:
    mapping = to_mapping(toy)
    assert next(iter(mapping["texture"]["encoding"])) == "kind"
    assert from_mapping(Toy, parse_yaml(dump_yaml(mapping))) == toy


def test_scalars_follow_yaml_1_2(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    lines = ["rate: 1e-3", "frames: 0:50", "octal: 010", "word: yes", "day: 2020-01-01", "none: ~", "truth: true"]
    path.write_text("\n".join([*lines, "list: [1, .5]"]))
    assert load_yaml(path) == {
        "rate": 0.001,
        "frames": "0:50",
        "octal": 10,
        "word": "yes",
        "day": "2020-01-01",
        "none": None,
        "truth": True,
        "list": [1, 0.5],
    }


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"a: !!python/object/apply:os.system ['true']", ExitCode.UNSAFE_FILE, "is not allowed"),
        (b"a: !!int 'x'", ExitCode.UNSAFE_FILE, "is not allowed"),
        (b"a: &x [1]\nb: *x", ExitCode.BAD_INPUT, "aliases"),
        (b"a: 1\na: 2", ExitCode.BAD_INPUT, "key 'a' is given twice"),
        (b"1: 2", ExitCode.BAD_INPUT, "key 1 is not text"),
        (b"[1]: 2", ExitCode.BAD_INPUT, "is not text"),
        (b"- 1\n- 2", ExitCode.BAD_INPUT, "holds [1, 2]"),
        (b"a: [1", ExitCode.BAD_INPUT, "not valid YAML"),
        (b"a: 1\n---\nb: 2", ExitCode.BAD_INPUT, "not valid YAML"),
        (b"a: \x00", ExitCode.BAD_INPUT, "not valid YAML"),
        (b"\xff\xd8\xff\xe0", ExitCode.BAD_INPUT, "not text in UTF-8"),
        (b"a: " + b"[" * 9000, ExitCode.BAD_INPUT, "nested too deeply"),
        (b"#" * (1 << 20) + b"\n", ExitCode.BAD_INPUT, "larger than 1 MiB"),
    ],
)
def test_a_file_that_is_no_plain_config_is_refused(tmp_path: Path, content: bytes, code: ExitCode, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_yaml(path)
    assert words in caught.value.what
    assert caught.value.code == code
    assert caught.value.where.startswith(str(path))


def test_a_missing_file_and_a_folder_are_bad_input(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UserError, match="cannot read"):
            load_yaml(path)


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# only a comment\n")
    assert load_yaml(tmp_path / "empty.yaml") == {}
