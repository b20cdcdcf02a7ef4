"""Workflows of continuous integration: valid by GitHub's schema, with commands that the Makefile has."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def steps(workflow: Path) -> list[dict]:
    return [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"]]


def test_there_are_workflows():
    assert {"tests.yml", "wheels.yml", "gpu.yml"} <= {file.name for file in WORKFLOWS}


def test_they_fit_the_schema():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.stem)
def test_every_command_is_one_of_the_makefile(workflow):
    commands = [step["run"] for step in steps(workflow) if "run" in step]
    assert commands
    for command in commands:
        program, target, *_ = command.split()
        assert program == "make" and target in TARGETS and "\n" not in command.strip(), command


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.stem)
def test_every_action_has_a_version(workflow):
    for step in steps(workflow):
        assert "run" in step or re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]), step


def test_continuous_integration_here_runs_the_same():
    ours = re.search(r"^make (.+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)[1].split()
    theirs = {step["run"].split()[1] for step in steps(ROOT / ".github" / "workflows" / "tests.yml") if "run" in step}
    assert set(ours) == theirs
