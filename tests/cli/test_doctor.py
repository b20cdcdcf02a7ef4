"""`lgf doctor`, and the command line around it."""

import getpass
import json
import os
import platform
import socket
import subprocess
import sys

import torch
from lgf_cli import main

import lgf_kernels as lgf


def test_text_says_everything_and_nothing_private(capsys, monkeypatch):
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, "somebody")  # real names of users and hosts may well be words of the report: ci, linux
    for module, function in ((platform, "node"), (socket, "gethostname")):
        monkeypatch.setattr(module, function, lambda: "somewhere")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for row in lgf.backends():
        assert row.name in text and row.reason in text
    for word in (lgf.__version__, torch.__version__, platform.python_version(), "diffusers", "_cpu", "_cuda"):
        assert word in text
    assert os.path.expanduser("~") + "/" not in text and getpass.getuser() not in text and platform.node() not in text


def test_json_is_the_same_report(capsys, monkeypatch):
    monkeypatch.setenv("LGF_BACKEND", "portable")
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["torch"] == torch.__version__
    assert report["backends"] == [row._asdict() for row in lgf.backends()]
    assert report["environment"]["LGF_BACKEND"] == "portable"
    assert report["native modules"]["_cpu"]["available"] in ("yes", "no")


def test_help_and_version():
    def lgf_command(*arguments):
        return subprocess.run([sys.executable, "-m", "lgf_cli", *arguments], capture_output=True, text=True)

    assert "doctor" in lgf_command("--help").stdout and "demo" in lgf_command("--help").stdout
    assert "--json" in lgf_command("doctor", "--help").stdout
    assert lgf.__version__ in lgf_command("--version").stdout
    wrong = lgf_command("docter")
    assert wrong.returncode == 2 and "doctor" in wrong.stderr
