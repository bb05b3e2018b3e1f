"""The runner: keys, locks, artifacts, and what happens when a stage fails, is stopped or is killed."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from pipeline import artifact, cli, config, display, progress, runner
from pipeline import plan as planning
from pipeline.data import patterns
from pipeline.errors import ConfigError, DataError, PipelineError, Stopped
from pipeline.placement import here
from pipeline.plan import PlannedStage
from pipeline.settings.stages import Codes
from pipeline.signals import Stop

CONFIG = """\
stages:
  shards: {kind: pack, source: digits}
  codes: {kind: codes, data: shards}
  vae: {kind: pretrain, data: shards, objective: {kind: vae}}
  probe: {kind: probe, data: shards, encoders: [codes, vae]}
"""
KINDS = ("pack", "codes", "pretrain", "probe")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def stages(monkeypatch):
    """Stand-ins for the stages: each writes the names of its inputs. ``calls`` lists what ran; ``acts`` may be given
    something to do in a stage first, by its kind."""
    calls: list[str] = []
    acts: dict = {}

    def run(settings, seed, inputs, out, world):
        calls.append(settings.kind)
        acts.get(settings.kind, lambda *_: None)(out, world)
        (out / "made.txt").write_text(f"{seed} {sorted(inputs)}")
        return {"loss": 0.5, "rows": {}} if settings.kind == "probe" else {"loss": 0.5}

    monkeypatch.setattr("pipeline.evaluation.requirements.check", lambda settings, folder: [])
    for kind in KINDS:
        module = ModuleType(kind)
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"pipeline.stages.{kind}", module)
    return SimpleNamespace(calls=calls, acts=acts)


def plan(*overrides: str) -> dict[str, PlannedStage]:
    return {p.name: p for p in planning.plan(config.load("c.yaml", overrides), here=True)}


def go(*words: str) -> int:
    return cli.main(["run", "c.yaml", "--here", *words])


# ---------------------------------------------------------------------------------------------------------------- keys
def keys(*overrides: str) -> dict[str, str]:
    return {name: p.key for name, p in plan(*overrides).items()}


@pytest.mark.parametrize("same", ["root=elsewhere", "codes.place={on: task, gpus: 1}", "vae.place.memory_gb=3"])
def test_placement_and_root_are_not_in_the_key(place, same):
    assert keys(same) == keys()


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("seed=1", {"shards", "codes", "vae", "probe"}),
        ("shards.test=0.3", {"shards", "codes", "vae", "probe"}),
        ("codes.atoms=64", {"codes", "probe"}),
        ("codes.threads=2", {"codes", "probe"}),
        ("vae.seed=1", {"vae", "probe"}),
        ("vae.seed=0", set()),
        ("vae.epochs=50", set()),
        ("probe.draws=3", {"probe"}),
    ],
)
def test_a_change_renames_what_depends_on_it_and_nothing_else(place, override, changed):
    before, after = keys(), keys(override)
    assert {name for name in before if before[name] != after[name]} == changed


def test_the_code_version_is_in_the_key(place, monkeypatch):
    before = keys()
    monkeypatch.setattr(Codes, "version", 99)
    assert {name for name, key in keys().items() if key != before[name]} == {"codes", "probe"}


def test_a_key_is_the_same_in_another_process(place):
    """Nothing of a process, such as the order of its sets, gets into a key."""
    code = "import json; from pipeline import config, plan;"
    code += "print(json.dumps({p.name: p.key for p in plan.plan(config.load('c.yaml'), True)}))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert json.loads(told.stdout) == keys()


def test_a_folder_is_known_by_its_images_and_by_nothing_else(place):
    Path("images/a").mkdir(parents=True)
    Path("images/a/1.png").write_bytes(b"one")
    seen = [keys("shards.source=folder:images")["shards"]]
    same = [
        lambda: None,
        lambda: Path("images/.DS_Store").write_bytes(b"seen"),
        lambda: Path("images/a/notes.txt").write_text("of no interest"),
        lambda: Path("images/b").mkdir(),
        lambda: Path("images/Thumbs.db").write_bytes(b"seen"),
    ]
    for change in same:
        change()
        assert keys("shards.source=folder:images")["shards"] == seen[0]
    assert keys(f"shards.source=folder:{place / 'images'}")["shards"] == seen[0]  # where it lies is no matter
    changes = [
        lambda: Path("images/a/2.png").write_bytes(b"two"),
        lambda: Path("images/a/1.png").write_bytes(b"longer"),
        lambda: os.utime("images/a/1.png", (1, 1)),
        lambda: Path("images/a/2.png").rename("images/a/3.png"),
        lambda: Path("images/a/3.png").unlink(),
        lambda: Path("images/a").rename("images/c"),
    ]
    for change in changes:
        change()
        seen.append(keys("shards.source=folder:images")["shards"])
    assert len(set(seen)) == len(seen)


def test_what_follows_is_known_by_what_was_packed(place, stages, capsys):
    """A pack of the same images leaves the keys after it as they are; one of others does not."""
    made = iter(["one", "one", "two"])
    pack = sys.modules["pipeline.stages.pack"]
    pack.run = lambda *_: {"fingerprint": next(made)}  # type: ignore[attr-defined]
    Path("images/a").mkdir(parents=True)
    image = Path("images/a/1.png")
    image.write_bytes(b"one")
    seen = []
    for at in (1, 2, 3):
        os.utime(image, (at, at))
        before = plan("shards.source=folder:images")
        assert not before["shards"].done and all(before[n].provisional for n in ("codes", "vae", "probe"))
        assert go("shards.source=folder:images", "vae.batch=1", "--dry-run") == 0
        assert capsys.readouterr().out.count("named after packing") == 3
        assert go("shards.source=folder:images") == 0
        after = plan("shards.source=folder:images")
        assert all(p.done and not p.provisional for p in after.values())
        seen.append({n: p.key for n, p in after.items()})
    assert len({s["shards"] for s in seen}) == 3
    for name in ("codes", "vae", "probe"):
        assert seen[0][name] == seen[1][name] != seen[2][name]
    assert stages.calls == ["codes", "pretrain", "probe"] * 2


def test_what_a_probe_lacks_is_said_before_anything_is_trained(place, stages, monkeypatch, capsys):
    def lacks(settings, folder):
        assert (folder / "artifact.json").exists() and settings.kind == "probe"
        raise DataError("no labels")

    monkeypatch.setattr("pipeline.evaluation.requirements.check", lacks)
    assert go() == 65 and stages.calls == ["pack"]
    assert capsys.readouterr().err == "no labels\n"
    assert go("--only", "codes") == 0 and stages.calls == ["pack", "codes"]  # the probe is not asked for


def test_patterns_of_tars():
    assert patterns.braces("x-{08..11}.tar") == ["x-08.tar", "x-09.tar", "x-10.tar", "x-11.tar"]
    assert patterns.braces("{a,b}/{1..2}") == ["a/1", "a/2", "b/1", "b/2"]
    assert patterns.braces("plain.tar") == ["plain.tar"]


# ----------------------------------------------------------------------------------------------------------------- run
def test_runs_once_in_order_and_says_so(place, stages, capsys):
    assert go() == 0
    assert stages.calls[0] == "pack" and stages.calls[-1] == "probe" and len(stages.calls) == 4
    told = capsys.readouterr().out
    assert "tensorboard --logdir runs" in told
    for name, p in plan().items():
        record = json.loads((p.folder / "artifact.json").read_text())
        assert (record["config"], record["stage"], record["key"]) == ("c", name, p.key)
        assert record["metrics"]["loss"] == 0.5
        assert record["inputs"] == {ref: plan()[ref].key for ref in record["inputs"]}
        assert {"python", "torch", "numpy"} <= set(record["versions"])
        assert {"host", "cpu", "threads", "processes", "started", "finished", "git", "settings"} <= set(record)
        assert sorted(f.name for f in p.folder.iterdir()) == ["artifact.json", "made.txt"]
    stages.calls.clear()
    assert go() == 0 and stages.calls == []
    assert capsys.readouterr().out.count("done already") == 4


def test_a_change_runs_only_what_depends_on_it(place, stages):
    assert go() == 0
    stages.calls.clear()
    assert go("codes.atoms=64") == 0
    assert stages.calls == ["codes", "probe"]


def test_only_runs_a_stage_and_what_it_still_needs(place, stages, capsys):
    assert go("--only", "codes") == 0 and stages.calls == ["pack", "codes"]
    assert go("--only", "vae", "codes") == 0 and stages.calls == ["pack", "codes", "pretrain"]
    assert go("--only", "vea") == 2
    assert 'no such stage; did you mean "vae"?' in capsys.readouterr().err


def test_a_fault_of_ours_is_one_line_and_a_log(place, stages, capsys):
    def fail(out, world):
        raise ZeroDivisionError("nine\ntimes")

    stages.acts["codes"] = fail
    assert go() == 1
    told = capsys.readouterr().err
    folder = plan()["codes"].folder
    assert told == f"codes: a fault of this program, ZeroDivisionError: nine (traceback in {folder}/error.log)\n"
    assert "in fail" in (folder / "error.log").read_text()
    assert "probe" not in stages.calls and not (folder / "artifact.json").exists()
    stages.acts.clear()  # corrected, the same command goes on in the same folder
    assert go() == 0 and not (folder / "error.log").exists()


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("shards: nothing in it"), 65, "codes: shards: nothing in it\n"),
        (Stopped("saved at step 3"), 75, "codes: saved at step 3\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 70, ": no space left on device: free some"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 70, ": no space left on device: free some"),
    ],
)
def test_an_error_has_its_code_and_its_line_once(place, stages, capsys, error, code, line):
    def fail(out, world):
        raise error

    stages.acts["codes"] = fail
    assert go() == code
    told = capsys.readouterr().err
    assert line in told and told.count("\n") == 1


def test_progress_is_reported_and_forgotten(place, stages):
    seen = []

    def act(out, world):
        progress.report(out, 3, 10, "batches", "with care", loss=0.1, images_per_s=None)
        seen.append(progress.read(out))

    stages.acts["codes"] = act
    assert go("--only", "codes") == 0
    assert seen == [(3, 10, "batches", "with care", {"loss": 0.1})]
    assert progress.read(plan()["codes"].folder) is None
    (place / "progress.json").write_text("{")
    assert progress.read(place) is None


def test_a_signal_stops_the_stage_and_all_that_follow(place, stages, capsys):
    def act(out, world):
        assert not world.stopping()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert world.stopping()
        raise Stopped("saved at step 3 of 10; the same command goes on from there")

    stages.acts["codes"] = act
    before = {number: signal.getsignal(number) for number in Stop.SIGNALS}
    try:
        assert go() == 75
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # a late signal must not change the exit code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert stages.calls == ["pack", "codes"]
    assert "saved at step 3" in capsys.readouterr().err
    stages.acts.clear()
    assert go() == 0


def test_a_stop_file_asks_too(place, stages):
    def act(out, world):
        assert not world.stopping()
        (out / "stop").touch()
        assert world.stopping()

    stages.acts["codes"] = act
    assert go("--only", "codes") == 0
    assert not (plan()["codes"].folder / "stop").exists()


def test_versions_that_changed_are_said(place, stages, capsys, monkeypatch):
    def fail(out, world):
        raise DataError("not now")

    stages.acts["codes"] = fail
    assert go("--only", "codes") == 65
    stages.acts.clear()
    real = artifact.versions()
    monkeypatch.setattr(artifact, "versions", lambda: real | {"torch": "99.0"})
    assert go("--only", "codes") == 0
    told = capsys.readouterr().out
    assert f"goes on with other versions than it began with: torch {real['torch']} (now 99.0)" in told


def test_another_artifact_in_the_way_is_refused(place, stages, capsys):
    folder = plan()["shards"].folder
    folder.mkdir(parents=True)
    (folder / "artifact.json").write_text(json.dumps({"key": "f" * 64}))
    assert go() == 65
    assert "holds another artifact" in capsys.readouterr().err
    (folder / "artifact.json").write_text("{")
    assert go() == 65
    assert "delete the folder" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ clusters
class Cluster:
    """A cluster of threads: what `placement.ray.Cluster` is to the runner."""

    def __init__(self):
        self.results: dict[int, object] = {}
        self.together = self.most = 0

    def submit(self, job):
        handle = len(self.results)
        self.results[handle] = None
        threading.Thread(target=self.run, args=(handle, job)).start()
        return handle

    def run(self, handle, job):
        self.together += 1
        self.most = max(self.most, self.together)
        try:
            result = runner.work(job, lambda threads, stop: World(stop))
        except Exception as error:
            result = error
        self.together -= 1
        self.results[handle] = result

    def wait(self, handles, timeout):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for handle in handles:
                if self.results[handle] is not None:
                    return handle, self.results[handle]
            time.sleep(0.01)
        return None


class World:
    """A world of one that needs no torch."""

    main, size, rank = True, 1, 0

    def __init__(self, stop):
        self.stopping = stop

    def share(self, value=None):
        return value


class Heard:
    """What was said."""

    def __init__(self):
        self.said, self.failed = [], []

    def say(self, text, stage="", event="said", **facts):
        self.said.append(f"{stage}: {text}" if stage else text)

    def fail(self, error):
        self.failed.append(str(error))

    def add(self, name, out): ...

    def remove(self, name): ...


def away(cluster, heard) -> int:
    planned = list(plan().values())
    planned = [PlannedStage(**{**vars(p), "place": "task"}) for p in planned]
    return runner.execute(planned, planned, heard, here, cluster)


def meet(barrier):
    return lambda out, world: barrier.wait(timeout=30)


def test_independent_stages_run_side_by_side(place, stages):
    both = threading.Barrier(2)  # passes only if the two are in flight at once
    stages.acts |= {"codes": meet(both), "pretrain": meet(both)}
    cluster = Cluster()
    assert away(cluster, Heard()) == 0
    assert cluster.most == 2 and stages.calls[0] == "pack" and stages.calls[-1] == "probe"


def test_after_a_failure_those_in_flight_finish(place, stages):
    failed = threading.Event()

    def fail(out, world):
        failed.set()
        raise DataError("bad")

    stages.acts |= {"codes": fail, "pretrain": lambda out, world: (failed.wait(30), time.sleep(1))}
    heard = Heard()
    assert away(Cluster(), heard) == 65
    assert heard.failed == ["codes: bad"]
    assert plan()["vae"].done and not plan()["codes"].done and "probe" not in stages.calls


def test_a_signal_reaches_tasks_by_their_stop_files(place, stages):
    def act(out, world):
        os.kill(os.getpid(), signal.SIGUSR2)
        while not world.stopping():
            time.sleep(0.01)
        raise Stopped("saved")

    stages.acts["codes"] = act
    before = {number: signal.getsignal(number) for number in Stop.SIGNALS}
    heard = Heard()
    try:
        assert away(Cluster(), heard) == 75
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert heard.failed == ["codes: saved"] and not plan()["codes"].done


def test_ray_is_asked_for_where_it_is_not(place, monkeypatch):
    monkeypatch.setattr(planning, "find_spec", lambda name: None)
    assert {p.place for p in planning.plan(config.load("c.yaml"))} == {"here"}
    with pytest.raises(ConfigError, match="needs Ray"):
        planning.plan(config.load("c.yaml", ["codes.place.on=task"]))
    monkeypatch.setattr(planning, "find_spec", lambda name: object())
    assert {p.place for p in planning.plan(config.load("c.yaml"))} == {"task"}
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert {p.place for p in planning.plan(config.load("c.yaml"))} == {"here"}


# --------------------------------------------------------------------------------------------------------------- locks
def owner(out: Path, **facts) -> Path:
    """A lock that somebody else holds."""
    lock = out / "lock"
    lock.write_text(json.dumps({"host": socket.gethostname(), "pid": 1, "born": "never", "at": 0} | facts))
    return lock


def test_a_lock_of_a_dead_process_is_taken_over(tmp_path):
    said = []
    owner(tmp_path, pid=2**22 + 1)
    with artifact.Lock(tmp_path, said.append) as lock:
        assert lock.held()
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "lock").exists()
    assert len(said) == 1 and "taking over" in said[0]


def test_a_process_that_got_a_dead_ones_number_does_not_hold_its_lock(tmp_path):
    owner(tmp_path, pid=os.getpid(), born="long ago")
    with artifact.Lock(tmp_path, lambda _: None) as lock:
        assert lock.held()


def test_another_hosts_lock_is_stale_after_a_minute_without_heartbeat(tmp_path):
    lock = owner(tmp_path, host="elsewhere")
    assert not artifact.Lock(tmp_path, lambda _: None).take()
    os.utime(lock, (time.time() - 61,) * 2)
    assert artifact.Lock(tmp_path, lambda _: None).take()


def test_a_lock_that_another_took_meanwhile_is_left_to_it(tmp_path):
    taken = json.dumps({"host": "elsewhere", "pid": 1, "born": "1", "at": 1})
    with artifact.Lock(tmp_path, print) as lock:
        lock.path.write_text(taken)
    assert lock.path.read_text() == taken


def test_a_torn_lock_is_waited_for_and_then_taken(tmp_path):
    (tmp_path / "lock").write_text('{"host"')
    assert not artifact.Lock(tmp_path, lambda _: None).take()
    os.utime(tmp_path / "lock", (1, 1))
    assert artifact.Lock(tmp_path, lambda _: None).take()


def test_a_living_owner_is_waited_for_and_named(tmp_path):
    said, held, order = [], threading.Event(), []
    first = artifact.Lock(tmp_path, said.append)
    with first:
        second = threading.Thread(target=wait_for, args=(tmp_path, said, held, order))
        second.start()
        while not said:
            time.sleep(0.01)
        assert not held.is_set()
        order.append("first leaves")
    second.join(30)
    assert order == ["first leaves", "second enters"]
    assert len(said) == 1 and f"waiting: process {os.getpid()}" in said[0]


def wait_for(out, said, held, order):
    with artifact.Lock(out, said.append):
        held.set()
        order.append("second enters")


def test_waiting_ends_at_a_signal(tmp_path):
    with artifact.Lock(tmp_path), pytest.raises(Stopped, match="waiting"):
        artifact.Lock(tmp_path, lambda _: None, lambda: True).__enter__()


def test_of_many_rivals_for_a_stale_lock_one_gets_it(tmp_path, monkeypatch):
    def slow(owner, age, judge=artifact.alive):
        answer = judge(owner, age)
        time.sleep(0.02)  # so that all would come to the same answer, if they could at once
        return answer

    monkeypatch.setattr(artifact, "alive", slow)
    for _ in range(3):
        owner(tmp_path, pid=2**22 + 1)
        rivals = [artifact.Lock(tmp_path, lambda _: None) for _ in range(8)]
        won, start = [], threading.Barrier(8)

        def race(rival, won=won, start=start):
            start.wait()
            if rival.take():
                won.append(rival)

        threads = [threading.Thread(target=race, args=(rival,)) for rival in rivals]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and won[0].held()


def test_a_worker_whose_lock_was_taken_does_not_finish(place, stages, capsys):
    stages.acts["codes"] = lambda out, world: owner(out, host="elsewhere") and None
    assert go("--only", "codes") == 1
    assert "another process took" in capsys.readouterr().err
    assert not plan()["codes"].done


def test_a_stage_that_another_process_finished_meanwhile_is_not_run_again(place, stages):
    planned = plan()
    assert go("--only", "shards") == 0
    stages.calls.clear()
    job = planning.job(planned["shards"], list(planned.values()))
    assert runner.work(job, lambda threads, stop: World(stop)) == {"loss": 0.5}
    assert stages.calls == []


# ---------------------------------------------------------------------------------------------------------------- kill
SLOW = """\
import sys, time
from types import ModuleType

def run(settings, seed, inputs, out, world):
    at = int((out / "at.txt").read_text()) if (out / "at.txt").exists() else 0
    for step in range(at, 40):
        if world.stopping():
            from pipeline.errors import Stopped
            raise Stopped(f"saved at step {step} of 40; the same command goes on from there")
        part = out / "at.part"
        part.write_text(str(step + 1))
        part.rename(out / "at.txt")
        time.sleep(0.05)
    return {"steps": 40}

for kind in ("pack", "codes", "pretrain", "probe"):
    sys.modules[f"pipeline.stages.{kind}"] = module = ModuleType(kind)
    module.run = run

class World:  # torch takes seconds to import
    main, size, rank = True, 1, 0
    def __init__(self, threads, stop):
        self.stopping = stop
    def share(self, value=None):
        return value

sys.modules["pipeline.world"] = module = ModuleType("pipeline.world")
module.World = World
from pipeline.cli import main
sys.exit(main())
"""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def begin_slow(place: Path) -> subprocess.Popen:
    (place / "slow.py").write_text(SLOW)
    words = [sys.executable, "slow.py", "run", "c.yaml", "--here", "--only", "codes"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def until_step(path: Path, step: int) -> None:
    end = time.monotonic() + 60
    while not (path.exists() and int(path.read_text() or 0) >= step):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_killed_in_the_middle_the_same_command_goes_on(place):
    at = plan()["codes"].folder / "at.txt"
    for step in (5, 20):
        running = begin_slow(place)
        until_step(at, step)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        assert (at.parent / "lock").exists() and not (at.parent / "artifact.json").exists()
    running = begin_slow(place)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (0, "")
    assert "codes: taking over" in out and "shards: done already" not in out
    assert sorted(f.name for f in at.parent.iterdir()) == ["artifact.json", "at.txt"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_signalled_in_the_middle_it_saves_and_leaves_with_75(place, number):
    at = plan()["codes"].folder / "at.txt"
    running = begin_slow(place)
    until_step(at, 5)
    running.send_signal(number)
    running.send_signal(number)  # schedulers repeat themselves
    out, err = running.communicate(timeout=60)
    assert running.returncode == 75 and "Traceback" not in err
    assert "saved at step" in err and err.count("\n") == 1 and "s after the signal" in out
    assert not (at.parent / "lock").exists()
    running = begin_slow(place)
    running.communicate(timeout=60)
    assert running.returncode == 0


def test_two_commands_at_once_do_the_work_once(place):
    first, second = begin_slow(place), begin_slow(place)
    told = first.communicate(timeout=60)[0] + second.communicate(timeout=60)[0]
    assert (first.returncode, second.returncode) == (0, 0)
    assert "waiting: process" in told


def test_pipeline_errors_travel_between_processes():
    import pickle

    for error in (Stopped("a"), DataError("b"), PipelineError("c")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error)


# --------------------------------------------------------------------------------------------------------------- ranks
RANKS = """\
stages:
  shards: {kind: pack, source: digits}
  moco:
    kind: pretrain
    data: shards
    views: {kind: characters}
    objective: {kind: moco, queue: 64, head: {hidden: 0, dim: 16}}
    steps: 120
    save_epochs: 1000
"""


def begin_ranks(size: int) -> list[subprocess.Popen]:
    """The command on several ranks, as srun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = environment() | {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [shared | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(size)]
    words = [sys.executable, "-W", "ignore", "-m", "pipeline", "run", "ranks.yaml"]
    return [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=e) for e in ranks]


@pytest.mark.slow
@pytest.mark.cluster
def test_ranks_run_one_plan_stop_together_and_go_on(place):
    Path("ranks.yaml").write_text(RANKS)
    ranks = begin_ranks(2)
    end = time.monotonic() + 300
    while not any(progress.read(found) for found in Path("runs").glob("moco-*")):
        assert time.monotonic() < end
        time.sleep(0.05)
    (folder,) = Path("runs").glob("moco-*")
    ranks[1].send_signal(signal.SIGUSR2)  # one of them is told; all save
    told = [rank.communicate(timeout=300) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [75, 75]
    assert "saved at step" in told[0][1] and told[1][1] == "" and told[1][0] == ""
    assert any((folder / "checkpoints").iterdir())
    ranks = begin_ranks(2)
    told = [rank.communicate(timeout=300) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert "shards: done already" in told[0][0]
    record = json.loads((folder / "artifact.json").read_text())
    assert record["processes"] == 2


# -------------------------------------------------------------------------------------------------------------- sweeps
def test_a_list_of_values_is_a_run_of_each(place, stages, capsys):
    """What the variants share is done once; what each of them found stands in one table at the end."""
    rows = {"moco": {"linear_top1": 0.5, "linear_few": 0.25, "knn_top1": 0.75}}
    shown = iter(range(9))

    def judge(out, world):
        rows["moco"]["linear_top1"] = 0.5 + next(shown) / 100

    stages.acts["probe"] = judge
    module = sys.modules["pipeline.stages.probe"]
    found = module.run  # type: ignore[attr-defined]
    module.run = lambda *a: found(*a) | {"rows": {k: dict(v) for k, v in rows.items()}}  # type: ignore[attr-defined]
    assert go("probe.draws=2,3,4", "vae.epochs=[1,2][0]") == 2  # a comma inside brackets lists nothing
    assert "epochs" in capsys.readouterr().err
    assert go("probe.draws=2,3,4") == 0
    assert sorted(stages.calls) == ["codes", "pack", "pretrain", "probe", "probe", "probe"]
    told = capsys.readouterr().out
    assert "3 variants" in told and "51.00 ± 1.00 %" in told
    assert {f"probe probe.draws={n}: starts" in told for n in (2, 3, 4)} == {True} and "codes: starts" in told


def test_how_values_are_listed():
    from pipeline.commands.run import sweep

    found = [f"seed={seed} a.b={b}" for seed in (0, 1) for b in "xy"]
    assert list(sweep(["seed=0,1", "a.b=x,y", "c=1"])) == found
    assert sweep(["seed=0,1", "c=1"])["seed=1"] == ["seed=1", "c=1"]
    for one in ("s=wds:{a,b}.tar", "v.size=[1,2]", "m={a: {c: 1, d: 2}, b: 3}", 's="a,b"', "bad", ""):
        assert sweep([one]) == {"": [one]}


def test_a_batch_that_a_launchers_ranks_cannot_share_is_refused_before_packing(place, stages, monkeypatch, capsys):
    monkeypatch.setattr("pipeline.launcher.size", lambda: 3)
    planned = list(plan("codes.batch=100", "vae.batch=96").values())
    with display.Display() as watch:
        assert runner.execute(planned, planned, watch, here) == 2
    assert stages.calls == []
    assert capsys.readouterr().err.splitlines() == [
        "codes.batch: 100 does not divide over 3 workers; expected a multiple of 3, such as 99",
        "codes.lista_batch: 256 does not divide over 3 workers; expected a multiple of 3, such as 255",
    ]
