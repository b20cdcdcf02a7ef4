"""The profile of kernels with a program in ncu's place: what is called, what is kept, what the table says."""

import gpu_steps
import kernel_profile
import pytest
import torch
from lgf_bench.families import CASES
from support.bench_cases import SMALL

#: The "raw" page: words of ncu, a header, units, and a row for each kernel, with a counter that the table does not know.
PAGE = """==PROF== Connected to process 1
"ID","Kernel Name","gpu__time_duration.sum","smsp__issue_active.avg.per_cycle_active","smsp__inst_executed.sum",\
"smsp__average_warps_issue_stalled_selected_per_issue_active.ratio","smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio","another__counter"
"","","ns","inst/cycle","inst","inst","inst","inst",""
"0","void lgf::entry<lgf::gram_flow::BandForward<(int)8, float>>(T1::Params)","201,500","0.62","181000000","1","0.5","2.25","n/a"
"1","lgf_kl_forward","246000","0.4","109000000","1","0","3","n/a"
""".replace("\\\n", "")


def test_the_table_has_what_a_kernel_waits_for():
    band, triton = (kernel_profile.cells(row) for row in kernel_profile.kernels(PAGE))
    assert band["kernel"] == "entry<gram_flow::BandForward<8, float>>" and triton["kernel"] == "lgf_kl_forward"
    assert (band["us"], band["issue %"], band["M instructions"]) == ("201.5", "62", "181.0")
    assert band["stalls"] == "long_scoreboard 2.2, barrier 0.5" and triton["stalls"] == "long_scoreboard 3.0"
    assert band["L2 %"] == "", "this page does not have it"


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A program in ncu's place that notes its calls, leaves a report and reads PAGE from any."""
    program = tmp_path / "bin" / "ncu"
    program.parent.mkdir()
    (tmp_path / "page").write_text(PAGE)
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncase $1 in --import) cat {tmp_path}/page;; *) echo report > $3;; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return program


def test_a_case_is_profiled_and_kept(program, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path)  # ncu runs in the checkout
    assert kernel_profile.main(["--out", "out", "sam2"]) == 0
    assert (out / "sam2.csv").read_text() == PAGE and (out / "sam2.ncu-rep").exists()
    assert "BandForward<8" in capsys.readouterr().out
    run, read = (tmp_path / "calls").read_text().splitlines()
    assert (
        "--profile-from-start off" in run
        and "--clock-control none" in run
        and run.endswith("sam2 --run --dtype bfloat16")
    )
    assert read.startswith("--import") and "--print-units base" in read
    program.write_text("#!/bin/sh\necho ERR_NVGPUCTRPERM; exit 1\n")
    assert kernel_profile.main(["--out", str(out), "sam2"]) == 2
    assert "ncu ended with 1" in capsys.readouterr().err


def test_a_report_of_before_is_not_read_where_nothing_was_profiled(program, tmp_path, capsys):
    (tmp_path / "sam2.ncu-rep").write_text("of yesterday")
    program.write_text("#!/bin/sh\necho ==WARNING== No kernels were profiled.\n")
    assert kernel_profile.main(["--out", str(tmp_path), "sam2"]) == 2
    printed = capsys.readouterr()
    assert "no kernel of sam2" in printed.err and "No kernels were profiled" in printed.err and not printed.out


def test_the_second_step_alone_is_between_the_marks(monkeypatch, capsys):
    seen = []
    monkeypatch.setitem(CASES, "small", SMALL["small-lgf"])
    monkeypatch.setattr(kernel_profile, "step", lambda loss, inputs: seen.append("step"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: seen.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: seen.append("stop"))
    kernel_profile.run("small", "float32", "cpu")
    assert seen == ["step", "start", "step", "stop"]
    assert "small: triton is left out: " in capsys.readouterr().err, "what is printed goes to ncu's words"


@pytest.mark.parametrize(
    "words, gpu, said",
    [
        (["nonsense", "--out", "x"], True, "there is no case 'nonsense'"),
        (["sam2", "--out", "x"], False, "no CUDA device"),
        (["sam2"], True, "--out DIR"),
        (["sam2", "--out", "x"], True, "ncu is not on PATH"),
        (["sam2", "--out", __file__], True, "is a file"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(words, gpu, said, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert kernel_profile.main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_every_target_is_a_case():
    assert set(gpu_steps.TARGETS) <= set(CASES)
