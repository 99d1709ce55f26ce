"""The shape of the program, read from its syntax trees: which way imports point, who uses what, what is never done."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
import typing
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import is_dataclass
from fnmatch import fnmatch
from pathlib import Path

import jaxtyping
import pytest
import torch

from neural_fields.core import coords
from tests.support.annotation_check import check

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for package in ("neural_fields", "editors") for path in (ROOT / package).rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]
TREES = {name: ast.parse(path.read_text(encoding="utf-8"), name) for name, path in zip(NAMES, FILES, strict=True)}

# From the bottom to the top: a module imports only from its own folder and from those before it.
FOLDERS = [
    "neural_fields/core",
    "neural_fields/config",
    "neural_fields/nn",
    "neural_fields/imaging",
    "neural_fields/imaging/documents",
    "neural_fields/data/video",
    "neural_fields/data/flow",
    "neural_fields/data/masks",
    "neural_fields/data/segmentation",
    "neural_fields/data/segmentation/networks",
    "neural_fields/data",
    "neural_fields/data/capture",
    "neural_fields/data/synthetic",
    "neural_fields/runs",
    "neural_fields/atlas",
    "neural_fields/edits",
    "neural_fields/planar/init",
    "neural_fields/planar/mappings",
    "neural_fields/planar/appearance",
    "neural_fields/planar/composition",
    "neural_fields/planar/losses",
    "neural_fields/planar",
    "neural_fields/planar/gauss_newton",
    "neural_fields/volume",
    "neural_fields/open_runs",
    "neural_fields/masking",
    "neural_fields/tracking",
    "neural_fields/rendering/retiming",
    "neural_fields/rendering",
    "neural_fields/evaluation",
    "neural_fields/evaluation/report",
    "neural_fields/export",
    "neural_fields/export/pictures",
    "neural_fields/export/maps",
    "neural_fields/export/tracks",
    "neural_fields/training",
    "neural_fields/integrations",
    "neural_fields",
    "neural_fields/cli",
    "editors/options",
    "editors/inputs",
    "editors/core",
    "editors/effects",
    "editors/diffusion/backend",
    "editors/diffusion/common",
    "editors/diffusion/methods",
    "editors/volume",
    "editors",
    "editors/live",
    "editors/cli",
]

HOMES = {
    "av": ["neural_fields/data/*"],
    "yaml": ["neural_fields/config/*"],
    "tyro": ["neural_fields/config/*", "neural_fields/cli/*", "editors/cli/*"],
    "rich": ["neural_fields/cli/progress_display.py"],
    "tinycudann": ["neural_fields/nn/tcnn.py"],
    "jinja2": ["neural_fields/core/html_pages.py"],
    "filelock": ["neural_fields/runs/locking.py"],
    "lpips": ["neural_fields/evaluation/lpips.py"],
    "torchvision": ["neural_fields/data/flow/raft.py"],
    "pytorch3d": ["neural_fields/volume/nearest_neighbors.py"],
    "diffusers": ["editors/diffusion/backend/diffusers_model.py"],
    "transformers": ["neural_fields/data/segmentation/networks/*", "editors/diffusion/*"],
    "smplx": ["neural_fields/data/capture/smpl.py"],
    "ai_edge_litert": ["neural_fields/data/capture/pose_estimation.py"],
    "nerfstudio": ["neural_fields/integrations/nerfstudio.py"],
    "onnxruntime": ["neural_fields/data/segmentation/networks/main_object.py"],
    "OpenEXR": ["neural_fields/imaging/exr.py"],
    "psd_tools": ["neural_fields/imaging/documents/psd.py"],
    "watchfiles": ["editors/live/watch.py"],
    "pickle": ["neural_fields/data/flow/raft.py"],  # to name the error that torch.load raises; calls are checked below
    "dill": [],
    "joblib": [],
    "marshal": [],
    "shelve": [],
}
NEVER_AT_THE_TOP = [
    "jinja2",
    "rich",
    "torchvision",
    "lpips",
    "tinycudann",
    "diffusers",
    "transformers",
    "pytorch3d",
    "smplx",
    "ai_edge_litert",
    "nerfstudio",
    "onnxruntime",
    "OpenEXR",
    "psd_tools",
    "watchfiles",
]
# Open runs, which name the models that they load on demand for type checkers alone.
WITHOUT_THEIR_MODELS = {"neural_fields/open_runs/planar_run.py", "neural_fields/open_runs/scene_run.py"}
HEAVY = ["torch", "torchvision", "cv2", "av", "scipy", "lpips"]


def imports(tree: ast.AST, top_only: bool = False) -> Iterator[str]:
    """Dotted names that a tree imports: all of them, or with `top_only` those that are loaded with the module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif top_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
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


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def literal(call: ast.Call) -> bool:
    return bool(call.args) and isinstance(call.args[-1], ast.Constant)


def keyword(call: ast.Call, name: str) -> object:
    values = [word.value for word in call.keywords if word.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


def folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def test_imports_point_one_way() -> None:
    """From a folder to itself and to those before it in the list; lazy imports and those for type checkers count."""
    order = {folder: place for place, folder in enumerate(FOLDERS)}
    wrong = []
    for name in NAMES:
        for dotted in imports(TREES[name]):
            other = own_file(dotted)
            lazy_names = name in ("neural_fields/__init__.py", "editors/__init__.py")  # the public names of a package
            if other is None or other.endswith("__init__.py") or lazy_names:
                continue
            if order[folder_of(other)] > order[folder_of(name)]:
                wrong.append(f"{name} imports {dotted} of a later folder")
    assert not wrong


def test_mappings_and_the_joint_of_the_parts_never_get_the_clip() -> None:
    """The way of the video in section 18 of the design leaves them out."""
    folders = ("neural_fields/planar/mappings", "neural_fields/planar/composition")
    given = {name: [*imports(TREES[name])] for name in NAMES if folder_of(name) in folders}
    assert not {name: dotted for name, dotted in given.items() if any("neural_fields.data." in way for way in dotted)}


def test_no_modules_import_each_other_in_a_circle() -> None:
    edges = {name: {own_file(dotted) for dotted in imports(TREES[name])} - {name} for name in NAMES}
    edges = {name: others for name, others in edges.items() if not name.endswith("__init__.py")}
    while leaves := [name for name, others in edges.items() if not others & edges.keys()]:
        for leaf in leaves:
            del edges[leaf]
    assert not edges, f"in or behind a circle: {sorted(edges)}"


def test_the_folders_are_those_of_the_design_and_of_the_disk() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    tree = text[text.index("## 11. Source tree") : text.index("## 12.")]
    lines = [line.split() for line in tree.splitlines() if re.match(r"    (neural_fields|editors)/", line)]
    assert [words[0].rstrip("/") for words in lines] == FOLDERS
    assert all(len(words) > 2 for words in lines), "each folder has a line that says what is in it"
    with_modules = {folder_of(name) for name in NAMES if not name.endswith("__init__.py")}
    assert with_modules == set(FOLDERS)


def test_no_folder_has_more_than_twenty_modules() -> None:
    tests = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")]
    counts = Counter(folder_of(name) for name in [*NAMES, *tests] if not name.endswith("__init__.py"))
    assert not {folder: count for folder, count in counts.items() if count > 20}


def test_a_class_name_has_one_meaning() -> None:
    homes = defaultdict(set)
    for name in NAMES:
        for node in ast.walk(TREES[name]):
            if isinstance(node, ast.ClassDef):
                homes[node.name].add(name)
    assert not {name: files for name, files in homes.items() if len(files) > 1}


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


def loaded_first() -> set[str]:
    """The modules that the command line loads before it knows the command."""
    waiting = ["editors/cli/main.py", "editors/__init__.py", "neural_fields/__init__.py"]
    seen = set(waiting)
    while waiting:
        for dotted in imports(TREES[waiting.pop()], top_only=True):
            other = own_file(dotted)
            if other is not None and other not in seen:
                seen.add(other)
                waiting.append(other)
    return seen


def test_what_the_command_line_loads_first_is_light() -> None:
    loads = {name: {dotted.split(".")[0] for dotted in imports(TREES[name], top_only=True)} for name in loaded_first()}
    assert not {name: packages & set(HEAVY) for name, packages in loads.items() if packages & set(HEAVY)}


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
            bad |= function == "yaml.load" and not {"_PlainLoader", "_QuickLoader"} & set(
                re.findall(r"\w+", ast.unparse(call))
            )
            if bad:
                wrong.append(f"{name}:{call.lineno}: {ast.unparse(call)[:80]}")
    assert not wrong


def test_exceptions_are_caught_by_name() -> None:
    """`except Exception` is a border around a foreign parser, and a comment at it or at its `try` says which."""
    wrong = []
    for name in NAMES:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        for block in (node for node in ast.walk(TREES[name]) if isinstance(node, ast.Try)):
            for handler in block.handlers:
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
            is_nowhere = "_Nowhere()" in ast.unparse(call)  # tries what an output can hold, and keeps no byte
            if writes and not renames and not is_nowhere:
                wrong.append(f"{name}:{call.lineno}: {ast.unparse(call)[:80]}")
    assert not wrong


def test_every_public_name_says_what_it_does() -> None:
    wrong = []
    for name in NAMES:
        if not ast.get_docstring(TREES[name]):
            wrong.append(f"{name} has no docstring")
        for node in TREES[name].body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                wrong.append(f"{name}:{node.lineno}: {node.name} has no docstring")
    assert not wrong


def test_files_and_functions_can_be_read_in_one_go() -> None:
    long = {name: lines for name in NAMES if (lines := len((ROOT / name).read_text("utf-8").splitlines())) > 600}
    for name in NAMES:
        for node in ast.walk(TREES[name]):
            if isinstance(node, ast.FunctionDef) and (lines := (node.end_lineno or 0) - node.lineno + 1) > 80:
                long[f"{name}:{node.lineno} {node.name}"] = lines
    assert not long


def test_every_annotation_resolves_while_the_program_runs() -> None:
    """Names imported for type checkers alone cannot be checked while tests run: the check gives up without a word.

    Only what the command line loads first may do so, and an open run: they must not load torch for a hint.
    """
    wrong = []
    for name in sorted({*NAMES} - loaded_first() - WITHOUT_THEIR_MODELS):
        if name.endswith("__init__.py"):
            continue
        module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
        for value in vars(module).values():
            parts = [value]
            if inspect.isclass(value):  # the __init__ of a dataclass has hints of its bases: those of the class tell
                parts += [part for key, part in vars(value).items() if key != "__init__" or not is_dataclass(value)]
            for part in parts:
                hinted = inspect.unwrap(part) if inspect.isroutine(part) else part
                if (inspect.isfunction(hinted) or inspect.isclass(hinted)) and hinted.__module__ == module.__name__:
                    try:
                        typing.get_type_hints(hinted)
                    except NameError as error:
                        wrong.append(f"{name}: {hinted.__qualname__}: {error}")
    assert not wrong


def test_every_core_dependency_is_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    modules = {"opencv-python-headless": "cv2", "pillow": "PIL", "pyyaml": "yaml"}
    used = {dotted.split(".")[0] for name in NAMES for dotted in imports(TREES[name])}
    wanted = {re.split(r"[><=\[]", line)[0] for line in project["dependencies"]}
    assert not {package for package in wanted if modules.get(package, package) not in used}


def test_the_rules_for_imports_see_a_wrong_one() -> None:
    """The checks above would pass on anything if the names did not resolve."""
    assert own_file("neural_fields.core.coords.Box") == "neural_fields/core/coords.py"
    tree = ast.parse("def f():\n    from editors.core.stack import push\nif TYPE_CHECKING:\n    import pickle\n")
    assert list(imports(tree)) == ["editors.core.stack.push", "pickle"]
    assert list(imports(tree, top_only=True)) == []


def test_annotations_are_checked_while_tests_run() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        coords.normalize_pixels(torch.zeros(5, 3), 16, 9)
    add_checks = jaxtyping.jaxtyped(typechecker=check)

    @add_checks
    def lengthen(values: jaxtyping.Float[torch.Tensor, " n"], more: int) -> jaxtyping.Float[torch.Tensor, " n"]:
        return torch.cat([values, torch.zeros(more)])

    assert len(lengthen(torch.zeros(3), 0)) == 3
    with pytest.raises(jaxtyping.TypeCheckError, match="return value"):
        lengthen(torch.zeros(3), 1)
    for kind in (int, str):  # the checks of one function are not those of its namesake

        def keep(value: object) -> object:
            return value

        keep.__annotations__.update(value=kind, **{"return": kind})
        assert add_checks(keep)(kind(5)) == kind(5)
        with pytest.raises(jaxtyping.TypeCheckError, match="parameters"):
            add_checks(keep)(5.0)
