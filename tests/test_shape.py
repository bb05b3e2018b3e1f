"""The shape of the code, measured: `python -m tests.test_shape` prints the figures, the tests hold them.

A line of a function is one from its `def` to its end, docstring included.
"""

import ast
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "pipeline").rglob("*.py"))
PARTICIPLES = {"apart", "asked", "chosen", "found", "given", "kept", "one", "said", "told", "whole"}
"""Names that say nothing of what they are names of."""
README = ROOT / "README.md"
LOOP = ROOT / "pipeline/training/loop.py"
STACK = """
import sys, traceback
import torch
from pipeline import cli
def files(*_, **__):
    stack = [frame.filename for frame in traceback.extract_stack() if "/pipeline/" in frame.filename]
    print("STACK", *dict.fromkeys(stack), sep="\\n")
    sys.stdout.flush()
    import os
    os._exit(0)
torch.Tensor.backward = torch.autograd.backward = files
cli.main(["run", "configs/quickstart.yaml", "root=" + sys.argv[1], "--only", "moco", "--here"])
"""


def functions(path: Path) -> list[tuple[int, str]]:
    """The lines and the name of every function of a file, those inside others too."""
    found = ast.walk(ast.parse(path.read_text()))
    return [
        (node.end_lineno - node.lineno + 1, f"{path.relative_to(ROOT)}:{node.name}")
        for node in found
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    ]


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def longest(count: int = 1) -> list[tuple[int, str]]:
    return sorted((found for path in FILES for found in functions(path)), reverse=True)[:count]


def percentile(values: list[int], share: float) -> int:
    """The least value that is not under this share of all."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def to_backward(folder: str) -> list[str]:
    """The files of the package on the call stack when `pipeline run` first calls `backward`, from the command on."""
    words = [sys.executable, "-c", STACK, folder]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert "STACK\n" in done.stdout, done.stdout + done.stderr
    return [str(Path(line).relative_to(ROOT)) for line in done.stdout.partition("STACK\n")[2].splitlines()]


def participles() -> Counter[str]:
    """How often a name of the code is one of `PARTICIPLES`."""
    found: Counter[str] = Counter()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [getattr(node, part, None) for part in ("id", "arg", "attr", "name")]
            found.update(name for name in names if isinstance(name, str) and name in PARTICIPLES)
    return found


def main() -> None:
    sizes = [size for path in FILES for size, _ in functions(path)]
    print(f"files: {len(FILES)}, lines: {sum(map(lines, FILES))}")
    print("longest files:", *(f"  {size} {path.relative_to(ROOT)}" for size, path in largest(5)), sep="\n")
    print(f"functions: {len(sizes)}, median {median(sizes):g}, 95th percentile {percentile(sizes, 0.95)} lines")
    print("longest functions:", *(f"  {size} {name}" for size, name in longest(10)), sep="\n")
    print(f"{LOOP.relative_to(ROOT)}: {lines(LOOP)} lines, longest function {max(functions(LOOP))}")
    print(f"participles as names: {participles().total()}:", *(f"{n} {c}" for n, c in participles().most_common()))
    with tempfile.TemporaryDirectory() as folder:
        print("from the command to backward:", *(f"  {name}" for name in to_backward(folder)), sep="\n")


def largest(count: int) -> list[tuple[int, Path]]:
    return sorted(((lines(path), path) for path in FILES), reverse=True)[:count]


def test_functions_are_short():
    sizes = [size for path in FILES for size, _ in functions(path)]
    assert median(sizes) <= 8 and percentile(sizes, 0.95) <= 30, longest(20)


def test_files_are_read_in_one_sitting():
    assert not [path for size, path in largest(20) if size > 350]


def test_the_loop_is_read_in_one_sitting():
    assert lines(LOOP) <= 250 and max(functions(LOOP)) <= (80, "z")


def test_few_files_lie_between_the_command_and_backward(tmp_path):
    """And README names them, each in its turn."""
    files = to_backward(str(tmp_path))
    (sentence,) = re.findall(r"From the command to `loss.backward\(\)`: (.*?)\.\n", README.read_text(), re.S)
    named = [f"pipeline/{name}" for name in re.findall(r"`([\w/]+\.py)`", sentence)]
    assert files == named and len(files) <= 5


if __name__ == "__main__":
    main()
