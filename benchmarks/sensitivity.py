"""Measures the effect of each setting of the heuristics: changes it by 20 % down and up, and reruns small jobs.

    python benchmarks/sensitivity.py [--only TEXT] [--probes NAME ...] [--jobs 2] [--budget SECONDS] [--all]
                                     [--json FILE]

Settings are the fields of the classes of which a module holds an instance named DEFAULTS. The jobs (`probes.py`) run on
synthetic clips with known truth and on two clips of ../shared/data beside the checkout. A job is run again only with
the fields that it reads, which is found out by recording what it reads. Whole numbers move by at least 1; a value below
1 that would pass 1 moves a fifth of its way to 1 instead, and all numbers of a tuple move together. Left out are texts,
colors, truth values, and the classes that are limits against hostile input.

The table is sorted by effect: the largest change of a figure, in units of a notable change (0.1 dB, 0.005 of IoU or of
a share, 0.05 pixels, see `NOTABLE`); rows below 1 are shown with --all. Lists below name the fields that change figures
by less, those that change none by more than 1e-9, those that no job reads, and those whose job fails when they are
moved. A stopped run continues from its JSON file: known figures are not measured again, unless the figures with the
unchanged settings are different now (a probe that is measured completely is not run: begin a new file after a change of
the code).
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import multiprocessing
import os
import pkgutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: the workers share the cores
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

from common import machine, missing, parser, table

import editors
import neural_fields

SHARE = 0.2  # by which a setting is moved
NOTABLE = {  # the least change worth noticing of a figure, by its unit
    "IoU": 0.005, "F": 0.005, "dB": 0.1, "px": 0.05, "share": 0.005, "level": 1.0, "levels": 0.5, "ratio": 0.05,
    "cuts": 1.0, "charts": 1.0, "reasons": 1.0, "texels": 1.0, "layers": 1.0,
}  # fmt: skip
NOTHING = 1e-9
PATIENCE = 60.0  # seconds beyond ten times the usual after which a job is given up
COLUMNS = ("settings", "field", "value", "probe", "figure", "base", "-20 %", "+20 %", "change", "effect")

Figures = dict[str, float]


# --- settings -------------------------------------------------------------------------------------------------------


@dataclass
class Settings:
    """Holds all instances of one kind of settings; they differ only where a class holds two of another class."""

    name: str  # of the class; with a field after it, for parts of it that have no module of their own
    instances: list[Any] = field(default_factory=list)

    def values(self) -> dict[str, Any]:
        """Returns the value of each field that can be moved."""
        found = {item.name: vars(self.instances[0])[item.name] for item in dataclasses.fields(self.instances[0])}
        return {name: value for name, value in found.items() if moved_values(value, 1)}


def find_settings() -> dict[str, Settings]:
    """Finds the settings of all modules, by name."""
    owners: dict[type, Any] = {}
    for package in (neural_fields, editors):
        for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            try:
                module = importlib.import_module(info.name)
            except ImportError as problem:
                print(f"{info.name}: left out ({problem})", file=sys.stderr)
                continue
            defaults = vars(module).get("DEFAULTS")
            if defaults is not None and type(defaults).__module__ == info.name:
                owners[type(defaults)] = defaults
    found: dict[str, Settings] = {}
    for owner, defaults in owners.items():
        _add_instance(found, owner.__name__, defaults, owners)
    return {name: found[name] for name in sorted(found) if not name.endswith("Limits")}


def _add_instance(found: dict[str, Settings], name: str, instance: Any, owners: dict[type, Any]) -> None:
    """Adds an instance, and those that its fields hold."""
    settings = found.setdefault(name, Settings(name))
    if any(instance is other for other in settings.instances):
        return
    settings.instances.append(instance)
    for item in dataclasses.fields(instance):
        value = vars(instance)[item.name]
        if dataclasses.is_dataclass(value):
            part = type(value).__name__ if type(value) in owners else f"{name}.{item.name}"
            _add_instance(found, part, value, owners)


def moved_values(value: Any, sign: int) -> list[Any]:
    """Returns the values to which a value may be moved, the first choice first; none if it is not a number."""
    if isinstance(value, bool):
        return []
    if isinstance(value, int):
        step = sign * max(1, round(SHARE * abs(value)))
        return [value + step, value + step + sign]  # windows must be odd: the next one is tried if the first fails
    if isinstance(value, float):
        moved = value + sign * SHARE * abs(value)
        if 0 < value < 1 < moved:
            moved = value + SHARE * (1 - value)
        return [moved] if moved != value else []
    if isinstance(value, tuple) and value and all(isinstance(item, int | float) for item in value):
        each = [moved_values(item, sign) for item in value]
        return [tuple(choices[0] for choices in each)] if all(each) else []
    return []


@contextmanager
def changed(settings: Settings, name: str, sign: int, choice: int) -> Iterator[Any]:
    """Moves a field of every instance from its own value, inside the block.

    Args:
        settings: the instances.
        name: the field.
        sign: 1 or -1.
        choice: index of the choice of `moved_values`.

    Returns:
        A context manager that gives the new value of the first instance.
    """
    before = [vars(instance)[name] for instance in settings.instances]
    after = []
    for value in before:
        choices = moved_values(value, sign)
        after.append(choices[min(choice, len(choices) - 1)])
    for instance, value in zip(settings.instances, after, strict=True):
        dataclasses.replace(instance, **{name: value})  # a class that checks its values refuses here
    try:
        for instance, value in zip(settings.instances, after, strict=True):
            object.__setattr__(instance, name, value)
        yield after[0]
    finally:
        for instance, value in zip(settings.instances, before, strict=True):
            object.__setattr__(instance, name, value)


@contextmanager
def recording(settings: Iterable[Settings]) -> Iterator[set[tuple[type, str]]]:
    """Records which fields of which classes are read."""
    read: set[tuple[type, str]] = set()
    classes = {type(instance) for each in settings for instance in each.instances}

    def get(self: Any, name: str) -> Any:
        read.add((type(self), name))
        return object.__getattribute__(self, name)

    for owner in classes:
        setattr(owner, "__getattribute__", get)  # noqa: B010
    try:
        yield read
    finally:
        for owner in classes:
            delattr(owner, "__getattribute__")


# --- in a process of its own ----------------------------------------------------------------------------------------


class Worker:
    """Holds what a process keeps: the settings, and the one job that it runs."""

    def __init__(self, probe: str) -> None:
        import cv2
        import torch

        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        from probes import PROBES

        self.settings = find_settings()
        self.folder = tempfile.TemporaryDirectory()
        self.probe = PROBES[probe]
        self.job = self.probe.prepare(Path(self.folder.name))


_worker: Worker | None = None


def begin(probe: str) -> dict[str, Any]:
    """Prepares a job and runs it twice with the settings as they are: figures, seconds, and the fields it reads."""
    global _worker
    _worker = Worker(probe)
    with recording(_worker.settings.values()) as read:
        first = _worker.job()
    start = time.monotonic()
    figures = _worker.job()
    seconds = time.monotonic() - start
    fields = []
    for name, settings in _worker.settings.items():
        owner = type(settings.instances[0])
        if not _worker.probe.classes or name.partition(".")[0] in _worker.probe.classes:
            fields += [f"{name}.{item}" for item in settings.values() if (owner, item) in read]
    return {"figures": figures, "seconds": seconds, "read": fields, "steady": first == figures}


def measure(name: str, sign: int) -> dict[str, Any]:
    """Runs the job with one field moved."""
    assert _worker is not None
    owner, _, item = name.rpartition(".")
    settings = _worker.settings[owner]
    error = ""
    for choice in range(len(moved_values(settings.values()[item], sign))):
        try:
            with changed(settings, item, sign, choice) as value:
                return {"value": value, "figures": _worker.job()}
        except Exception as problem:  # whatever a job says to a value that it cannot take
            error = error or f"{type(problem).__name__}: {str(problem).strip()[-120:]}"
    return {"error": error}


# --- the whole ------------------------------------------------------------------------------------------------------


class Study:
    """Holds what was measured: `bases` by probe, and `moves` by "probe class.field sign"."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.only: str = chosen.only
        self.file: Path | None = chosen.json
        self.end = time.monotonic() + chosen.budget
        self.bases: dict[str, dict[str, Any]] = {}
        self.moves: dict[str, dict[str, Any]] = {}
        self.left = 0  # moves that there was no time for
        self.seconds_left = 0.0
        self.not_begun: list[str] = []
        self._lock = threading.Lock()
        self._saved = time.monotonic()
        if self.file and self.file.is_file():
            known = json.loads(self.file.read_text())
            self.bases, self.moves = known["bases"], known["moves"]

    def run_probe(self, probe: str) -> None:
        """Measures everything that is not known yet with one probe."""
        known = self.bases.get(probe)
        if known and not self._wanted(probe, known):
            return
        if time.monotonic() > self.end:
            self.not_begun.append(probe)
            if known:
                self._leave(self._wanted(probe, known), known)
            return
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            base = pool.submit(begin, probe).result()
            with self._lock:
                if known and known["figures"] != base["figures"]:
                    print(f"{probe}: its figures have changed, all is measured again", flush=True)
                    self.moves = {key: move for key, move in self.moves.items() if not key.startswith(f"{probe} ")}
                self.bases[probe] = base
            wanted = self._wanted(probe, base)
            steady = "" if base["steady"] else ", NOT THE SAME TWICE"
            print(f"{probe}: {len(wanted)} moves of {base['seconds']:.1f} s each{steady}", flush=True)
            for number, key in enumerate(wanted):
                if time.monotonic() > self.end:
                    self._leave(wanted[number:], base)
                    break
                _, name, sign = key.split(" ")
                try:
                    move = pool.submit(measure, name, int(sign)).result(PATIENCE + 10 * base["seconds"])
                except (TimeoutError, BrokenProcessPool) as problem:
                    move = {"error": f"{type(problem).__name__}: it takes too long, or ends the process"}
                    _kill(pool)
                    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
                    pool.submit(begin, probe).result()
                with self._lock:
                    self.moves[key] = move
                    if time.monotonic() > self._saved + 10:
                        self.save()
        except Exception as problem:
            print(f"{probe}: left out, it fails: {type(problem).__name__}: {problem}", file=sys.stderr, flush=True)
        finally:
            pool.shutdown()

    def _wanted(self, probe: str, base: dict[str, Any]) -> list[str]:
        """The moves of a probe that are asked for and not known."""
        keys = [f"{probe} {name} {sign}" for name in base["read"] if self.only in name for sign in (-1, 1)]
        return [key for key in keys if key not in self.moves]

    def unfinished(self) -> set[str]:
        """Returns the fields that are not measured completely by a probe that reads them."""
        return {key.split(" ")[1] for probe, base in self.bases.items() for key in self._wanted(probe, base)}

    def _leave(self, wanted: Sequence[str], base: dict[str, Any]) -> None:
        with self._lock:
            self.left += len(wanted)
            self.seconds_left += len(wanted) * base["seconds"]

    def save(self) -> None:
        """Writes what is known, so that a later run continues from there."""
        self._saved = time.monotonic()
        if self.file:
            part = self.file.with_suffix(".part")
            part.write_text(json.dumps({**machine(), "bases": self.bases, "moves": self.moves}))
            part.replace(self.file)

    def rows(self, values: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yields a row for each field and probe: the figure that changes most."""
        for probe, base in self.bases.items():
            for name in base["read"]:
                moves = [self.moves.get(f"{probe} {name} {sign}") for sign in (-1, 1)]
                if self.only not in name or name not in values or not any(moves):
                    continue
                owner, _, item = name.rpartition(".")
                row: dict[str, Any] = {"settings": owner, "field": item, "value": str(values[name]), "probe": probe}
                row |= {"name": name, "effect": -1.0, "change": 0.0}
                row["errors"] = [move["error"] for move in moves if move and "error" in move]
                for figure, value in base["figures"].items():
                    found = [move["figures"].get(figure) if move and "figures" in move else None for move in moves]
                    change = max((abs(other - value) for other in found if other is not None), default=0.0)
                    effect = change / NOTABLE[figure.split(" ")[-1]]
                    if effect > row["effect"]:
                        cells = ["fails" if m and "error" in m else v for m, v in zip(moves, found, strict=True)]
                        row |= {"figure": figure, "base": value, "-20 %": cells[0], "+20 %": cells[1]}
                        row |= {"change": change, "effect": effect}
                yield row


def _kill(pool: ProcessPoolExecutor) -> None:
    """Ends the process of a pool that does not answer."""
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(wait=False)


def print_names(title: str, names: Iterable[str]) -> None:
    """Prints a list of fields, grouped by class."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        owner, _, item = name.rpartition(".")
        groups.setdefault(owner, []).append(item)
    print(f"\n{title} ({sum(map(len, groups.values()))}):")
    for owner, items in groups.items():
        print(f"  {owner}: {', '.join(items)}")


def main() -> None:
    """Measures, prints the table and the lists, and writes JSON."""
    options = parser(__doc__)
    options.add_argument("--only", default="", help="a part of the names of fields, as in MaskRefinementSettings.votes")
    options.add_argument("--probes", nargs="+", help="only these jobs (a wrong name lists them)")
    options.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    options.add_argument("--budget", type=float, default=float("inf"), help="seconds after which nothing is begun")
    options.add_argument("--all", action="store_true", help="also the rows whose effect is below 1")
    chosen = options.parse_args()

    from probes import PROBES

    probes = chosen.probes or list(PROBES)
    unknown = [name for name in probes if name not in PROBES]
    if unknown:
        options.error(f"no probe {', '.join(unknown)}; there are {', '.join(PROBES)}")
    gone = missing({clip for name in probes for clip in PROBES[name].clips})
    probes = [name for name in probes if not set(PROBES[name].clips) & set(gone)]
    study = Study(chosen)
    with ThreadPoolExecutor(chosen.jobs) as threads:
        for done in [threads.submit(study.run_probe, name) for name in probes]:
            done.result()
    study.save()

    settings = find_settings()
    values = {f"{name}.{item}": value for name, each in settings.items() for item, value in each.values().items()}
    wanted = {name for name in values if chosen.only in name}
    rows = sorted(study.rows(values), key=lambda row: -row["effect"])
    print(*table(COLUMNS, (row for row in rows if row["effect"] >= 1 or chosen.all)), sep="\n")
    most: dict[str, float] = {}
    failed: dict[str, str] = {}
    for row in rows:
        most[row["name"]] = max(row["change"], most.get(row["name"], 0.0))
        if row["errors"]:
            failed[row["name"]] = f"{row['probe']}: {row['errors'][0]}"
    matters = {row["name"] for row in rows if row["effect"] >= 1}
    open_yet = study.unfinished() & values.keys()
    still = {name for name, change in most.items() if change <= NOTHING and name not in failed} - open_yet
    print_names(
        "little: figures change by less than is worth noticing", set(most) - matters - still - set(failed) - open_yet
    )
    print_names("moves nothing", still)
    print_names("not measured to the end, nothing that matters so far", open_yet - matters - set(failed))
    exercised = {name for base in study.bases.values() for name in base["read"]}
    print_names("not exercised: no probe that was run reads it", wanted - exercised)
    print(f"\nfails when it is moved ({len(failed)}):")
    for name, why in sorted(failed.items()):
        print(f"  {name}: {why}")
    total = sum(base["seconds"] * 2 * len(base["read"]) for base in study.bases.values())
    print(f"\n{len(study.moves)} moves known; all moves of these probes take {total:.0f} s, in {chosen.jobs} jobs "
          f"{total / chosen.jobs:.0f} s")  # fmt: skip
    if study.left or study.not_begun:
        print(f"no time was left for {study.left} moves (about {study.seconds_left:.0f} s) and for the probes "
              f"{', '.join(study.not_begun) or '(none)'}; the same command with --json goes on")  # fmt: skip


if __name__ == "__main__":
    main()
