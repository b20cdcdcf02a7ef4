"""`make gpu` on a fake clock: order, budget, resuming, and what is left when it is killed."""

import json
import os
import re
import select
import subprocess
import sys
import sysconfig
import time

import gpu_session as session
import pytest
import torch
from lgf_bench import checkout, results
from support.bench_cases import row


class World:
    """A clock that only steps move, and steps that take as long as they are told."""

    def __init__(self, seconds: dict[str, float], codes: dict[str, int] | None = None):
        self.now, self.seconds, self.codes, self.ran = 1000.0, seconds, codes or {}, []

    def clock(self) -> float:
        return self.now

    def execute(self, step, limit, folder):
        self.ran.append((step.name, limit))
        needed = self.seconds[step.name]
        self.now += min(needed, limit)
        return None if needed > limit else self.codes.get(step.name, 0)


def run(world, tmp_path, seconds=600.0, commit="abc", shares=None):
    steps = [session.Step(name, lambda *_: [], (shares or {}).get(name, 1.0)) for name in world.seconds]
    it = session.Session(steps, tmp_path, seconds, commit, world.execute, world.clock)
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
    assert [name for name, _ in again.ran] == ["build", "tests", "tune"]  # failed and stopped ones run again
    last = World(seconds | {"tune": 10})
    run(last, tmp_path)
    assert [name for name, _ in last.ran] == ["tune", "report"]
    assert set(statuses(tmp_path).values()) == {"done"}


def test_a_failing_step_stops_nothing(tmp_path):
    world = World({"build": 10, "tests": 10}, {"build": 1})
    run(world, tmp_path)
    assert statuses(tmp_path) == {"build": "failed", "tests": "done"}


def test_another_commit_begins_anew(tmp_path):
    seconds = {"build": 10, "tests": 10}
    run(World(seconds), tmp_path)
    (tmp_path / "mine.log").touch()
    (tmp_path / session.TESTS).write_text("tests/gpu/test_cuda.py::test_a PASSED [ 1%]\n")
    run(World(seconds), tmp_path)
    assert (tmp_path / session.TESTS).exists()
    world = World(seconds)
    run(world, tmp_path, commit="def")
    assert [name for name, _ in world.ran] == ["build", "tests"]
    assert (tmp_path / "mine.log").exists() and not (tmp_path / session.TESTS).exists()


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


def test_the_most_informative_steps_come_first_and_leave_time_for_others():
    names = [step.name for step in session.STEPS]
    assert names.index("build") < names.index("headline") < names.index("tests") < names.index("tune")
    assert names.index("tune") < names.index("sweeps") and names[-1] == "report"
    assert all(0 < step.share <= 0.5 for step in session.STEPS)


def test_every_bench_step_is_a_command_that_lgf_bench_takes(tmp_path):
    from lgf_bench import cli
    from lgf_bench.families import CASES, OPERATORS
    from lgf_bench.providers import all_names

    for step in session.STEPS:
        command = step.command(60, tmp_path)
        if "bench" in command:
            arguments = cli.parser().parse_args(command[command.index("bench") + 1 :])
            known = (*OPERATORS, *CASES, *cli.JOBS)
            assert set(arguments.what) <= set(known) and str(arguments.out) == str(tmp_path)
            assert set(arguments.providers or ()) <= set(all_names())


@pytest.fixture(scope="module")
def sanitized():
    """(name, parameters) of the tests of tests/gpu that are chosen for sanitizers, with the backends that a GPU would have."""
    code = f"""if True:
        import sys, pytest
        sys.path.insert(0, "tests")
        from support import numerics
        numerics.backends_of = lambda operator, device="cpu": ["native", "triton", "portable"]
        sys.exit(pytest.main(["tests/gpu", "--collect-only", "-q", "-p", "no:cacheprovider", "-k", {session.SANITIZED!r}]))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout.ROOT, capture_output=True, text=True)
    return re.findall(r"::(test_\w+)\[(.*)\]", done.stdout)


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_sanitizers_see_every_operator_of_both_backends(backend, sanitized):
    assert {name for name, parameters in sanitized if backend in parameters} >= {
        "test_lgf_kl", "test_from_logits", "test_windows_and_ragged_shapes", "test_local_gram_flow",
        "test_token_relation", "test_token_relation_tiles", "test_token_relation_in_panels",
        "test_the_same_features_differ_by_nothing",
    }  # fmt: skip
    assert not [parameters for _, parameters in sanitized if "portable" in parameters]
    assert {dtype for dtype in ("bfloat16", "float32", "float64") if dtype in str(sanitized)} == {"bfloat16", "float32"}


def test_a_sanitizer_that_is_not_there_is_a_failed_step(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    step = session.Step("memcheck", session.sanitizer("memcheck"))
    assert session.execute(step, 600, tmp_path) == 127
    assert "compute-sanitizer" in (tmp_path / "memcheck.log").read_text()


def test_tests_that_have_passed_are_not_run_again(tmp_path):
    log = "tests/gpu/test_cuda.py::test_a[(1, 2)-x] PASSED [ 1%]\ntests/gpu/test_cuda.py::test_b FAILED [ 2%]\n"
    (tmp_path / session.TESTS).write_text(log)
    command = session.tests(60, tmp_path)
    assert command[-1] == f"@{tmp_path / 'tests.passed'}"
    assert (tmp_path / "tests.passed").read_text() == "--deselect=tests/gpu/test_cuda.py::test_a[(1, 2)-x]\n"


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
    step = session.Step("one", python("print('hello'); raise SystemExit(3)"))
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
    assert session.execute(session.Step("slow", python(code)), 0.5, tmp_path) is None
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
        sys.path.insert(0, "benchmarks/tools")
        import gpu_session as session
        def python(code):
            return lambda *_: [sys.executable, "-c", code]
        session.GRACE = 600
        session.STEPS = (session.Step("quick", python("")), session.Step("slow", python({slow!r})))
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
    step = session.Step("where", lambda *_: [sys.executable, "-S", "-P", "-c", packages() + code])
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
    (tmp_path / session.TESTS).write_text("...\n=== 90 passed, 1 failed in 12.3s ===\n")
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
