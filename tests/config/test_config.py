"""The strict loader: what it accepts, and the sentence for everything else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neural_fields.config import plain_yaml
from neural_fields.config.loader import from_mapping, load_json, nest_keys, to_mapping
from neural_fields.config.plain_yaml import dump_yaml, load_yaml, parse_yaml
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


@pytest.mark.slow
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


# --- records of runs ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corner:
    as_list: ClassVar[bool] = True
    x: float
    y: float


@dataclass(frozen=True)
class Note:
    schema: Literal[3]
    path: Path
    rate: Fraction = Fraction(24)
    frames: range = range(0, 5, 1)
    corner: Corner = Corner(0.0, 0.0)
    corners: Mapping[str, Corner] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: str = field(kw_only=True)

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"rate is {self.rate}; it is above 0")


notes = st.builds(
    Note,
    schema=st.just(3),
    path=st.text("ab/.", min_size=1).map(Path),
    rate=st.fractions(min_value=Fraction(1, 10**6)),
    frames=st.builds(range, st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 99)),
    corner=st.builds(Corner, st.floats(-9, 9), st.floats(-9, 9)),
    corners=st.dictionaries(texts, st.builds(Corner, st.floats(-9, 9), st.floats(-9, 9)), max_size=2),
    settings=st.dictionaries(texts, st.none() | st.integers(-9, 9) | st.lists(st.booleans(), max_size=2), max_size=2),
    kind=texts,
)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(notes, st.booleans())
def test_writing_and_reading_a_record_gives_the_same_record(note: Note, without_defaults: bool) -> None:
    assert from_mapping(Note, json.loads(json.dumps(to_mapping(note, without_defaults=without_defaults)))) == note


def test_what_has_its_default_value_is_left_out_when_asked() -> None:
    note = Note(3, Path("a"), corner=Corner(0.0, 1.0), kind="x")
    assert to_mapping(note, without_defaults=True) == {"schema": 3, "path": "a", "corner": [0.0, 1.0], "kind": "x"}
    assert to_mapping(note)["rate"] == "24" and to_mapping(note)["frames"] == "0:5:1"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema": 4, "strange": 1}, "schema: expected one of [3], got 4"),  # before other keys: they may be right
        ({"strange": 1}, "strange: unknown key"),
        ({"corner": [1]}, "corner: expected 2 items, got 1"),
        ({"corner": [1, "x"]}, "corner.y: expected a finite number, got 'x'"),
        ({"corner": 3}, "corner: expected a list of 2 items, got 3"),
        ({"corners": {"a": [1, None]}}, "corners.a.y: expected a finite number, got null"),
        ({"rate": "1/0"}, "rate: expected a fraction such as 30000/1001, got '1/0'"),
        ({"rate": 0.5}, "rate: expected a fraction such as 30000/1001, got 0.5"),
        ({"rate": "-1/2"}, "rate is -1/2; it is above 0"),
        ({"frames": "0:5:0"}, "frames: expected a range such as 0:50:1, got '0:5:0'"),
        ({"frames": "0:5"}, "frames: expected a range such as 0:50:1, got '0:5'"),
        ({"path": 3}, "path: expected a path, got 3"),
        ({"settings": []}, "settings: expected a group of keys, got []"),
    ],
)
def test_a_wrong_record_is_named_with_its_key(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        from_mapping(Note, {"schema": 3, "path": "a", "kind": "x"} | change)
    assert caught.value.what == sentence


def test_a_json_file_of_a_run_is_damaged_by_name_and_key(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    for text, why in [
        ('{"schema": 3, "path": 1, "kind": "x"}', "path: expected a path, got 1"),
        ('{"schema": 3, "pat": "a", "kind": "x"}', "pat: unknown key; did you mean 'path'? (known keys here: schema"),
        ('{"schema": 3, "schema": 3}', "key 'schema' is given twice"),
        ("{", "Expecting"),
        ('{"path": ' + "[" * 50_000, "recursion"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError) as caught:
            load_json(Note, path, "make it again")
        assert caught.value.code == ExitCode.DAMAGED_RUN and caught.value.what == "note.json is damaged"
        assert why in caught.value.why and caught.value.where == str(path) and caught.value.fix == "make it again"
    path.write_text('{"schema": 3, "path": "a", "kind": "x"}')
    assert load_json(Note, path, "") == Note(3, Path("a"), kind="x")
    with pytest.raises(UserError, match=r"none.json is damaged"):
        load_json(Note, tmp_path / "none.json", "")


@pytest.mark.skipif(plain_yaml._QuickLoader is None, reason="PyYAML was built without libyaml")
@given(st.text(alphabet="ab01.:-[]{}, \n'\"~#\teE+xy", max_size=60))
@settings(max_examples=100, deadline=None)
def test_yaml_is_read_the_same_with_and_without_libyaml(text: str) -> None:
    answers: list[Any] = []
    for quick in (plain_yaml._QuickLoader, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plain_yaml, "_QuickLoader", quick)
            try:
                answers.append(repr(plain_yaml.parse_yaml(text)))
            except UserError as problem:
                answers.append(problem.code)
    assert answers[0] == answers[1]
