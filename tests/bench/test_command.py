"""`lgf bench`: every answer is checked, a wrong one is not timed, the numbers are kept, and mistakes are explained."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lgf_bench import ceilings, cli, families, measure, processes, providers, results, runner
from lgf_cli import main
from support import bench_cases

pytest.importorskip("tqdm")
pytestmark = pytest.mark.usefixtures("small_cases", "quick_ceilings")
QUICK = ["--rounds", "2", "--measure"]


@pytest.fixture
def quick_ceilings(monkeypatch):
    monkeypatch.setattr(ceilings, "RUNS", 1)
    monkeypatch.setattr(ceilings, "COPY", {"cpu": 2**20})
    monkeypatch.setattr(ceilings, "GEMM", {"cpu": 64})


def refused(arguments: list[str]) -> str:
    """Return the one line that a command ends with."""
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments])
    line = stopped.value.code
    assert line.startswith("lgf bench: ") and "\n" not in line
    return line


def lines_of(provider: str, text: str) -> list[str]:
    return [line for line in text.splitlines() if line.split()[:1] == [provider]]


def test_table_and_file(tmp_path, capsys):
    chosen = ["--providers", "eager", "portable", "liger", "--out", str(tmp_path / "results")]
    assert main(["bench", "small-lgf", "--rounds", "2", *chosen]) == 0
    text = capsys.readouterr().out
    (line,) = lines_of("eager", text)
    assert "1.00x" in line and line.endswith("%") and "MiB" in line and " us" in line
    assert "Not here: liger (" in text and "floor: forward" in text
    rows = {row["provider"]: row for row in results.read(tmp_path / "results" / "losses.jsonl")}
    assert set(rows) == {"eager", "portable", "liger"} and rows["liger"]["status"] == "absent"
    for row in (rows["eager"], rows["portable"]):
        for part in ("forward", "backward", "both"):
            assert 0 < row[part]["low_ms"] <= row[part]["median_ms"] <= row[part]["high_ms"]
        assert row["status"] == "right" and row["torch"] == torch.__version__ and row["commit"] and row["command"]
        assert row["peak_bytes"] >= 0 and row["overhead_us"] > 0 and row["first_call_s"] >= 0
        assert row["floor_ms"]["both"] > 0
    assert json.loads((tmp_path / "results" / "ceilings.json").read_text())["copy"] > 0


@pytest.mark.parametrize("factor", [1.01, float("nan"), "raise"], ids=str)
def test_a_wrong_or_failing_provider_is_shown_and_not_timed(monkeypatch, capsys, tmp_path, factor):
    """In forward and, by the factor, in the gradient. NaN must not pass for small."""
    right = providers.provider

    def off(name, case):
        if name != "portable":
            return right(name, case)

        def broken(**tensors):
            if factor == "raise":
                raise RuntimeError("no\nsuch kernel")
            return factor * right(name, case)(**tensors)

        return broken

    monkeypatch.setattr(measure, "provider", off)
    command = ["bench", "small-lgf", "--providers", "eager", "portable", "--out", str(tmp_path)]
    assert main([*command, "--rounds", "2", "--measure", "overhead", "first"]) == 0
    text = capsys.readouterr().out
    if factor == "raise":
        assert not lines_of("portable", text) and "\nFAILED: portable (RuntimeError: no such kernel).\n" in text
    else:
        (line,) = lines_of("portable", text)
        assert "WRONG" in line and " ms" not in line and "MiB" not in line and "%" not in line
    row = results.read(tmp_path / "losses.jsonl")[-1]
    assert row["status"] == ("failed" if factor == "raise" else "wrong")
    if factor != "raise":
        assert row["output_error"] == (pytest.approx(0.01, rel=1e-3) if factor == factor else None)
    assert not {"forward", "both", "peak_bytes", "overhead_us", "first_call_s"} & set(row)


def test_a_wrong_gradient_alone_is_wrong(monkeypatch, capsys):
    right = providers.provider

    def off(name, case):
        return lambda student, teachers: right("eager", case)(
            student=student.detach() + 1.01 * (student - student.detach()), teachers=teachers
        )

    monkeypatch.setattr(measure, "provider", off)
    main(["bench", "small-lgf", "--providers", "portable", *QUICK])
    assert "WRONG" in lines_of("portable", capsys.readouterr().out)[0]


def test_without_the_baseline_there_is_no_ratio(capsys):
    main(["bench", "small-lgf", "--providers", "portable", *QUICK])
    assert "x " not in lines_of("portable", capsys.readouterr().out)[0]


def test_operators_types_shapes_and_large_cases(capsys):
    main(["bench", "token_relation", "--providers", "portable", "--dtypes", "float32", "bfloat16", *QUICK])
    text = capsys.readouterr().out
    assert text.count("\nsmall-relation:") == text.count("\nsmall-videorepa:") == 2 and "small-lgf" not in text
    assert text.count("bfloat16") >= 2
    main(["bench", "--shapes", "1,2,3,4,5", "1,2,3,4", "--window", "3", "--providers", "portable", *QUICK])
    text = capsys.readouterr().out
    assert "\nlgf_kl-1x2x3x4x5-k3:" in text and "\nlocal_gram_flow-1x2x3x4x5-k3:" in text
    assert "\ntoken_relation-1x2x3x4:" in text
    main(["bench", "lgf_kl", "--shapes", "1,2,3,4,5", "--providers", "portable", *QUICK])
    text = capsys.readouterr().out
    assert "\nlgf_kl-1x2x3x4x5:" in text and "local_gram_flow" not in text
    main(["bench", "lgf_kl", "--providers", "portable", *QUICK])
    assert "small-large" not in capsys.readouterr().out
    main(["bench", "small-large", "--providers", "portable", *QUICK])
    assert "small-large" in capsys.readouterr().out


def test_an_interrupted_run_keeps_what_it_has_and_goes_on(monkeypatch, capsys, tmp_path):
    def command(*providers: str) -> list[str]:
        return ["bench", "small-lgf", "small-cached", "--providers", *providers, *QUICK, "--out", str(tmp_path)]

    measured = []

    def measuring(name, case, plan):
        if interrupt == name:
            raise KeyboardInterrupt
        measured.append(name)
        return measure.measure_case(name, case, plan)

    monkeypatch.setattr(runner, "measure_case", measuring)
    interrupt, file = "small-cached", tmp_path / "losses.jsonl"
    assert main(command("portable")) == 130
    assert "--resume" in capsys.readouterr().err
    assert [row["case"] for row in results.read(file)] == ["small-lgf"]
    with open(file, "a") as lines:
        lines.write('{"case": "half a li')  # what a kill in the middle of writing leaves
    interrupt = None
    assert main([*command("portable"), "--resume"]) == 0
    assert measured == ["small-lgf", "small-cached"]
    assert [row["case"] for row in results.read(file)] == measured
    assert main([*command("portable", "eager"), "--resume"]) == 0  # with one more provider both are measured again
    assert measured == 2 * ["small-lgf", "small-cached"]


CHANGES = [
    {"commit": "old"},
    {"torch": "1"},
    {"lgf_kernels": "0"},
    {"device": "x"},
    {"threads": 99},
    {"isa": "x"},
    {"clock": "cpu"},
]


@pytest.mark.parametrize(
    "other", [*CHANGES, {"dtype": "bfloat16"}, {"case": "small-cached"}, {"provider": "eager"}], ids=str
)
def test_only_what_was_measured_alike_is_left_out(monkeypatch, tmp_path, other):
    measured = []
    monkeypatch.setattr(runner, "measure_case", lambda name, case, plan: measured.append(name) or [])
    command = ["bench", "small-lgf", "--providers", "portable", *QUICK, "--out", str(tmp_path), "--resume"]
    here = results.provenance("cpu") | {
        "clock": "wall",
        "case": "small-lgf",
        "dtype": "float32",
        "provider": "portable",
    }
    results.append(tmp_path / "losses.jsonl", [here | other])
    assert main(command) == 0 and measured == ["small-lgf"]
    results.append(tmp_path / "losses.jsonl", [here])
    assert main(command) == 0 and measured == ["small-lgf"]


@pytest.mark.parametrize(
    "now, again",
    [("not built", False), (None, True), ("its driver is too old", True), ("needs 9 GiB, 3.5 GiB are free", False)],
)
def test_one_that_was_absent_counts_while_it_is_so_for_the_same_reason(monkeypatch, tmp_path, now, again):
    """As the CUDA module, which a session may have failed to build; one that failed or was wrong counts in any case."""
    measured = []
    monkeypatch.setattr(runner, "measure_case", lambda name, case, plan: measured.append(name) or [])
    monkeypatch.setattr(measure, "offered", lambda case: {"portable": None, "eager": None, "native": now})
    why = "needs 9 GiB, 12 GiB are free" if now and "GiB" in now else "not built"
    here = results.provenance("cpu") | {"clock": "wall", "case": "small-lgf", "dtype": "float32"}
    status = {
        "native": {"status": "absent", "why": why},
        "eager": {"status": "failed", "why": "x"},
        "portable": {"status": "wrong"},
    }
    results.append(tmp_path / "losses.jsonl", [here | {"provider": name} | more for name, more in status.items()])
    command = ["bench", "small-lgf", "--providers", *status, *QUICK, "--out", str(tmp_path), "--resume"]
    assert main(command) == 0 and measured == ["small-lgf"] * again


def test_providers_of_two_runs_are_not_one_run(monkeypatch, tmp_path):
    measured = []
    monkeypatch.setattr(runner, "measure_case", lambda name, case, plan: measured.append(name) or [])
    here = results.provenance("cpu") | {"clock": "wall", "case": "small-lgf", "dtype": "float32"}
    rows = [here | {"provider": "portable"}, here | {"provider": "eager", "run": "another"}]
    results.append(tmp_path / "losses.jsonl", rows)
    command = ["bench", "small-lgf", "--providers", "portable", "eager", *QUICK, "--out", str(tmp_path), "--resume"]
    assert main(command) == 0 and measured == ["small-lgf"]


def test_a_case_that_cannot_be_measured_stops_no_other(monkeypatch, capsys, tmp_path):
    def measuring(name, case, plan):
        if name == "small-lgf":
            raise RuntimeError("out of memory")
        return measure.measure_case(name, case, plan)

    monkeypatch.setattr(runner, "measure_case", measuring)
    command = ["bench", "small-lgf", "small-cached", "--providers", "portable", *QUICK, "--out", str(tmp_path)]
    assert main(command) == 1
    assert "small-lgf: FAILED: out of memory" in capsys.readouterr().out
    assert {row["case"] for row in results.read(tmp_path / "losses.jsonl")} == {"small-cached"}


def test_a_provider_that_breaks_the_device_ends_the_measurement_and_is_left_out_of_the_next(monkeypatch, tmp_path):
    """As an illegal access on a GPU does: nothing works afterwards in this process."""
    right = providers.provider

    def breaking(name, case):
        if name == "native":
            raise RuntimeError("illegal memory access")
        return right(name, case)

    monkeypatch.setattr(measure, "provider", breaking)
    monkeypatch.setattr(measure, "device_works", lambda device: False)
    runs = providers.BACKENDS["native"]._replace(unsupported_reason=lambda case: None)
    monkeypatch.setitem(providers.BACKENDS, "native", runs)
    command = ["small-lgf", "--providers", "native", "portable", *QUICK, "--dtypes", "float32", "--out", str(tmp_path)]
    arguments = cli.parser().parse_args(command)
    with pytest.raises(processes.BrokenDeviceError) as broken:
        cli.run(arguments, {})
    assert broken.value.args == ("native", "RuntimeError: illegal memory access")
    assert cli.run(arguments, {"native": "broke the GPU", "chunked": "broke it too"}) == 0
    rows = {row["provider"]: row for row in results.read(tmp_path / "losses.jsonl")}
    assert set(rows) == {"native", "portable"} and rows["portable"]["status"] == "right"
    assert rows["native"]["status"] == "absent" and rows["native"]["why"] == "broke the GPU"


def test_on_a_gpu_a_run_has_a_process_of_its_own(monkeypatch):
    asked = []
    monkeypatch.setattr(cli, "checked_device", lambda device: device)
    monkeypatch.setattr(processes, "run_isolated", lambda job, arguments: asked.append(job) or 0)
    assert main(["bench", "small-lgf", "--device", "cuda"]) == 0 and asked == [cli.run]


def test_the_time_that_is_given_is_kept(capsys):
    assert main(["bench", "--minutes", "0", "--providers", "portable", *QUICK]) == 0
    assert "not begun" in capsys.readouterr().out


def test_minutes_are_minutes(monkeypatch, capsys):
    now = [1000.0]

    def measuring(name, case, plan):
        now[0] += 20
        return []

    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(runner, "measure_case", measuring)
    main(["bench", "small-lgf", "small-cached", "small-window", "--minutes", "0.5", *QUICK])
    assert now == [1040.0] and "small-window, float32: not begun" in capsys.readouterr().out


def test_sweeps_measure_times_and_memory_and_keep_their_sizes(monkeypatch, capsys, tmp_path):
    def measuring(name, case, plan):
        assert plan.metrics == ("memory",)
        size = case.shape[1] - 1
        return [bench_cases.row(case=name, provider="portable", both={"median_ms": size**2}, peak_bytes=size)]

    pairs = {"pairs": families.sweeps(gpu=False)["pairs"]}
    monkeypatch.setattr(families, "sweeps", lambda gpu: pairs)
    monkeypatch.setattr(runner, "measure_case", measuring)
    assert main(["bench", "sweeps", "--rounds", "2", "--out", str(tmp_path)]) == 0
    (line,) = lines_of("portable", capsys.readouterr().out)
    assert line.split()[1:3] == ["2.00", "1.00"] and "2: 4 ms" in line
    rows = results.read(tmp_path / results.SWEEPS)
    assert [(it["sweep"], it["size"]) for it in rows] == [("pairs", size) for size in pairs["pairs"].cases]


def test_first_calls_compile_into_an_empty_folder(monkeypatch):
    caches = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    monkeypatch.setenv(caches[0], "mine")
    monkeypatch.delenv(caches[1], raising=False)
    with runner.empty_compiler_caches():
        inside = [os.environ[name] for name in caches]
        assert len({"mine", *inside}) == 3 and all(Path(folder).parent.is_dir() for folder in inside)
    assert os.environ[caches[0]] == "mine" and caches[1] not in os.environ
    assert not any(Path(folder).parent.exists() for folder in inside)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no-such-case"], "small-lgf"),
        (["--rounds", "1"], "--rounds"),
        (["--threads", "0"], "--threads"),
        (["--threads", "1000000000000"], "--threads"),
        (["--minutes", "nan"], "--minutes"),
        (["--clock", "cpu"], "--threads 1"),
        (["--clock", "cpu", "--threads", "2"], "--threads 1"),
        (["small-lgf", "--providers", "cudnn"], "portable"),
        (["--shapes", "1,2,x"], "1,13,30,45,256"),
        (["--shapes", "1,2,3"], "B,T,H,W,C"),
        (["--shapes", "1,2,0,4"], "token_relation takes B,F,N,C"),
        (["lgf_kl", "--shapes", "1,1,3,4,5"], "T at least 2"),
        (["lgf_kl", "--shapes", "1,2,3,4"], "B,T,H,W,C"),
        (["lgf_kl", "token_relation", "--shapes", "1,2,3,4"], "1,2,3,4: lgf_kl takes"),
        (["small-lgf", "--shapes", "1,2,3,4"], "operator"),
        (["--shapes", "1,2,3,4,5", "--window", "4"], "odd"),
        (["--window", "5"], "--shapes"),
        (["--shapes", "1,2,3,4", "--window", "5"], "--window"),
        (["sweeps", "--shapes", "1,2,3,4"], "operator"),
        (["point_correspondence", "--shapes", "1,2,3,4,5,6", "--window", "-1"], "--window"),
        (["sweeps", "step"], "job"),
        (["step", "--model", "CogVideoX-5B"], "GPU"),
        (["step", "--model", "CogVideoX-6B"], "CogVideoX-5B"),
        (["small-lgf", "--model", "CogVideoX-5B"], "'step'"),
        (["step", "--providers", "eager"], "--providers"),
        (["--device", "gpu"], "cpu, cuda"),
        (["--device", "cuda:x"], "cpu, cuda"),
        (["--device", "cuda:"], "cpu, cuda"),
        (["--device", "cpu:0"], "cpu, cuda"),
        (["--resume"], "--out"),
        (["--out", "lgf_kl"], "before the options"),
        (["--compare", "no-such-commit", "HEAD"], "no-such-commit"),
        (["--compare", ".", "HEAD"], "'HEAD' is none. Commits are compared in a checkout"),
        (["--compare", torch.__file__, sys.executable], "no results"),
        (["sweeps", "--compare", ".", "."], "'sweeps'"),
    ],
    ids=str,
)
def test_mistakes_are_explained(arguments, says):
    assert says in refused(arguments)


def test_events_and_streams_are_those_of_the_device_asked_for(monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(runner, "run_cases", lambda *arguments: 0)
    for device in ("cuda:1", "cuda", "cpu"):
        assert cli.run(cli.parser().parse_args(["--device", device]), {}) == 0
    assert current == ["cuda:1"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_gpu():
    assert "torch sees no CUDA device" in refused(["--device", "cuda"])


def test_out_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    assert "is a file" in refused(["--out", str(tmp_path / "file")])


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which nobody may write")
def test_out_that_cannot_be_written():
    line = refused(["small-lgf", "--providers", "portable", *QUICK, "--out", "/proc/self/results"])
    assert "/proc/self/results/ceilings.json cannot be written" in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_out_on_a_full_disk(tmp_path):
    (tmp_path / "losses.jsonl").symlink_to("/dev/full")
    line = refused(["small-lgf", "--providers", "portable", *QUICK, "--out", str(tmp_path)])
    assert "losses.jsonl cannot be written: No space left on device" in line


def test_help_names_everything(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert all(name in text for name in ("natten", "flexattention", "liger", "correlation", "small-lgf", "sweeps"))


def test_without_docstrings_too():
    code = "import sys; from lgf_cli import main; sys.exit(main(['bench', '--help']))"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--providers" in done.stdout, done.stderr
