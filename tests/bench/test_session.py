"""`make gpu` on a fake clock: order, budget, resuming here and elsewhere, and what is left when it is killed."""

import json
import os
import re
import select
import subprocess
import sys
import sysconfig
import tarfile
import time

import gpu_session as session
import gpu_steps as steps
import pytest
import torch
from lgf_bench import checkout, results
from support.bench_cases import row
from support.families import families


class World:
    """A clock that only steps move, and steps that take as long as they are told.

    `backends`: what the step "doctor" says of each backend; `code`: what runs.
    """

    def __init__(self, seconds: dict[str, float], codes: dict[str, int] | None = None, backends: dict | None = None):
        self.now, self.seconds, self.codes, self.ran = 1000.0, seconds, codes or {}, []
        self.backends = backends or {"native": "runs"}

    def clock(self) -> float:
        return self.now

    def execute(self, step, limit, folder):
        self.ran.append((step.name, limit))
        if step.name == "doctor":
            rows = [{"name": name, "reason": reason} for name, reason in self.backends.items()]
            (folder / "doctor.log").write_text("a warning\n" + json.dumps({"backends": rows}))
        needed = self.seconds[step.name]
        self.now += min(needed, limit)
        return None if needed > limit else self.codes.get(step.name, 0)

    def names(self) -> list[str]:
        return [name for name, _ in self.ran]


def run(world, folder, seconds=600.0, commit="abc", device="H100", shares=None, missing=()):
    of_world = [
        steps.Step(
            name, lambda *_: [], (shares or {}).get(name, 1.0), always=name in ("build", "doctor"),
            packages=("no_such_package",) if name in missing else (),
        )
        for name in world.seconds
    ]  # fmt: skip
    code = {"commit": commit, "device": device}
    it = session.Session(of_world, folder, world.now + seconds, code, world.execute, world.clock)
    it.run()
    return it


def statuses(tmp_path) -> dict[str, str]:
    state = json.loads((tmp_path / session.STATE).read_text())
    return {name: it["status"] for name, it in state["steps"].items()}


def test_steps_run_in_order_within_the_budget(tmp_path, capsys):
    world = World({"build": 100, "tests": 300, "tune": 500, "report": 5})
    run(world, tmp_path, shares={"tests": 0.25, "report": 0.1})
    assert world.ran == [("build", 600), ("tests", 150), ("tune", 350)]
    assert statuses(tmp_path) == {"build": "done", "tests": "stopped", "tune": "stopped"}
    assert world.now == 1600 and "report: not begun" in capsys.readouterr().out


def test_it_goes_on_where_it_stopped(tmp_path):
    seconds = {"build": 100, "tests": 300, "tune": 500, "report": 5}
    run(World(seconds, {"build": 1}), tmp_path, shares={"tests": 0.25})
    again = World(seconds | {"tests": 100})
    run(again, tmp_path, shares={"tests": 0.25})
    assert again.names() == ["build", "tests", "tune"]  # failed and stopped ones run again
    last = World(seconds | {"tune": 10})
    run(last, tmp_path)
    assert last.names() == ["build", "tune", "report"]  # the build on every machine anew
    assert set(statuses(tmp_path).values()) == {"done"}


def test_a_fresh_machine_goes_on_from_the_archive_and_builds(tmp_path):
    seconds = {"build": 100, "doctor": 5, "tests": 100, "tune": 500}
    first = tmp_path / "first" / "results"
    first.mkdir(parents=True)
    run(World(seconds), first)
    assert statuses(first)["tune"] == "stopped"
    second = tmp_path / "second" / "results"
    second.parent.mkdir()
    os.rename(session.archive(first), session.archive(second))
    session.unpack(second)
    world = World(seconds | {"tune": 50})
    run(world, second)
    assert world.names() == ["build", "doctor", "tune"]
    assert set(statuses(second).values()) == {"done"}
    with tarfile.open(session.archive(second)) as found:
        assert {"results/session.json", "results/doctor.log"} <= set(found.getnames())


def test_what_ran_without_a_backend_runs_again_when_it_is_there(tmp_path):
    """As when the build failed on one machine and succeeds on the next."""
    seconds = {"build": 100, "doctor": 5, "tests": 100}
    run(World(seconds, {"build": 1}, {"native": "was not built"}), tmp_path)
    assert statuses(tmp_path) == {"build": "failed", "doctor": "done", "tests": "done"}
    for _ in range(2):
        world = World(seconds)
        run(world, tmp_path)
    assert world.names() == ["build", "doctor"]
    assert run(World(seconds, {"build": 1}, {"native": "was not built"}), tmp_path).state["steps"]["tests"] == {
        "status": "done", "seconds": 100.0, "code": 0, "backends": {"native": "was not built"},
    }  # fmt: skip


def test_a_step_for_which_something_is_missing_takes_no_time_and_is_tried_again(tmp_path, capsys):
    seconds = {"build": 100, "step": 100, "report": 5}
    world = World(seconds)
    run(world, tmp_path, missing=("step",))
    assert world.names() == ["build", "report"]
    assert statuses(tmp_path)["step"] == "impossible" and "['no_such_package']" in capsys.readouterr().out
    again = World(seconds)
    run(again, tmp_path)
    assert again.names() == ["build", "step"]


def test_a_failing_step_stops_nothing(tmp_path):
    world = World({"build": 10, "tests": 10}, {"build": 1})
    run(world, tmp_path)
    assert statuses(tmp_path) == {"build": "failed", "tests": "done"}


@pytest.mark.parametrize("other", [{"commit": "def"}, {"device": "H200"}], ids=str)
def test_another_commit_or_device_begins_anew(tmp_path, other):
    seconds = {"build": 10, "tests": 10}
    run(World(seconds), tmp_path)
    (tmp_path / "mine.log").touch()
    (tmp_path / "tests.log").write_text("tests/gpu/test_cuda.py::test_a PASSED [ 1%]\n")
    run(World(seconds), tmp_path)
    assert (tmp_path / "tests.log").exists()
    world = World(seconds)
    run(world, tmp_path, **other)
    assert world.names() == ["build", "tests"]
    assert (tmp_path / "mine.log").exists() and not (tmp_path / "tests.log").exists()


def test_killed_in_a_step_what_is_done_is_known(tmp_path):
    world = World({"build": 10, "tests": 10})
    finish = world.execute

    def killed(step, limit, folder):
        if step.name == "tests":
            raise KeyboardInterrupt
        return finish(step, limit, folder)

    world.execute = killed
    with pytest.raises(KeyboardInterrupt):
        run(world, tmp_path)
    assert statuses(tmp_path) == {"build": "done"}


def test_a_torn_state_is_no_state(tmp_path):
    (tmp_path / session.STATE).write_text('{"commit": "abc", "st')
    world = World({"build": 10})
    run(world, tmp_path)
    assert statuses(tmp_path) == {"build": "done"}


def test_what_only_a_gpu_can_tell_comes_first_and_leaves_time_for_others():
    names = [step.name for step in steps.STEPS]
    assert names[:3] == ["build", "doctor", "device-tests"] and names[-1] == "report"
    assert names.index("verify") < names.index("headline") < names.index("tests") < names.index("tune")
    assert names.index("tune") < names.index("sweeps")
    assert all(0 < step.share <= 0.5 for step in steps.STEPS)
    assert [step.name for step in steps.STEPS if step.always] == ["build", "doctor"]


def test_every_test_on_a_gpu_is_in_a_step():
    files = {file.relative_to(checkout.ROOT).as_posix() for file in (checkout.ROOT / "tests" / "gpu").glob("test_*.py")}
    assert files == {*steps.DEVICE_TESTS, *steps.OTHER_TESTS} >= set(steps.FAMILIES)
    assert set(steps.FAMILIES) == {f"tests/gpu/test_{name}.py" for name in families()}, (
        "a family without a test on a GPU"
    )


def test_up_to_compute_sanitizer_it_fits_nine_minutes():
    text, _ = session.plan(steps.STEPS, 9 * 60 - session.FINISH)
    within = re.findall(r"^(\S+) +begins after", text, re.MULTILINE)
    assert within[:8] == [step.name for step in steps.STEPS[:8]] and "needs another session" in text


def test_a_dry_run_says_what_is_missing_and_runs_nothing(monkeypatch, capsys):
    there = steps.Step("a", None, 0.5, 10.0, ("pytest",), ("sh",))
    monkeypatch.setattr(session, "STEPS", (there,))
    assert session.main(["--dry-run"]) == 0
    monkeypatch.setattr(session, "STEPS", (there, steps.Step("b", None, 0.5, 20.0, ("no_such",), ("no-such-program",))))
    assert session.main(["--dry-run", "--minutes", "1"]) == 1
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert "begins after    0 s" in first and "LACKS" not in first
    assert "begins after   10 s" in second and second.endswith("LACKS no_such, no-such-program")


def test_every_tool_of_a_step_starts_in_a_bare_checkout(tmp_path, monkeypatch):
    """Its own folder is among those that Python searches, and nothing else is set."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    commands = {step.name: step.command(60, tmp_path) for step in steps.STEPS}
    tools = {name: words for name, words in commands.items() if any(word.endswith(".py") for word in words[:3])}
    assert set(tools) == {"build", "tune", "profile"}
    for words in tools.values():
        script = next(index for index, word in enumerate(words) if word.endswith(".py"))
        command = [*words[: script + 1], "--help"]
        done = subprocess.run(command, cwd=tmp_path, env=steps.variables(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def sanitized():
    """(name, parameters) of the tests of tests/gpu that are chosen for sanitizers, with the backends that a GPU would have."""
    code = f"""if True:
        import sys, pytest
        sys.path.insert(0, "tests")
        from support import numerics
        numerics.backends_of = lambda operator, device="cpu": ["native", "triton", "portable"]
        sys.exit(pytest.main([*{steps.FAMILIES!r}, "--collect-only", "-q", "-p", "no:cacheprovider", "-k", {steps.SANITIZED!r}]))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout.ROOT, capture_output=True, text=True)
    return re.findall(r"::(test_\w+)\[(.*)\]", done.stdout)


@pytest.mark.parametrize("backend", ["triton", "native"])
def test_sanitizers_see_every_operator_of_both_backends(backend, sanitized):
    assert {name for name, parameters in sanitized if backend in parameters} >= {
        "test_lgf_kl", "test_from_logits", "test_windows_and_ragged_shapes", "test_local_gram_flow",
        "test_token_relation", "test_token_relation_tiles", "test_token_relation_in_panels",
        "test_point_correspondence", "test_patch_cosine",
    }  # fmt: skip
    assert not [parameters for _, parameters in sanitized if "portable" in parameters]
    assert {dtype for dtype in ("bfloat16", "float32", "float64") if dtype in str(sanitized)} == {"bfloat16", "float32"}


def test_a_sanitizer_that_is_not_there_is_a_failed_step(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    step = steps.Step("memcheck", steps.sanitizer("memcheck"))
    assert session.execute(step, 600, tmp_path) == 127
    assert "compute-sanitizer" in (tmp_path / "memcheck.log").read_text()


@pytest.mark.parametrize("several", [False, True])
def test_tests_that_have_passed_are_not_run_again(tmp_path, several):
    log = "tests/gpu/test_cuda.py::test_a[(1, 2)-x] PASSED [ 1%]\ntests/gpu/test_cuda.py::test_b FAILED [ 2%]\n"
    if several:  # as the workers of pytest-xdist write it
        log = (
            "tests/gpu/test_cuda.py::test_a[(1, 2)-x] \n[gw11] [  1%] PASSED tests/gpu/test_cuda.py::test_a[(1, 2)-x] \n"
            "[gw1] [ 20%] FAILED tests/gpu/test_cuda.py::test_b \n"
        )
    (tmp_path / "tests.log").write_text(log)
    command = steps.tests("tests", "tests/gpu/test_cuda.py")(60, tmp_path)
    assert f"@{tmp_path / 'tests.passed'}" in command
    assert (tmp_path / "tests.passed").read_text() == "--deselect=tests/gpu/test_cuda.py::test_a[(1, 2)-x]\n"


@pytest.mark.parametrize("several", [False, True])
def test_tests_run_side_by_side_with_and_without_workers(tmp_path, monkeypatch, several):
    """What one session logs as passed the next one leaves out, and a failure is the code of the whole."""
    if several:
        pytest.importorskip("xdist")
    else:
        monkeypatch.setattr(steps.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(steps, "WORKERS", 2)
    (tmp_path / "tests").mkdir()
    for name in "ab":
        (tmp_path / "tests" / f"test_{name}.py").write_text(
            f"def test_{name}(): pass\ndef test_no(): assert {name!r} != 'a'\n"
        )
    command = steps.tests("tests", "tests/test_a.py", "tests/test_b.py")
    logs = []
    for _ in range(2):
        done = subprocess.run(command(60, tmp_path), cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1, done.stdout + done.stderr
        logs.append(done.stdout)
        (tmp_path / "tests.log").write_text("".join(logs))
    assert sorted(steps.passed(tmp_path, "tests")) == [
        "tests/test_a.py::test_a",
        "tests/test_b.py::test_b",
        "tests/test_b.py::test_no",
    ]
    passes = [log.count("test_b.py::test_b PASSED") or log.count("PASSED tests/test_b.py::test_b") for log in logs]
    assert passes == ([1, 0] if several else [1, 1]), "without workers a log goes on where it was"


def test_pytest_takes_the_list_of_passed_tests(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n@pytest.mark.parametrize('x', ['a b', 'c'])\ndef test_x(x): pass\n"
    )
    (tmp_path / "skip").write_text("--deselect=test_it.py::test_x[a b]\n")
    command = [sys.executable, "-m", "pytest", "test_it.py", "-v", "-p", "no:cacheprovider", "@skip"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "1 passed, 1 deselected" in done.stdout and "test_it.py::test_x[c] PASSED" in done.stdout


def python(code: str):
    return lambda seconds, folder: [sys.executable, "-c", code]


def test_a_step_leaves_its_output_and_its_code(tmp_path):
    step = steps.Step("one", python("print('hello'); raise SystemExit(3)"))
    assert session.execute(step, 600, tmp_path) == 3
    assert (tmp_path / "one.log").read_text() == "hello\n"


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_step_that_takes_too_long_is_ended_with_all_it_started(tmp_path, stubborn, monkeypatch):
    """What it started holds one end of a pipe open for as long as it lives: at the other end nothing has to be waited for."""
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)

    def told() -> bytes:
        assert select.select([pipe], [], [], 60)[0], "neither a word nor an end in a minute"
        return os.read(pipe, 99)

    class Begun(subprocess.Popen):
        """Its time runs from when all of it has begun, however long that takes on a busy machine."""

        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            assert told() == b"begun"

    ignore = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);" if stubborn else ""
    child = f"{ignore}import time; pipe = open({str(tmp_path / 'pipe')!r}, 'w'); print('begun', end='', file=pipe, flush=True)"
    code = f"{ignore}import subprocess, sys; subprocess.run([sys.executable, '-c', {child + '; time.sleep(600)'!r}])"
    monkeypatch.setattr(session, "GRACE", 1)
    monkeypatch.setattr(session.subprocess, "Popen", Begun)
    assert session.execute(steps.Step("slow", python(code)), 0.5, tmp_path) is None
    assert told() == b"", "all of them have ended"
    os.close(pipe)


@pytest.mark.parametrize("sign", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])  # one handler has both
def test_told_to_end_it_ends_the_step_too_and_knows_what_is_done(tmp_path, sign):
    """In a script's background, where Ctrl-C is ignored unless one says otherwise."""
    slow = f"import time, os; open({str(tmp_path / 'slow')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    code = f"""if True:
        import signal, sys, torch
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        torch.cuda.is_available = lambda: True
        torch.cuda.get_device_name = lambda device: "H100"
        sys.path.insert(0, "benchmarks/tools")
        import gpu_session as session, gpu_steps as steps
        def python(code):
            return lambda *_: [sys.executable, "-c", code]
        session.GRACE = 600
        session.STEPS = (steps.Step("quick", python("")), steps.Step("slow", python({slow!r})))
        sys.exit(session.main(["--out", {str(tmp_path)!r}]))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=checkout.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "slow").exists() or not (tmp_path / "slow").read_text():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(getattr(session.signal, sign))
    _, error = process.communicate(timeout=120)  # less than a step that ignores the signal gets
    assert process.returncode == 0 and error.endswith("\nmake gpu: interrupted; the same command goes on from here.\n")
    assert statuses(tmp_path) == {"quick": "done"}
    with tarfile.open(session.archive(tmp_path)) as found:
        assert f"{tmp_path.name}/session.json" in found.getnames()
    with pytest.raises(ProcessLookupError):
        session.os.kill(int((tmp_path / "slow").read_text()), 0)


def test_steps_import_this_checkout_and_find_cuda_s_tools(tmp_path, monkeypatch):
    """In a bare copy: nothing is installed, nothing is set, and -P keeps the working directory out of the search."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    tool = tmp_path / "cuda" / "bin" / "a-tool-of-cuda"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    code = (
        "import shutil, lgf_kernels, importlib.util as found; print(shutil.which('a-tool-of-cuda'));"
        "print(lgf_kernels.__file__); print(found.find_spec('lgf_trainer').origin)"
    )
    step = steps.Step("where", lambda *_: [sys.executable, "-S", "-P", "-c", packages() + code])
    assert session.execute(step, 600, tmp_path) == 0
    root = checkout.ROOT
    assert (tmp_path / "where.log").read_text().splitlines() == [
        str(tool), str(root / "lgf_kernels" / "__init__.py"), str(root / "python" / "lgf_trainer" / "__init__.py")
    ]  # fmt: skip


def packages() -> str:
    """Code that finds torch and numpy, but not the editable install, which -S leaves out."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return f"import sys; sys.path += {folders!r};"


def test_the_summary_is_short_and_tells_what_is_wrong(tmp_path):
    fast = {"median_ms": 2.0, "low_ms": 1.0, "high_ms": 3.0}
    wrong = row(provider="bmm", status="wrong")
    del wrong["both"]
    lost = row(case="sam2", status="failed", why="x")
    del lost["both"]
    results.append(tmp_path / "losses.jsonl", [row(), row(provider="triton", both=fast), wrong, lost])
    (tmp_path / "tests.log").write_text("...\n=== 90 passed, 1 failed in 12.3s ===\n")
    (tmp_path / "racecheck.log").write_text("...\n========= RACECHECK SUMMARY: 2 hazards displayed\n")
    text = session.summary(tmp_path, {"steps": {"build": {"status": "done"}}})
    assert "build done" in text and "tests: 90 passed, 1 failed" in text
    assert "racecheck: RACECHECK SUMMARY: 2 hazards displayed" in text
    line = next(line for line in text.splitlines() if "cogvideox-latent" in line)
    assert "triton" in line and "5.00x vs eager" in line and "50.0 %" in line
    assert "cogvideox-latent, float32: bmm is WRONG" in text and "no provider gives the right answer" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_one_clear_line(capsys):
    assert session.main([]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no CUDA device" in error
