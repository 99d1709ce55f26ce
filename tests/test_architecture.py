"""The shape of the program, read from its syntax trees: which way imports point, who uses what, what is never done."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import jaxtyping
import pytest
import torch

from neural_fields import coords

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for package in ("neural_fields", "editors") for path in (ROOT / package).rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]
TREES = {name: ast.parse(path.read_text(encoding="utf-8"), name) for name, path in zip(NAMES, FILES, strict=True)}

# A file imports only from its own row and the rows above. What is not named here joins the parts: the row "rest".
ROWS = {
    "base": [
        "__init__.py",
        "errors.py",
        "coords.py",
        "config*.py",
        "files.py",
        "run.py",
        "checkpoints.py",
        "locking.py",
        "interrupt.py",
        "threads.py",
        "arrangement.py",
    ],
    "input": ["data/*", "encodings/*", "pictures.py", "lookup.py", "frame_parts.py", "blending.py"],
    "models": ["planar/*", "volume/*", "adam.py", "canonical.py", "metrics*.py"],
    "work": ["training.py", "baking.py", "rendering.py"],
    "rest": ["*"],
    "commands": ["api.py", "cli*.py"],  # `editors`, with the whole program in its cli.py, is on top of all
}

HOMES = {
    "av": ["neural_fields/data/*"],
    "yaml": ["neural_fields/config*.py"],
    "tyro": ["neural_fields/config*.py", "neural_fields/cli*.py", "editors/cli*.py"],
    "tinycudann": ["neural_fields/encodings/tcnn.py"],
    "lpips": ["neural_fields/metrics.py"],
    "torchvision": ["neural_fields/data/raft.py"],
    "pytorch3d": ["neural_fields/volume/neighbours.py"],
    "diffusers": ["editors/diffusion/wrapper.py"],
    "transformers": ["editors/diffusion/*"],
    "smplx": ["neural_fields/data/smpl.py"],
    "ai_edge_litert": ["neural_fields/data/pose_network.py"],
    "nerfstudio": ["neural_fields/nerfstudio_plugin.py"],
    "OpenEXR": ["neural_fields/export/exr.py"],
    "psd_tools": ["neural_fields/export/psd.py"],
    "watchfiles": ["editors/watch.py"],
    "pickle": ["neural_fields/data/raft.py"],  # to name the error that torch.load raises; calls are checked below
    "dill": [],
    "joblib": [],
    "marshal": [],
    "shelve": [],
}
NEVER_AT_THE_TOP = [
    "torchvision",
    "lpips",
    "tinycudann",
    "diffusers",
    "transformers",
    "pytorch3d",
    "smplx",
    "ai_edge_litert",
    "nerfstudio",
    "OpenEXR",
    "psd_tools",
    "watchfiles",
]
STARTS_FAST = [
    "editors/cli.py",
    "__init__.py",
    "cli.py",
    "config.py",
    "config_loader.py",
    "errors.py",
    "files.py",
    "run.py",
    "checkpoints.py",
    "locking.py",
    "interrupt.py",
    "threads.py",
    "fit_options.py",
]
HEAVY = ["torch", "torchvision", "cv2", "av", "scipy", "lpips"]


def imports(tree: ast.AST, top_only: bool = False) -> Iterator[str]:
    """Dotted names that a tree imports, in functions too unless `top_only`, but not those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif not (top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            yield from imports(node, top_only)


def own_file(dotted: str) -> str | None:
    """The file of this project that an imported name belongs to."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        stem = "/".join(parts[:count])
        for name in (f"{stem}.py", f"{stem}/__init__.py"):
            if name in TREES:
                return name
    return None


def row(name: str) -> int:
    inside = name.removeprefix("neural_fields/")
    chosen = [i for i, (label, forms) in enumerate(ROWS.items()) if label != "rest" and matches(inside, forms)]
    return chosen[0] if chosen else list(ROWS).index("rest")


def matches(name: str, forms: list[str]) -> bool:
    return any(fnmatch(name, form) and ("/" in form or "/" not in name) for form in forms)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def literal(call: ast.Call) -> bool:
    return bool(call.args) and isinstance(call.args[-1], ast.Constant)


def keyword(call: ast.Call, name: str) -> object:
    values = [word.value for word in call.keywords if word.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


def test_imports_point_one_way() -> None:
    wrong = []
    for name in NAMES:
        for dotted in imports(TREES[name]):
            other, inside = own_file(dotted), name.startswith("neural_fields/")
            if inside and dotted.startswith("editors"):
                wrong.append(f"{name} imports an editor: {dotted}")
            if inside and other and not other.endswith("__init__.py") and row(other) > row(name):
                wrong.append(f"{name} imports {dotted} of a later row")
    assert not wrong


def test_no_two_modules_import_each_other_at_the_top() -> None:
    edges = {name: {own_file(dotted) for dotted in imports(TREES[name], top_only=True)} - {name} for name in NAMES}
    while leaves := [name for name, others in edges.items() if not others & edges.keys()]:
        for leaf in leaves:
            del edges[leaf]
    assert not edges, f"in or behind a circle: {sorted(edges)}"


def test_third_party_packages_stay_at_home() -> None:
    wrong = []
    for name in NAMES:
        for dotted in imports(TREES[name]):
            package = dotted.split(".")[0]
            if package in HOMES and not any(fnmatch(name, home) for home in HOMES[package]):
                wrong.append(f"{name} imports {dotted}")
        for dotted in imports(TREES[name], top_only=True):
            if dotted.split(".")[0] in NEVER_AT_THE_TOP:
                wrong.append(f"{name} imports {dotted} outside a function")
    assert not wrong


def test_what_the_command_line_loads_first_is_light() -> None:
    waiting = [name for name in NAMES if matches(name.removeprefix("neural_fields/"), STARTS_FAST)]
    wrong, seen = [], set(waiting)
    while waiting:
        name = waiting.pop()
        for dotted in imports(TREES[name], top_only=True):
            if dotted.split(".")[0] in HEAVY:
                wrong.append(f"{name} loads {dotted}")
            other = own_file(dotted)
            if other is not None and other not in seen:
                seen.add(other)
                waiting.append(other)
    assert not wrong


def test_no_data_is_run_as_code() -> None:
    never = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.hub.load"}
    never |= {"yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all"}
    wrong = []
    for name in NAMES:
        for function, call in calls(TREES[name]):
            bad = function in never or (function.startswith("pickle.") and not function.endswith("Error"))
            bad |= keyword(call, "shell") is True or keyword(call, "allow_pickle") is True
            bad |= function == "np.load" and keyword(call, "allow_pickle") is not False
            bad |= function == "torch.load" and keyword(call, "weights_only") is not True
            bad |= function == "yaml.load" and "_PlainLoader" not in ast.unparse(call)
            if bad:
                wrong.append(f"{name}:{call.lineno}: {ast.unparse(call)[:80]}")
    assert not wrong


def test_exceptions_are_caught_by_name() -> None:
    """`except Exception` is a border around a foreign parser, and a comment at it or at its `try` says which."""
    wrong = []
    for name in NAMES:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        for block in ast.walk(TREES[name]):
            for handler in block.handlers if isinstance(block, ast.Try) else []:
                caught = ast.unparse(handler.type) if handler.type else "BaseException"
                broad = {"Exception", "BaseException"} & set(re.findall(r"\w+", caught))
                cleans_up = any(isinstance(step, ast.Raise) and step.exc is None for step in handler.body)
                explained = any("#" in line for line in lines[block.lineno - 3 : handler.lineno + 1])
                if handler.type is None or (broad and not cleans_up and not explained):
                    wrong.append(f"{name}:{handler.lineno}: {caught}")
    assert not wrong


def test_modules_that_write_files_put_them_in_place_by_a_rename() -> None:
    writers = ("cv2.imwrite", "torch.save", "np.save", "np.savez", "np.savez_compressed")
    wrong = []
    for name in NAMES:
        source = (ROOT / name).read_text(encoding="utf-8")
        renames = "atomic_" in source or "os.replace" in source
        for function, call in calls(TREES[name]):
            opens = function == "open" or function.endswith(".open")
            mode = str(keyword(call, "mode") or (ast.literal_eval(call.args[-1]) if opens and literal(call) else ""))
            writes = function in writers or function.endswith((".write_text", ".write_bytes"))
            writes |= opens and bool({"w", "x"} & set(mode)) and len(mode) <= 3
            if writes and not renames:
                wrong.append(f"{name}:{call.lineno}: {ast.unparse(call)[:80]}")
    assert not wrong


def test_every_public_name_says_what_it_does() -> None:
    wrong = []
    for name in NAMES:
        if not ast.get_docstring(TREES[name]):
            wrong.append(f"{name} has no docstring")
        for node in TREES[name].body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                wrong.append(f"{name}:{node.lineno}: {node.name} has no docstring")
    assert not wrong


def test_no_file_is_longer_than_a_sitting() -> None:
    lengths = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in NAMES}
    assert not {name: length for name, length in lengths.items() if length > 400}


def test_the_rule_for_imports_sees_a_wrong_one() -> None:
    """The checks above would pass on anything if the names did not resolve."""
    assert own_file("neural_fields.coords.Box") == "neural_fields/coords.py"
    assert row("neural_fields/coords.py") < row("neural_fields/data/video.py") < row("neural_fields/cli.py")
    tree = ast.parse("def f():\n    from editors.stack import push\nif TYPE_CHECKING:\n    import pickle\n")
    assert list(imports(tree)) == ["editors.stack.push"]
    assert list(imports(tree, top_only=True)) == []


def test_annotations_are_checked_while_tests_run() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        coords.normalize_pixels(torch.zeros(5, 3), 16, 9)
