"""Finds the splits and classes of a folder of images, and what was left out of it and why.

Three layouts are known, each with or without train/ beside val/ or test/: class folders (torchvision's ImageFolder);
a flat folder; a split whose classes stand in a table (Tiny-ImageNet's val_annotations.txt, a list of ImageNet's
validation images). A folder that can be read in two ways is refused; the error names both, and the setting that
decides.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal

from pipeline.data import tables, tree
from pipeline.data.tree import File, Tree
from pipeline.errors import DataError
from pipeline.lines import legible
from pipeline.settings.data import Splits

TRAIN = ("train", "training")
HELD = ("test", "testing", "val", "valid", "validation")
"""Names of folders that are test splits. Where there are several, the first whose classes are those of train/ is
taken."""
STRAY = 0.1
"""Images beside class folders are left out, and named, where they are at most this share of all."""
NAMED = 3
"""Names that a line lists for each reason."""


class Ambiguous(DataError):
    """A layout that can be read in two ways."""


@dataclass(frozen=True)
class Entry:
    """An image: its file, its split (None: the folder has no splits) and its class's index (-1: none)."""

    file: File
    split: str | None
    label: int


@dataclass
class Layout:
    """What a folder holds. ``classes``: class names by index, None where no image has a class. ``parts``: the folder
    of each split, and where its labels come from. ``notes``: further lines for the user."""

    entries: list[Entry]
    classes: list[str] | None
    parts: dict[str, str]
    left_out: dict[str, list[str]]
    notes: list[str] = field(default_factory=list)

    def facts(self) -> Iterable[tuple[Any, ...]]:
        """Everything that packing depends on, a tuple for each image."""
        for e in self.entries:
            label = self.classes[e.label] if self.classes and e.label >= 0 else ""
            yield e.file.name, e.split or "", label, e.file.size, e.file.mtime


@dataclass
class Half:
    """The images below one folder, which may become a split: those of its subfolders by name, and those directly in
    it."""

    where: tuple[str, ...]
    groups: dict[str, list[File]]
    loose: list[File]

    @property
    def name(self) -> str:
        return "/".join(self.where) + "/" if self.where else "the folder"

    @property
    def files(self) -> list[File]:
        return sorted([*self.loose, *(file for files in self.groups.values() for file in files)])

    def by_folder(self) -> dict[File, str]:
        """The subfolder of each image; "" for those directly in this folder."""
        return {f: group for group, files in self.groups.items() for f in files} | dict.fromkeys(self.loose, "")

    def below(self, group: str) -> set[str]:
        """The folders inside one of the subfolders; "" stands for images directly in it."""
        at = len(self.where)
        return {f.parts[at + 1] if len(f.parts) > at + 2 else "" for f in self.groups[group]}


def half(images: Iterable[File], where: tuple[str, ...] = ()) -> Half:
    """The images below ``where``, grouped by the next folder."""
    at = len(where)
    made = Half(where, {}, [])
    for file in images:
        if file.parts[:at] != where:
            continue
        if len(file.parts) == at + 1:
            made.loose.append(file)
        else:
            made.groups.setdefault(file.parts[at], []).append(file)
    return made


def read(
    path: Path,
    root: Path | None = None,
    splits: Literal["auto", "none"] | Splits = "auto",
    classes: Literal["auto", "folders", "none"] = "auto",
) -> Layout:
    """Reads a folder's layout. ``root``: where runs are kept, whose images are left out; ``splits``, ``classes``: as
    in the settings of packing. Raises DataError where it holds no image, Ambiguous where it can be read in two
    ways."""
    folder = tree.walk(path, root)
    if not folder.images:
        text = sentence(folder.left_out)
        raise DataError(f"folder:{path}: no images in it" + (f"; {text}" if text else ""))
    train, held, explicit = divide(folder, splits)
    names = [] if classes == "none" else class_names(folder, train, classes)
    made = Layout([], None, {}, folder.left_out)
    test, labels = held_out(folder, made, held, names, classes, explicit)
    if test and classes != "none":
        extra = sorted(set(labels.values()) - set(names) - {""})
        if extra and names:
            count = sum(label in extra for label in labels.values())
            made.notes.append(
                f"{count:,} of {len(labels):,} images of {test.name} are of {plural(len(extra), 'class')} not in "
                f"{train.name}: {some(extra)}"
            )
        names = sorted({*names, *extra})
    number = {name: k for k, name in enumerate(names)}
    for group, files in train.groups.items():
        made.entries += [Entry(f, "train" if test else None, number.get(group, -1)) for f in files]
    if train.loose and any(g in number for g in train.groups):
        leave(made, f"beside the class folders of {train.name}", train.loose)
    else:
        made.entries += [Entry(f, "train" if test else None, -1) for f in train.loose]
    made.entries += [Entry(f, "test", number.get(label, -1)) for f, label in labels.items()]
    made.entries.sort(key=lambda e: (e.split == "test", e.file.parts))
    made.classes = names or None
    if train.where:
        made.parts = {"train": train.name} | ({"test": made.parts["test"]} if test else {})
    if lone := bare(folder, [train, *held]):
        made.left_out["folders without images"] = lone
    return made


def leave(made: Layout, reason: str, files: Iterable[File]) -> None:
    made.left_out.setdefault(reason, []).extend(f.name for f in files)


# ------------------------------------------------------------------------------------------------------------- splits
def divide(folder: Tree, splits: str | Splits) -> tuple[Half, list[Half], bool]:
    """The training half, the candidates for the test half with the best first, and whether the settings name it."""
    top = half(folder.images)
    if isinstance(splits, Splits):
        train, test = (
            None if name is None else part(folder, top, field, name)
            for field, name in (("train", splits.train), ("test", splits.test))
        )
        assert train is not None
        if test and (test.where[: len(train.where)] == train.where or train.where[: len(test.where)] == test.where):
            raise DataError(f"folder:{folder.path}: splits: {train.name} and {test.name} hold the same images")
        others = {f.name: f for f in folder.images} if train.where else {}
        for candidate in (train, test):
            for f in candidate.files if candidate else ():
                others.pop(f.name, None)
        if others:
            folder.left_out["in no folder that splits names"] = list(others)
        return train, [test] if test else [], True
    trains = [n for n in top.groups if n.lower() in TRAIN]
    helds = sorted((n for n in top.groups if n.lower() in HELD), key=lambda n: (HELD.index(n.lower()), n))
    others = [n for n in top.groups if n not in trains + helds]
    if splits == "none":
        return top, [], True
    every = f"{plural(len(top.groups), 'class')} {some(top.groups)}"
    if len(trains) > 1:
        raise ambiguous(folder, f"{every}", f"splits, of which {some(trains)} could be the training split", trains[0])
    if not trains:
        if helds and not others:
            raise ambiguous(folder, every, f"splits {some(helds)} without a training split", helds[-1])
        return top, [], False
    train, test = trains[0], helds[0] if helds else None
    if others:
        if helds or top.below(train) != {""}:
            read_as = f"splits {some([train, *helds])}, with {some(others)} left out"
            raise ambiguous(folder, every, read_as, train, test)
        return top, [], False
    if top.loose:
        if len(top.loose) > STRAY * len(folder.images):
            raise ambiguous(folder, f"{every} and images without one", f"splits {some([train, *helds])}", train, test)
        folder.left_out["beside the folders of the splits"] = [f.name for f in top.loose]
    return half(folder.images, (train,)), [half(folder.images, (n,)) for n in helds], False


def part(folder: Tree, top: Half, which: str, name: str) -> Half:
    """The images of a folder that the settings name as a split. Raises DataError where it has none."""
    made = half(folder.images, PurePath(name).parts)
    if not made.files:
        raise DataError(
            f"folder:{folder.path}: splits.{which}: no images in {name}/; expected one of "
            f"{some(top.groups) or 'none'}"
        )
    return made


def ambiguous(folder: Tree, reading: str, other: str, train: str, test: str | None = None) -> Ambiguous:
    setting = f"{{train: {train}, test: {test}}}" if test else f"{{train: {train}}}"
    return Ambiguous(
        f"folder:{folder.path} can be read in two ways: as {reading}, which splits: none says, or as {other}, which "
        f"splits: {setting} says; set one of them in the stage that packs"
    )


# ------------------------------------------------------------------------------------------------------------ classes
def class_names(folder: Tree, train: Half, classes: str) -> list[str]:
    """The class folders of the training half, sorted; none where it is flat. Raises Ambiguous where the images beside
    them are too many to be left out (STRAY), or where another level of folders could be the classes."""
    groups, total = train.groups, len(train.files)
    below = {name: train.below(name) - {""} for name in groups}
    if classes == "folders" or not groups:
        return sorted(groups)
    if len(train.loose) > STRAY * total:
        raise Ambiguous(
            f"folder:{folder.path} can be read in two ways: {plural(len(train.loose), 'image')} in {train.name} and "
            f"{total - len(train.loose)} in folders ({some(groups)}): classes: folders takes the folders for classes "
            f"and leaves the others out, classes: none takes all as unlabelled"
        )
    shared = set.intersection(*below.values()) if len(groups) > 1 else below[next(iter(groups))]
    if len(shared) > 1 and (len(groups) > 1 or train.below(next(iter(groups))) == shared):
        inner = f"{some(sorted(shared))} below {'each' if len(groups) > 1 else 'it'}"
        inside = folder.path / "/".join((*train.where, next(iter(groups))))
        away = "" if len(groups) > 1 else f", or name the folder {inside}"
        raise Ambiguous(
            f"folder:{folder.path} can be read in two ways: {some(groups)} could be the classes, or {inner}; "
            f"classes: folders takes the first, classes: none takes all as unlabelled{away}"
        )
    return sorted(groups)


def held_out(
    folder: Tree, made: Layout, held: Sequence[Half], names: Sequence[str], classes: str, explicit: bool
) -> tuple[Half | None, dict[File, str]]:
    """The test half, and the class of each of its images. It is the first of ``held`` that has images of training
    classes; where the training half has no classes, or the settings name the test half, the first. None where no
    candidate has such images."""
    test, labels = None, dict[File, str]()
    for candidate in held:
        labels, how = labelled(folder, candidate, names) if names else (dict.fromkeys(candidate.files, ""), "")
        if names and set(labels.values()).isdisjoint(names) and not explicit:
            continue
        test = candidate
        made.parts["test"] = candidate.name + (f" with the classes of {how}" if how else "")
        break
    for candidate in held:
        if candidate is not test:
            why = f"{test.name} is the test split" if test else "no training class, by folder or table"
            leave(made, f"in {candidate.name}: {why}", candidate.files)
    if test is None:
        return None, {}
    strays = [f for f in test.loose if test.groups and labels[f] == ""] if names else []
    if len(strays) > STRAY * len(test.files):
        raise Ambiguous(
            f"folder:{folder.path}: {plural(len(strays), 'image')} in {test.name} beside class folders: move them, or "
            f"set classes: none"
        )
    if strays:
        leave(made, f"beside the class folders of {test.name}", strays)
        labels = {f: label for f, label in labels.items() if f not in set(strays)}
    if not names and classes != "none":
        labels = test.by_folder()
    return test, labels


def labelled(folder: Tree, candidate: Half, names: Sequence[str]) -> tuple[dict[File, str], str]:
    """The class of each image of a half ("": none), and the name of the table that it was taken from ("": the class
    is the image's folder). A table is used where no folder has the name of a training class."""
    if candidate.groups.keys() & set(names):
        return candidate.by_folder(), ""
    stem = candidate.where[-1].lower() if candidate.where else ""
    for table in folder.tables:
        inside = table.parts[:-1] == candidate.where
        if inside or (len(table.parts) == 1 and stem and stem in table.parts[-1].lower()):
            labels = tables.classes(Path(table.path), candidate.files, names)
            if labels:
                for reason in (".txt files", ".csv files", ".tsv files"):
                    rest = [n for n in folder.left_out.pop(reason, []) if n != table.name]
                    folder.left_out |= {reason: rest} if rest else {}
                return labels, table.name
    return candidate.by_folder(), ""


def bare(folder: Tree, halves: Iterable[Half]) -> list[str]:
    """Folders without an image, at the level of classes or splits."""
    places = {(), *(candidate.where for candidate in halves)}
    holding = {f.parts[: len(at) + 1] for f in folder.images for at in places}
    return ["/".join(p) for p in sorted(folder.folders) if p and p[:-1] in places and p not in holding]


# -------------------------------------------------------------------------------------------------------------- words
def plural(count: int, what: str) -> str:
    return f"{count:,} {what if count == 1 else what + ('es' if what.endswith('s') else 's')}"


def shown(name: str) -> str:
    """A name that any terminal can print: bytes that are not UTF-8 and line breaks are escaped."""
    text = legible(name)
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def some(names: Iterable[str], most: int = 8) -> str:
    every = [shown(n) for n in names]
    return ", ".join(every[:most]) + (f" and {len(every) - most:,} more" if len(every) > most else "")


def sentence(left_out: dict[str, list[str]]) -> str:
    """A sentence that counts and names what was left out, by reason; empty where nothing was."""
    reasons = []
    for reason, names in left_out.items():
        first = some(names[:NAMED], NAMED) + (", …" if len(names) > NAMED else "")
        reasons.append(f"{reason}: {len(names):,} ({first})")
    return "left out: " + "; ".join(reasons) if reasons else ""
