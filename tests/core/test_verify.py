"""Backends that are chosen only where they have answered right, with stand-ins for those of a GPU."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from lgf_cli import verify as command
from lgf_cli.errors import UserError

import lgf_kernels as lgf
from lgf_kernels import verification
from lgf_kernels.core import registry, verify
from lgf_kernels.core.registry import Backend, Call, Proof

SECONDS = {"slow": 1.0, "fast": 0.5}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache of verdicts, in files and in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LGF_VERIFY", raising=False)
    verify.forget()
    yield tmp_path / "cache" / "lgf_kernels" / "verified"
    verify.forget()


@pytest.fixture
def toy(home, monkeypatch):
    """An operator with two backends that must prove themselves; the list of their runs; and what each answers."""
    runs, answers = [], {}

    def trial(call, large):
        def run(backend):
            runs.append(backend)
            answer = answers.get(backend, lambda call: torch.ones(3))
            return [answer(call)]

        return run

    rows = [Backend(name, "none", verified_on=("cpu",)) for name in ("native", "triton")]
    monkeypatch.setitem(registry.OPERATORS, "toy", registry.Operator(
        "toy", "none", (*rows, registry.PORTABLE, registry.REFERENCE), Proof(trial)))  # fmt: skip
    times = {"native": 2.0, "triton": 1.0}
    monkeypatch.setattr(verify, "shortest", lambda case, backend, device: times[backend])
    return runs, answers, times


def chosen(*facts, dtype=torch.float32):
    return registry.resolve(Call("toy", "cpu", dtype, (1, 2), facts), None, "toy")


def test_right_and_fastest_first(toy):
    runs, _, times = toy
    assert chosen() == "triton"
    assert set(runs) == {"native", "triton", "portable"}
    verify.forget()
    times.update(native=0.5)
    for file in verify.folder().iterdir():
        file.unlink()
    assert chosen() == "native"


def test_checked_once(toy, home):
    runs, _, _ = toy
    chosen(), chosen()
    count = len(runs)
    verify.forget()  # as another process, which finds the files
    assert chosen() == "triton" and len(runs) == count
    assert len(list(home.iterdir())) == 2 and not list(home.glob(".*"))
    chosen(dtype=torch.bfloat16)
    chosen(("window", 3))
    assert len(runs) == 3 * count


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda call: torch.ones(3) * 1.1, "a relative error of 0.1"),
        (lambda call: torch.tensor([1.0, float("nan"), 1.0]), "a relative error of inf"),
        (lambda call: torch.ones(4), "a relative error of inf"),
        (lambda call: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_one_that_is_wrong_or_raises_is_passed_over(toy, answer, said):
    _, answers, _ = toy
    answers["triton"] = answer
    with pytest.warns(RuntimeWarning, match=said) as warned:
        assert chosen() == "native"
    assert "Please report this" in str(warned[0].message) and '"operator": "toy"' in str(warned[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert chosen() == "native"
    answers["native"] = answer
    verify.forget()
    with pytest.warns(RuntimeWarning):
        os.remove(verify.file_of(verify.key_of(Call("toy", "cpu", torch.float32), "native")))
        assert chosen() == "portable"


def test_what_raised_is_tried_again_by_the_next_process(toy, home):
    """Memory that was short once must not rule a backend out for ever; a wrong answer must."""
    _, answers, _ = toy
    answers["triton"] = lambda call: (_ for _ in ()).throw(torch.OutOfMemoryError("no memory"))
    with pytest.warns(RuntimeWarning, match="no memory"):
        assert chosen() == chosen() == "native"
    assert len(list(home.iterdir())) == 1
    verify.forget()
    del answers["triton"]
    assert chosen() == "triton"


def test_other_shapes_are_not_checked_anew_nor_looked_up_in_files(toy, monkeypatch):
    runs, _, _ = toy
    chosen()
    count = len(runs)
    monkeypatch.setattr(verify, "key_of", None)
    assert registry.resolve(Call("toy", "cpu", torch.float32, (3, 4)), None, "toy") == "triton" and len(runs) == count


def test_wrong_in_one_option(toy):
    _, answers, _ = toy
    answers["triton"] = lambda call: torch.ones(3) * (2 if call.fact("window") == 3 else 1)
    assert chosen(("window", 7)) == "triton"
    with pytest.warns(RuntimeWarning):
        assert chosen(("window", 3)) == "native"


def test_asked_for_by_name_is_not_checked(toy):
    runs, _, _ = toy
    assert registry.resolve(Call("toy", "cpu"), "triton", "toy") == "triton" and not runs


def test_off_and_force(toy, monkeypatch):
    runs, answers, _ = toy
    monkeypatch.setenv("LGF_VERIFY", "off")
    assert chosen() == "native" and not runs  # the order of preference
    monkeypatch.delenv("LGF_VERIFY")
    assert chosen() == "triton"
    answers["triton"] = lambda call: torch.zeros(3)
    verify.forget()
    assert chosen() == "triton"  # what is kept
    monkeypatch.setenv("LGF_VERIFY", "force")
    verify.forget()
    with pytest.warns(RuntimeWarning):
        assert chosen() == "native"
    monkeypatch.setenv("LGF_VERIFY", "yes")
    with pytest.raises(ValueError, match=r"LGF_VERIFY must be one of 'off', 'force'.*got 'yes'"):
        chosen()


@pytest.mark.parametrize("part", ["device", "driver", "torch", "triton", "library"])
def test_what_is_kept_is_of_this_code_and_machine(toy, monkeypatch, part):
    runs, _, _ = toy
    chosen()
    count = len(runs)
    other = verify.machine("cpu") | {part: "another"}
    verify.forget()  # as another process, which finds the files
    monkeypatch.setattr(verify, "machine", lambda device: other)
    chosen()
    assert len(runs) == 2 * count


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "another"}', '{"right": 1}'])
def test_damaged_files_are_checked_anew(toy, home, text):
    runs, _, _ = toy
    chosen()
    count = len(runs)
    for file in home.iterdir():
        file.write_text(text)
    verify.forget()
    assert chosen() == "triton" and len(runs) == 2 * count


@pytest.mark.parametrize("place", ["a file", "no home"])
def test_a_folder_that_cannot_be_written(toy, tmp_path, monkeypatch, place):
    if place == "a file":
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    runs, _, _ = toy
    assert chosen() == chosen() == "triton" and len(runs) == 4


def test_nothing_is_checked_while_a_graph_is_captured(toy, monkeypatch):
    runs, _, _ = toy
    monkeypatch.setattr(verify, "impossible_reason", lambda device: "a CUDA graph is captured")
    assert chosen() == "portable" and not runs


def test_the_check_sees_nothing_of_the_caller(toy):
    _, answers, _ = toy

    def answer(call):
        assert (
            torch.is_grad_enabled() and not torch.is_inference_mode_enabled() and not torch.is_autocast_enabled("cpu")
        )
        return torch.ones(3)

    answers["triton"] = answer
    with torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert chosen() == "triton"


def test_two_processes(home):
    """Both find what is right, and the files are whole."""
    code = (
        "import torch; from lgf_kernels.core import registry, verify\n"
        "row = registry.OPERATORS['lgf_kl'].backends[-2]._replace(verified_on=('cpu',))\n"
        "call = registry.Call('lgf_kl', 'cpu', torch.float32, (1, 2, 3, 3, 8), (('teachers', 1),))\n"
        "verify.shortest = lambda *it: 1.0\n"
        "print(registry.verdict(row, call).right)"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["True", "True"]
    (file,) = home.iterdir()
    assert json.loads(file.read_text())["right"] is True


def test_choice_while_torch_compiles(toy, monkeypatch):
    """The check runs when the choice is traced, with none of the tracer's tensors."""
    runs, answers, _ = toy
    answers["triton"] = lambda call: torch.zeros(3)
    names = []

    def function(x):
        name = registry.resolve(registry.call_of("toy", x), None, "toy")
        names.append(name)
        return x + (1 if name == "native" else 2)

    with pytest.warns(RuntimeWarning):
        assert torch.compile(function, backend="aot_eager", fullgraph=True)(torch.zeros(2)).tolist() == [1, 1]
    assert runs.count("native") == 1


def test_what_runs_here_is_right(capsys):
    checks = verification.checks("cpu")
    assert {check.call.operator for check in checks} >= {"lgf_kl", "local_gram_flow"}
    chosen = [check for check in checks if check.call.dtype == torch.bfloat16]
    rows = [verification.run(check) for check in chosen]
    assert all(row.right and row.milliseconds > 0 for row in rows), rows
    assert {row.options for row in rows if row.operator == "lgf_kl"} > {"teachers=2"}


def test_trials_have_the_options_of_the_call():
    """A backend with an option mixed up is noticed: each variant's answer differs from that of every other."""
    for operator in ("lgf_kl", "local_gram_flow", "patch_cosine", "token_relation"):
        trial, variants = registry.OPERATORS[operator].proof
        answers = [trial(Call(operator, "cpu", facts=tuple(facts.items())), False)("portable") for facts in variants]
        assert [len(it) for it in answers] == [1 + facts.get("needs_grad", True) for facts in variants]
        with_gradient = [it for it in answers if len(it) == 2]
        for i, one in enumerate(with_gradient):
            for other in with_gradient[i + 1 :]:
                assert verify.worst_error(one[1:], other[1:]) > 10 * verify.TOLERANCE, (operator, i)


def test_doctor_says_what_must_prove_itself(toy):
    (row,) = [row for row in lgf.backends() if row.name == "triton"]
    assert "`lgf verify`" in row.reason


def test_a_gpu_is_timed_by_its_own_clock_behind_a_head_start_for_the_host(monkeypatch):
    """The host takes longer for a launch than a GPU for a small kernel, and would decide which backend is the fastest."""
    done, took = [], iter([9.0, 3.0, 2.0, 4.0, 3.0, 3.0])

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            done.append("mark")

        def synchronize(self):
            done.append("wait")

        def elapsed_time(self, end):
            return next(took)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: done.append("sleep"), raising=False)
    assert verify.shortest(lambda backend: done.append(backend), "native", "cuda:0") == 2e-3
    assert done == (verify.RUNS + 1) * ["sleep", "mark", "native", "mark", "wait"]


def test_lgf_verify_compiles_in_several_processes_first(tmp_path):
    """A check that kills its process is left to those that are made in order."""
    folders = [tmp_path / name for name in "abc"]
    command.compile_ahead(os.mkdir, folders, 2)
    assert all(folder.is_dir() for folder in folders)
    command.compile_ahead(os._exit, [1], 1)
    with pytest.raises(UserError, match="--jobs must be at least 1, got 0"):
        command.main(["--device", "cpu", "--jobs", "0"])
