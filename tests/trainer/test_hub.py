"""Models whose files are not all there."""

import shutil

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("tyro")

from diffusers import DiffusionPipeline
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
