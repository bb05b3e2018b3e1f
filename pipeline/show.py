"""Tables in the terminal: what there is to do, and what came out."""

from pathlib import Path

from pipeline import artifact


def results(folders: list[Path]) -> None:
    for folder in folders:
        record = artifact.read(folder)
        if record:
            print(folder, record["metrics"])


def show(runs: str) -> None:
    results(sorted(p.parent for p in Path(runs).glob(f"*/{artifact.NAME}")))


def dry_run(planned, chosen) -> None:
    for p in chosen:
        print(p.name, p.kind, p.folder, "done" if p.done else "to do", p.place)
