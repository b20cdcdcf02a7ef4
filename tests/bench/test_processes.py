"""Processes that end for real: without the provider that broke the GPU the next goes on, and a dead one is one clear line."""

import json
import os
import re
from argparse import Namespace
from pathlib import Path

import pytest
from lgf_bench import processes
from lgf_cli.errors import UserError
from support import bench_jobs


def test_a_new_process_goes_on_without_the_provider_that_broke_the_gpu(tmp_path, capfd):
    """In processes that end for real: two providers break it, one after the other, and the third process finishes."""
    kept = tmp_path / "kept"
    arguments = Namespace(out=tmp_path, resume=False, breaks=["natten", "liger"], kept=kept)
    assert processes.run_isolated(bench_jobs.job, arguments) == 3
    first, second, third = (json.loads(line) for line in kept.read_text().splitlines())
    assert first["broken"] == {} and not first["resume"]
    assert second["broken"] == {"natten": "broke the GPU: illegal access"} and second["resume"]
    assert list(third["broken"]) == ["natten", "liger"] and third["resume"]
    assert len({os.getpid(), first["pid"], second["pid"], third["pid"]}) == 4
    assert "natten broke the GPU for this process (illegal access): starting anew without it" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("job", "out", "says"),
    [
        ("job", None, "natten broke the GPU for this process: illegal access. Leave it out with --providers."),
        (
            "dying_job",
            None,
            "its process died: it crashed, was killed, or the memory ran out. --providers leaves one out.",
        ),
        ("dying_job", Path("results"), "What was finished is in results; --resume goes on."),
        ("mistaken_job", None, "a mistake of the user"),
    ],
)
def test_a_process_that_cannot_go_on_is_one_clear_line(job, out, says, tmp_path):
    arguments = Namespace(out=out, resume=False, breaks=["natten"], kept=tmp_path / "kept")
    with pytest.raises(UserError, match=re.escape(says)) as error:
        processes.run_isolated(getattr(bench_jobs, job), arguments)
    assert "\n" not in str(error.value)
