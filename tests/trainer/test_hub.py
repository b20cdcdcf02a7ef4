"""Models whose files are not all there, and what loading them writes."""

import shutil

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("tyro")

import diffusers
import transformers
from diffusers import DiffusionPipeline
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled
from lgf_trainer.generators.base import Generator
from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.runtime.hub import pretrained
from lgf_trainer.testing import make_tiny_detector, make_tiny_pipeline
from transformers import AutoProcessor


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_tiny_pipeline(folder / "pipeline")
    make_tiny_detector(folder / "detector")
    return folder


@pytest.mark.parametrize("missing", ["tokenizer", "tokenizer*.json", "tokenizer.json"])
def test_a_tokenizer_without_words_is_refused(models, tmp_path, missing):
    """transformers makes one up, to which all words are the same."""
    shutil.copytree(models / "pipeline", tmp_path / "model", ignore=shutil.ignore_patterns(missing))
    with pytest.raises(TrainerError, match=r"cannot be loaded from .*model \(its tokenizer knows no words"):
        pretrained(DiffusionPipeline, str(tmp_path / "model"), transformer=None, scheduler=None)


def test_so_is_one_of_a_detector(models, tmp_path):
    shutil.copytree(models / "detector", tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer.json"))
    with pytest.raises(TrainerError, match=r"cannot be loaded from .*model \(its tokenizer knows no words"):
        pretrained(AutoProcessor, str(tmp_path / "model"))
    assert pretrained(AutoProcessor, str(models / "detector")).tokenizer.tokenize("a dog") == ["a", "dog"]


def bars_of_loading(models, capsys) -> set[str]:
    """Load a pipeline; return which of the libraries' bars are drawn."""
    capsys.readouterr()
    pretrained(DiffusionPipeline, str(models / "pipeline"), transformer=None)
    said = capsys.readouterr().err
    return {bar for bar in ("Loading weights", "Loading pipeline components") if bar in said}


BOTH = {"Loading weights", "Loading pipeline components"}


def test_a_log_file_gets_no_bars_of_loading_and_the_libraries_keep_their_settings(models, capsys):
    assert bars_of_loading(models, capsys) == set()
    assert not are_progress_bars_disabled()
    for library in (transformers, diffusers):
        assert library.utils.logging.is_progress_bar_enabled()


def test_a_terminal_gets_them(models, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert bars_of_loading(models, capsys) == BOTH


def test_so_does_a_log_file_of_a_user_who_asks_for_them(models, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", False)
    assert bars_of_loading(models, capsys) == BOTH


def test_what_a_user_turned_off_stays_off(models, capsys):
    transformers.utils.logging.disable_progress_bar()  # those of the hub, too
    try:
        assert bars_of_loading(models, capsys) == set()
        assert are_progress_bars_disabled() and not transformers.utils.logging.is_progress_bar_enabled()
    finally:
        transformers.utils.logging.enable_progress_bar()


def test_a_model_of_the_hub_that_cannot_be_had_says_the_way_out(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TrainerError, match=r"no-one/nothing cannot be read .*hub and a network$"):
        Generator.read("no-one/nothing")
