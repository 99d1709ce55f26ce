"""Hooks of mkdocs: pages of the site that are not files in docs/, links between all of them, and checks of the result.

mkdocs calls the functions `on_...` while it builds the site (`make docs`). The pages are the README and the other pages
of the checkout, the example scripts, and the API reference, which is collected from the program itself: a new editor,
export, config class or loss appears in it by itself.
"""

import logging
import os
import pkgutil
import re
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

import editors
import neural_fields
from editors.editors_table import EDITORS, SCENE_EDITORS
from neural_fields.cli.export import EXPORTS
from neural_fields.planar.config import PlanarConfig
from neural_fields.volume.config import VolumeConfig

ROOT = Path(__file__).resolve().parents[1]
LOG = logging.getLogger("mkdocs.site_pages")
CHECKOUT_PAGES = {  # page of the site: file of the checkout
    "index.md": "README.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "examples/toy_diffusion.md": "examples/toy_diffusion/README.md",
}
COPIED_FILES = {"LICENSE.txt": "LICENSE", "examples/samples.png": "examples/toy_diffusion/samples.png"}
EXAMPLES = {f"examples/{path.stem}.md": f"examples/{path.name}" for path in sorted((ROOT / "examples").glob("*.py"))}
SITE_URIS = {file: uri for uri, file in (CHECKOUT_PAGES | COPIED_FILES | EXAMPLES).items()}
LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|link)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^\"'\s>]+", re.I
)


# --- the API reference ----------------------------------------------------------------------------------------------


def describe(paths: Iterable[str], level: int = 2) -> str:
    """Returns the directives that document the objects of these dotted paths, one below the other."""
    return "\n\n".join(f"::: {path}\n    options:\n      heading_level: {level}" for path in paths)


def list_modules(package: str) -> list[str]:
    """Lists the public modules of a package, without those of loops that numba compiles: they are parts of others."""
    found = pkgutil.iter_modules(import_module(package).__path__)
    names = [f"{package}.{module.name}" for module in found if not module.name.startswith("_") and not module.ispkg]
    return [name for name in names if not _holds_loops(name)]


def _holds_loops(name: str) -> bool:
    compiler = getattr(import_module(name), "compile_loop", None)
    return compiler is not None and compiler.__module__ != name


def iterate_config_classes(kind: Any) -> Iterator[type]:
    """Yields the config classes that a config is made of, in the order of its fields, itself first."""
    if is_dataclass(kind) and isinstance(kind, type):
        yield kind
        for field in get_type_hints(kind).values():
            yield from iterate_config_classes(field)
    else:
        for part in get_args(kind):
            yield from iterate_config_classes(part)


def list_config_classes(root: type) -> list[str]:
    """Lists the dotted paths of a config's classes, without repetition."""
    return list(dict.fromkeys(f"{kind.__module__}.{kind.__qualname__}" for kind in iterate_config_classes(root)))


def make_reference_pages() -> dict[str, str]:
    """Makes the text of each page of the API reference.

    Returns:
        Markdown by the page's place in the site.
    """
    kinds = [*EDITORS.values(), *SCENE_EDITORS.values()]
    with_model = [path for path in kinds if path.startswith("editors.diffusion.")]
    of_scenes = [path for path in kinds if path.startswith("editors.volume.")]
    plain = [path for path in kinds if path not in (*with_model, *of_scenes)]
    parts = [*list_modules("neural_fields.planar.mappings"), *list_modules("neural_fields.planar.appearance")]
    scene_losses = ("loss", "loss_table", "background_losses", "human_losses")
    losses = [*list_modules("neural_fields.planar.losses"), *(f"neural_fields.volume.{name}" for name in scene_losses)]
    networks = list_modules("neural_fields.nn")
    modules = {*parts, *losses, *networks}
    pages = {
        "neural_fields": ("neural_fields", "Train, render and measure.", _public_names(neural_fields)),
        "editors": (
            "editors",
            "Edit a run, measure edits, watch pictures.",
            [
                *_public_names(editors),
                "editors.evaluate_edit.measure_edits",
                "editors.evaluation_options.EditEvalOptions",
                "editors.live.watch.watch_pictures",
                "editors.live.options.WatchOptions",
            ],
        ),
        "editor_contract": (
            "Writing an editor",
            "What an editor is, what it gets, and what it returns. [Contributing](../CONTRIBUTING.md#add-an-editor) has"
            " one in ten lines.",
            ["editors.core.editor", "editors.core.source"],
        ),
        "editors_plain": ("Editors without a model", "Each field is a flag of the command.", plain),
        "editors_diffusion": (
            "Diffusion editors",
            "Each field is a flag of the command. The first classes are bases: the others have their fields too.",
            [
                "editors.diffusion.backend.settings.DiffusionEditor",
                "editors.diffusion.common.region.RegionEditor",
                "editors.diffusion.common.keyframes.KeyframeEditor",
                "editors.diffusion.methods.pnp.FeatureInjectionEditor",
                *with_model,
            ],
        ),
        "editors_scene": ("Editors of 3D scenes", "Each field is a flag of the command.", of_scenes),
        "exporters": (
            "Exporters",
            "Each field is a flag of `unwrap export RUN WHAT`.",
            ["neural_fields.export.base", "neural_fields.export.options", *EXPORTS.values()],
        ),
        "config": (
            "Config of planar presets",
            "What a YAML file in `configs/` may say. Each value is a dotted flag of `unwrap train`. The settings of the"
            " [parts](parts.md) and the weights of the [losses](losses.md) are beside their code.",
            list_config_classes(PlanarConfig),
        ),
        "config_volume": (
            "Config of 3D presets",
            "What a YAML file of a 3D preset may say. Each value is a dotted flag of `unwrap train`. The weights of the"
            " [losses](losses.md) are beside their code.",
            list_config_classes(VolumeConfig),
        ),
        "encodings": ("Encodings and networks", "The building blocks of models.", networks),
        "parts": ("Mappings, textures, opacities, gains", "The parts of a planar model.", parts),
        "losses": ("Losses", "The terms of the objective.", losses),
    }
    texts = {}
    for name, (title, lead, paths) in pages.items():
        once = [path for path in paths if path.rpartition(".")[0] not in modules]  # the page of its module has it
        texts[f"api/{name}.md"] = f"# {title}\n\n{lead}\n\n{describe(once)}\n"
    lines = [f"- [{title}]({name}.md)" for name, (title, _, _) in pages.items()]
    intro = "# API reference\n\nMade from the program's own docstrings. [Python](../python.md) is the introduction.\n\n"
    return {"api/index.md": intro + "\n".join(lines) + "\n", **texts}


def _public_names(package: Any) -> list[str]:
    """Lists what a package exports, functions first."""
    return [f"{package.__name__}.{name}" for name in sorted(package.__all__, key=lambda name: name[0].isupper())]


# --- what mkdocs calls ----------------------------------------------------------------------------------------------


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Makes anchors as GitHub does, so that a link to a heading works in both places."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in docs/."""
    for uri, name in CHECKOUT_PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text(encoding="utf-8")))
    for uri, name in COPIED_FILES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name), inclusion=InclusionLevel.INCLUDED))
    for uri, name in EXAMPLES.items():
        code = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, uri, content=f"# {Path(name).name}\n\n```python\n{code}```\n"))
    for uri, text in make_reference_pages().items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links between files of the checkout to their places in the site."""
    uri = page.file.src_uri
    if uri.startswith("api/"):
        return markdown
    folder = Path(CHECKOUT_PAGES.get(uri, f"docs/{uri}")).parent

    def lead(match: re.Match[str]) -> str:
        target, hash_sign, anchor = match[1].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        name = os.path.normpath(folder / target).replace(os.sep, "/")
        found = SITE_URIS.get(name, name.removeprefix("docs/"))
        return f"]({os.path.relpath(found, Path(uri).parent).replace(os.sep, '/')}{hash_sign}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", lead, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Reports what a page would load from another computer: the site has to work without a network."""
    for found in LOADED.findall(output):
        LOG.warning("%s loads something from elsewhere: %s", page.file.src_uri, found)
    return output
