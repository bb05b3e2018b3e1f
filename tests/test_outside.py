"""What a user's machine does to a process: disk, rights, limits, variables that others left, terminals that close. On
real files and processes; none of them imports torch unless a stage runs."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import artifact, cli, errors, launcher, process
from pipeline.data.store import Folder
from pipeline.errors import DataError, NoProgressError
from pipeline.signals import Stop

ROOT = Path(__file__).parents[1]


def shell(command: str, **env: str) -> subprocess.CompletedProcess:
    """A line of bash; ``pipeline`` in it is ours."""
    ours = f'pipeline() {{ "{sys.executable}" -m pipeline "$@"; }}; python() {{ "{sys.executable}" "$@"; }}; '
    kept = {k: v for k, v in os.environ.items() if k not in (*launcher.NAMES, "PYTHONIOENCODING")}
    kept |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env
    return subprocess.run(["bash", "-c", ours + command], capture_output=True, text=True, env=kept)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A config of one stage, in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("stages:\n  shards: {kind: pack, source: digits}\n")
    return tmp_path


@pytest.fixture
def results(place) -> Path:
    """A finished probe, whose table has a letter that ASCII lacks."""
    out = place / "runs/probe-0123abcd"
    out.mkdir(parents=True)
    row = {"linear_top1": 0.9, "linear_few": 0.8, "linear_few_sd": 0.01,
           "linear_10_per_class": 0.8, "linear_10_per_class_sd": 0.01, "knn_top1": 0.7}  # fmt: skip
    settings = {"per_class": 10, "draws": 7, "neighbours": 20, "temperature": 0.07}
    artifact.begin(out)
    facts = {"stage": "probe", "kind": "probe", "key": "0" * 64, "seed": 3, "settings": settings}
    artifact.finish(out, facts, {"rows": {"moco": row}})
    return out


# -------------------------------------------------------------------------------------------------- whose fault it is
def full() -> None:
    with open("/dev/full", "wb") as file:
        file.write(b"x")


def full_for_torch() -> None:
    """A writer whose error has no number, only the words of the one before it."""
    try:
        full()
    except OSError as error:
        raise RuntimeError("PytorchStreamWriter failed writing file data") from error


def full_for_safetensors() -> None:
    from safetensors import SafetensorError

    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def too_many() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard))
    try:
        while True:
            held.append(open(os.devnull))  # noqa: SIM115
    finally:
        for file in held:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


USERS = [
    (full, 70, "no space left on device: free some"),
    (full_for_torch, 70, "no space left on device: free some"),
    (full_for_safetensors, 70, "no space left on device: free some"),
    (too_many, 70, "too many open files: raise the limit by `ulimit -n"),
    (lambda: Path("/proc/nothing/x").mkdir(), 65, "/proc/nothing/x: no such file or directory"),
    (lambda: Path("/").write_bytes(b""), 65, "/: is a directory"),
    (lambda: Path("/etc/passwd/x").read_bytes(), 65, "/etc/passwd/x: not a directory"),
    (lambda: Path("/tmp/" + "x" * 300).touch(), 70, "file name too long: name a shorter one"),
    (lambda: Path("caf\udce9").name.encode(), 65, "a name that is not UTF-8"),
    (lambda: np.empty(1 << 50), 70, "cannot allocate memory: lower batch"),
]


@pytest.mark.parametrize(("act", "code", "words"), USERS)
def test_what_a_user_controls_is_one_line_with_its_code(act, code, words):
    with pytest.raises(Exception) as caught:
        act()
    said = errors.explain(caught.value)
    assert said is not None and said.code == code
    assert words in str(said) and "\n" not in str(said)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EAGAIN])
def test_no_start_passes_a_limit_before_it_is_raised(number):
    said = errors.explain(OSError(number, os.strerror(number), "runs/x"))
    assert isinstance(said, NoProgressError) and str(said).startswith(f"runs/x: {os.strerror(number).lower()}: ")


def test_where_it_happened_is_said_of_errors_that_name_no_file():
    assert str(errors.explain(OSError(errno.ENOSPC, "x"), "runs/a")).startswith("runs/a: no space left")
    assert isinstance(errors.explain(OSError(errno.ESTALE, "Stale file handle", "a")), DataError)


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("28"), OSError(errno.EBADF, "Bad file descriptor")])
def test_what_no_user_controls_is_ours(error, capsys):
    def fail() -> int:
        raise error

    assert errors.explain(error) is None
    assert cli.exit_code(fail) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"a fault of this program, {type(error).__name__}")


def test_a_connection_of_one_process_is_no_lost_rank():
    assert not errors.peer_lost(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert errors.peer_lost(RuntimeError("[gloo/pair.cc] Connection closed by peer [127.0.0.1]:2"))


# ----------------------------------------------------------------------------------------------------------- terminal
def test_the_table_has_a_letter_that_ascii_lacks(results):
    assert "±" in shell("pipeline show", PYTHONIOENCODING="utf-8").stdout


@pytest.mark.parametrize("encoding", ["ascii", "koi8-r", "iso8859-2"])
def test_an_output_that_cannot_hold_a_letter_has_another(results, encoding):
    told = subprocess.run([sys.executable, "-m", "pipeline", "show"], capture_output=True, cwd=results.parents[1],
                          env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding})  # fmt: skip
    assert (told.returncode, told.stderr) == (0, b"")
    assert "80.00 ? 1.00 %" in told.stdout.decode(encoding)


@pytest.mark.parametrize(
    "command",
    [
        "pipeline show runs | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}",
        "pipeline show runs | true; exit ${PIPESTATUS[0]}",
        "pipeline show runs >&-",
        "pipeline show runs >&- 2>&- <&-",
        "pipeline --help >&-",
    ],
)
def test_an_output_without_a_reader_fails_nothing(results, command):
    told = shell(command)
    assert (told.returncode, told.stderr) == (0, "")


def test_a_stage_goes_on_when_its_reader_has_left(place):
    told = shell("pipeline run c.yaml --here 2>err | head -1; exit ${PIPESTATUS[0]}")
    assert told.returncode == 0 and (place / "err").read_text() == ""
    assert told.stdout == "shards: starts\n" and list(place.glob("runs/shards-*/artifact.json"))


def test_a_full_disk_under_the_output_is_no_fault_of_ours(results):
    told = shell("pipeline show runs >/dev/full")
    assert told.returncode == 70 and "no space left on device" in told.stderr and "Traceback" not in told.stderr


def test_a_log_on_a_full_disk_ends_no_stage(place):
    told = shell("pipeline run c.yaml --here >/dev/full 2>err")
    assert told.returncode == 0 and (place / "err").read_text() == "" and list(place.glob("runs/*/artifact.json"))


def test_a_closed_output_is_not_the_next_file_that_is_opened(tmp_path):
    text = "import os; from pipeline import process; process.guard_output(); "
    text += "open('n', 'w').write(str(os.open('.', 0)))"
    shell(f'cd {tmp_path} && python -c "{text}" >&- <&-')
    assert int((tmp_path / "n").read_text()) > 2


def test_a_terminal_that_closes_is_a_signal_like_others():
    before = signal.signal(signal.SIGHUP, lambda *_: None)
    try:
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# ------------------------------------------------------------------------------------------------------------- limits
READ = """
from pathlib import Path
from pipeline import process
from pipeline.data.store import Folder
import resource, sys
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
if sys.argv[1] == "settled": process.raise_limits()
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
folders = [Folder(Path(".")) for _ in range(10)]
held = [f.read(f"{i}", 0, 9) for i in range(300) for f in folders]
print(held == [str(i).encode() for i in range(300) for _ in folders])
"""


@pytest.mark.parametrize(
    ("limit", "how", "expected"),
    [
        ("ulimit -n 50", "plain", ["50", "50", "True"]),  # fewer than ten folders would keep: they make room
        ("ulimit -n 50", "settled", ["50", "50", "True"]),
        ("ulimit -Sn 50", "settled", ["50", "more", "True"]),
    ],
)
def test_fewer_files_are_kept_open_than_the_limit_allows(tmp_path, limit, how, expected):
    (tmp_path / "read.py").write_text(READ)
    for i in range(300):
        (tmp_path / str(i)).write_text(str(i))
    told = shell(f"cd {tmp_path} && {limit} && python read.py {how}")
    found = [word if word in ("50", "True") else "more" for word in told.stdout.split()]
    assert (found, told.stderr) == (expected, "")


def test_a_folder_makes_room_for_a_file_when_no_more_may_be_open(tmp_path):
    for i in range(40):
        (tmp_path / str(i)).write_text(str(i))
    folder = Folder(tmp_path)
    for i in range(30):
        folder.read(str(i), 0, 9)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    held = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        assert folder.read("39", 0, 9) == b"39"
    finally:
        for number in held:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -------------------------------------------------------------------------------------------------------------- numba
SUM = """
from pipeline.jit import jit
@jit(error_model="numpy")
def f(x):
    return x + 1
print(f(2), sum(f.stats.cache_hits.values()))
"""


@pytest.mark.slow
def test_what_numba_keeps_saves_seconds_and_nothing_else(tmp_path):
    """Damaged it is made anew; where no folder takes it, it is done without."""
    (tmp_path / "sum.py").write_text(SUM)
    kept, run = tmp_path / "kept", f"cd {tmp_path} && python sum.py"

    def ran(**env: str) -> str:
        told = shell(run, **env)
        assert told.stderr == ""
        return told.stdout

    assert [ran(NUMBA_CACHE_DIR=str(kept)) for _ in range(2)] == ["3 0\n", "3 1\n"]
    for pattern in ("*.nbi", "*.nbc"):
        for path in kept.rglob(pattern):
            path.write_bytes(path.read_bytes()[:10])
        assert [ran(NUMBA_CACHE_DIR=str(kept)) for _ in range(2)] == ["3 0\n", "3 1\n"]
    assert ran(NUMBA_CACHE_DIR="/proc/none") == "3 0\n"


def test_the_line_of_a_stage_is_json_too_where_a_machine_reads(place):
    told = shell("pipeline run c.yaml root=/proc/none --here --json")
    last = json.loads(told.stderr.splitlines()[-1])
    assert (last["event"], last["code"], told.returncode) == ("failed", 65, 65)


def test_the_limit_is_raised_once_to_what_is_allowed():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    process.raise_limits()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(soft, process.FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_run_folder_whose_name_is_not_utf_8_is_refused_before_anything_is_written(tmp_path):
    home = os.fsencode(tmp_path) + b"/caf\xe9 $x"
    os.mkdir(home)
    Path(os.fsdecode(home), "c.yaml").write_text("stages:\n  shards: {kind: pack, source: digits}\n")
    two = "pipeline run c.yaml --here; echo $?; pipeline run c.yaml root=$'r\\xe9'; echo $?"
    told = shell(f"cd {tmp_path}/caf*; {two}")
    assert told.stdout.split() == ["2", "2"] and os.listdir(home) == [b"c.yaml"]
    first, second = told.stderr.splitlines()
    assert first.endswith("caf\\xe9 $x/runs is no name in UTF-8: rename that folder, or name another by root=")
    assert "holds a name that is not UTF-8: rename it, or give it a link" in second
    told = shell(f"cd {tmp_path}/caf*; pipeline run c.yaml --here root='{tmp_path}/r$HOME \"[1] #2'")
    assert told.returncode == 0 and len(list(tmp_path.glob("r$HOME*/shards-*/artifact.json"))) == 1
