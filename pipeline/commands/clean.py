"""pipeline clean CONFIG …: what in a folder of runs no config needs, with sizes; removes it when told."""

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import lines, page
from pipeline.commands import Parser, parse
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.runs import Run

ABOUT = """Lists the runs and pages that none of the configs needs, and what killed starts of others left, each with
its size; --remove deletes them. Runs that a process is at work on, and folders that are no runs of this program, are
never touched. Overrides, sweeps too, hold for every config."""
NAMED = re.compile(r"[a-z0-9_]+-[0-9a-f]{8}")
PAGE = re.compile(r".+-[0-9a-f]{8}")


def main(words: Sequence[str]) -> int:
    parser = Parser(prog="pipeline clean", description=ABOUT, allow_abbrev=False)
    parser.add_argument("configs", nargs="+", metavar="CONFIG | KEY=VALUE", help="configs whose runs stay")
    parser.add_argument("--root", metavar="ROOT", help="folder of runs (default: the configs')")
    parser.add_argument("--remove", action="store_true", help="delete what is listed")
    options = parse(parser, words)
    overrides = [word for word in options.configs if "=" in word]
    overrides += [] if options.root is None else [f"root={options.root}"]
    if not (paths := [word for word in options.configs if "=" not in word]):
        raise ConfigError(f"pipeline clean: no config is named; {parser.format_usage().strip()}")
    root, needed = needs(paths, overrides)
    spare = [*unneeded(root, needed)]
    show_them(root, spare)
    if options.remove:
        remove(root, [folder for folder, *_ in spare])
    elif spare:
        lines.say("nothing is removed; --remove does it")
    return 0


def needs(paths: Sequence[str], overrides: Sequence[str]) -> tuple[Path, set[Path]]:
    """The folder of runs, and the runs and pages in it that the configs need. Raises ConfigError where that cannot be
    known."""
    from pipeline import plan
    from pipeline.commands import run

    roots: set[Path] = set()
    needed: set[Path] = set()
    for path in paths:
        configs = run.load(path, overrides).values()
        stages = [stage for cfg in configs for stage in plan.plan(cfg, here=True)]
        roots |= {Path(cfg.root) for cfg in configs}
        needed |= {stage.folder.resolve() for stage in stages}
        needed |= {page.folder(Path(c.root), c.name, [s.key for s in stages]).resolve() for c in configs}
        if any(stage.provisional for stage in stages):
            packs = dict.fromkeys(stage.name for stage in stages if stage.packs and not stage.done)
            where = f"{', '.join(packs)} in {stages[0].folder.parent}"
            raise ConfigError(f"{path}: its other runs are known once the images are packed, {where}: "
                              f"`pipeline run {path} --only {' '.join(packs)}`; nothing is removed")  # fmt: skip
    if len(roots) > 1:
        raise ConfigError(f"the configs have several roots, {', '.join(map(str, sorted(roots)))}: name one by --root")
    return roots.pop(), needed


def unneeded(root: Path, needed: set[Path]) -> Iterator[tuple[Path, str, int]]:
    """(folder, what it is, bytes) of what may go. Raises ConfigError where ``root`` is no folder of runs."""
    from pipeline import runs

    folders = [p for p in sorted(root.iterdir()) if p.is_dir() and not p.is_symlink()] if root.is_dir() else []
    found = [(folder, ours(folder)) for folder in folders]
    if not any(run for _, run in found):
        raise ConfigError(f"{root}: no folder of runs of this program; nothing is removed")
    for folder, run in found:
        if run is not None and run.state != "running" and folder.resolve() not in needed:
            yield folder, "finished" if run.done else f"unfinished, {run.state}", run.bytes
    for folder in root.glob(".*.removed"):
        yield folder, "left by an earlier clean", sum(runs.sizes(folder).values())
    for folder in sorted((root / page.PAGES).glob("*")):
        if PAGE.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
            into = [not needed.isdisjoint([path, *path.parents]) for path in sources(root, folder)]
            if folder.resolve() not in needed and not (into and all(into)):
                yield folder, "page", sum(runs.sizes(folder).values())


def sources(root: Path, folder: Path) -> list[Path]:
    """What a page leads to, by the links in it and by the results that its report shows."""
    from pipeline import report

    links = [link.resolve() for link in folder.rglob("*") if link.is_symlink()]
    shown = (report.written(folder) or {}).get("stages", [])
    return links + [(root / Path(stage["folder"]).name).resolve() for stage in shown]


def ours(folder: Path) -> "Run | None":
    """The run that a folder is, by its name and by what is in it."""
    from pipeline import runs

    return runs.read_one(folder) if NAMED.fullmatch(folder.name) else None


def show_them(root: Path, spare: Sequence[tuple[Path, str, int]]) -> None:
    from pipeline import show

    if not spare:
        lines.say(f"{root}: everything is needed")
        return
    rows = [[folder.relative_to(root), what, show.Bytes(size)] for folder, what, size in spare]
    total = f"{lines.size(sum(size for _, _, size in spare))} in all"
    show.table(f"{root}: needed by no config named here", ["folder", "what", "size"], rows, total, dense=True)


def remove(root: Path, folders: Sequence[Path]) -> None:
    """Deletes folders, but for those that a process has come to work on meanwhile: each is renamed first, so that what
    is there under its own name is always whole."""
    from pipeline import artifact

    count = 0
    for folder in folders:
        if artifact.locked(folder):
            lines.say(f"{folder} stays: a process is at work on it")
            continue
        if not folder.name.startswith("."):
            folder = folder.rename(folder.with_name(f".{folder.name}.removed"))
        shutil.rmtree(folder)
        count += 1
    lines.say(f"{count} folders are removed from {root}")
