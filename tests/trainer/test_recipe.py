"""Recipes: what they default to, how they are read and changed, and what is said about mistakes in them."""

import math

import pytest
import yaml
from support.programs import flowing

pytest.importorskip("tyro")

from lgf_trainer.commands import parse_recipe
from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.runtime.recipe import (
    Optimiser,
    Recipe,
    build,
    check,
    differences,
    flatten,
    is_pattern,
    read_recipe,
    shipped_recipes,
    to_settings,
)

#: What the paper states.
PAPER = {
    "model.rank": 256, "model.alpha": 128, "alignment.weight": 0.5, "alignment.block": 24, "alignment.loss": "lgf",
    "alignment.lgf.temperature": 0.1, "alignment.lgf.direction": "forward", "projector.hidden": 768,
    "projector.widths": (512, 256, 256), "optimisers.lora.rate": 1e-4, "optimisers.lora.warmup": 200,
    "optimisers.lora.final_rate": None, "optimisers.lora.betas": (0.9, 0.95), "optimisers.projector.rate": 5e-4,
    "optimisers.projector.warmup": 150, "optimisers.projector.final_rate": 1e-5, "training.steps": 3000,
    "training.batch": 32, "training.clip": 1.0, "training.precision": "bf16", "data.image_dropout": 0.05,
}  # fmt: skip

#: Of the papers on CogVideoX-2B.
MOALIGN = {
    "model.path": "THUDM/CogVideoX-2b", "model.train": "full", "alignment.loss": "relation", "alignment.block": 17,
    "alignment.features": ("motion",), "alignment.relation.form": "moalign", "projector.form": "moalign",
    "projector.widths": (256, 64), "training.steps": 4000,
}  # fmt: skip
VIDEOREPA = {
    "model.path": "THUDM/CogVideoX-2b", "alignment.loss": "relation", "alignment.block": 17,
    "alignment.features": ("videomae",), "projector.form": "videorepa", "projector.widths": (2048, 2048, 768),
    "optimisers.projector.warmup": 100, "optimisers.projector.final_rate": None,
    "optimisers.projector.weight_decay": 1e-4, "optimisers.full.warmup": 100, "optimisers.full.weight_decay": 1e-4,
    "training.steps": 4000,
}  # fmt: skip
REPA = {
    "alignment.loss": "repa", "alignment.features": ("dino",), "alignment.block": 11, "projector.form": "repa",
    "projector.widths": (2048, 2048, 1024),
}  # fmt: skip

#: Recipe -> where it differs from the paper's.
SHIPPED = {
    "sam2videox": {},
    "sam2videox-literal": {
        "projector.interpolation": "factor", "projector.last": "normalised", "projector.stem": "none",
        "alignment.lgf.similarity": "dot", "alignment.lgf.boundary": "zero",
    },
    "lora-only": {"alignment.loss": "none"},
    "l2-features": {"alignment.loss": "features"},
    "l2-lgf": {"alignment.lgf.divergence": "l2"},
    "forward-only": {"alignment.k": 1.0},
    "separate-projectors": {"alignment.lgf.fusion": "separate"},
    "feature-fusion": {"alignment.lgf.fusion": "features"},
    "bidirectional-lgf": {"alignment.lgf.direction": "both"},
    "mask-supervision": {"alignment.loss": "mask"},
    "repa-dino": {"alignment.loss": "repa", "alignment.features": ("dino",)},
    "crepa": {"alignment.loss": "crepa", "alignment.features": ("dino",)},
    "repa": REPA,
    "align4gen": REPA | {
        "alignment.features": ("dino", "sam2_image"), "alignment.combine": "concat", "alignment.block": 17,
    },
    "gram": {"alignment.loss": "relation", "alignment.relation.form": "gram", "alignment.features": ("dino",)},
    "moalign-stage1": {
        "task": "motion-subspace", "optimisers.full.rate": 1e-4, "optimisers.full.warmup": 0,
        "optimisers.full.weight_decay": 1e-3, "training.steps": 50000, "training.batch": 128, "training.clip": float("inf"),
        "run.save_every": 1000,
    },
    "moalign": MOALIGN,
    "moalign-raw-features": MOALIGN | {"alignment.features": ("videomae",)},
    "moalign-plain-relations": MOALIGN | {"alignment.relation.tau": float("inf")},
    "videorepa": VIDEOREPA | {"optimisers.projector.rate": 2e-6, "model.train": "full"},
    "videorepa-5b": VIDEOREPA | {
        "model.path": "THUDM/CogVideoX-5b", "model.rank": 128, "model.alpha": 64.0, "optimisers.lora.warmup": 100,
        "optimisers.lora.weight_decay": 1e-4, "optimisers.projector.rate": 1e-4, "training.steps": 2000,
    },
    "track4gen": {"alignment.loss": "points"},
    "wan2.1-sam2videox": {"alignment.block": 17, "model.path": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"},
    "hunyuan-sam2videox": {
        "alignment.block": 35, "model.path": "hunyuanvideo-community/HunyuanVideo", "model.targets": (
            r"(single_)?transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)",
        ),
    },
    "ltx-sam2videox": {"alignment.block": 16, "model.path": "Lightricks/LTX-Video"},
    "wan2.1-moalign": MOALIGN | {"model.path": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"},
}  # fmt: skip


def write(path, text):
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("recipe", [Recipe(), read_recipe("sam2videox")], ids=["defaults", "recipe"])
def test_defaults_are_the_papers(recipe):
    flat = flatten(recipe)
    assert {key: flat[key] for key in PAPER} == PAPER


def test_every_shipped_recipe_is_what_its_name_says():
    assert set(shipped_recipes()) == set(SHIPPED)
    paper = read_recipe("sam2videox")
    for name, expected in SHIPPED.items():
        assert {key: value for key, value, _ in differences(read_recipe(name), paper)} == expected, name


def test_every_key_is_explained(terminal):
    import contextlib
    import io

    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        parse_recipe(["sam2videox", "--help"])
    text = flowing(shown.getvalue())
    for key in flatten(Recipe()):
        assert f"--{key}".replace("_", "-") in text or f"--{key}" in text, key
    assert "swallows small steps" in text and "Window, similarity and boundary" in text


def test_command_line_overrides_the_file(tmp_path):
    path = write(tmp_path / "r.yaml", "training: {steps: 7, batch: 4}\nalignment: {schedule: [[0, 0], [10, 1]]}")
    recipe = parse_recipe([path, "--training.steps", "9", "--run.shard", "True", "--training.ema", "0.9"])
    assert (recipe.training.steps, recipe.training.batch, recipe.training.ema) == (9, 4, 0.9)
    assert recipe.run.shard and recipe.alignment.schedule == ((0, 0.0), (10, 1.0))


def test_numbers_that_yaml_reads_as_text(tmp_path):
    recipe = read_recipe(write(tmp_path / "r.yaml", "optimisers: {lora: {rate: 1e-3}}\ntraining: {steps: 1e2}"))
    assert recipe.optimisers.lora == Optimiser(rate=1e-3, warmup=200)  # what is not said keeps the group's own default
    assert recipe.training.steps == 100 and isinstance(recipe.training.steps, int)


def test_a_bare_no_and_null(tmp_path):
    path = write(
        tmp_path / "r.yaml", "training: {precision: no, ema: null}\nalignment: {loss: none}\nrun: {tracker: null}"
    )
    recipe = read_recipe(path)
    assert (recipe.training.precision, recipe.training.ema, recipe.run.tracker) == ("no", None, "none")


def test_targets_are_a_list_or_one_text(tmp_path):
    pattern = r"blocks\.\d+\.(to_q|to_k)"
    for text, targets in {f"'{pattern}'": (pattern,), "[to_q, to_k]": ("to_q", "to_k"), "to_q": ("to_q",)}.items():
        recipe = read_recipe(write(tmp_path / "r.yaml", f"model: {{targets: {text}}}"))
        assert recipe.model.targets == targets and is_pattern(targets) == (targets == (pattern,))
    assert parse_recipe(["sam2videox", "--model.targets", pattern]).model.targets == (pattern,)


def test_a_base_is_merged_group_by_group(tmp_path):
    recipe = read_recipe(write(tmp_path / "r.yaml", "base: repa-dino\nalignment: {weight: 0.1}"))
    assert recipe.alignment.loss == "repa" and recipe.alignment.weight == 0.1


def test_a_base_lies_beside_the_file(tmp_path):
    (tmp_path / "below").mkdir()
    write(tmp_path / "common.yaml", "base: repa-dino\nalignment: {weight: 0.1}")
    path = write(tmp_path / "below" / "r.yaml", "base: ../common.yaml")
    assert read_recipe(path).alignment.weight == 0.1
    circle = write(tmp_path / "circle.yaml", "base: circle.yaml")
    with pytest.raises(TrainerError, match=r"circle.yaml: base must be the name of another recipe"):
        read_recipe(circle)


def test_a_file_that_says_nothing_is_the_default(tmp_path):
    assert read_recipe(write(tmp_path / "r.yaml", "# nothing yet\n")) == Recipe()


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    """The first `training` would be dropped without a word, and 3000 steps be made."""
    path = write(tmp_path / "r.yaml", "training: {steps: 7}\nmodel: {rank: 4}\ntraining: {batch: 4}\n")
    with pytest.raises(TrainerError, match=r"r\.yaml is no YAML \(training is there twice.*line 3, column 1"):
        read_recipe(path)
    anchors = (
        "training: &all {steps: 7, batch: 2}\noptimisers: {lora: &one {<<: {rate: 1}, rate: 2}, projector: {<<: *one}}"
    )
    assert read_recipe(write(tmp_path / "r.yaml", anchors)).optimisers.projector.rate == 2


def test_a_file_in_another_encoding(tmp_path):
    (tmp_path / "r.yaml").write_bytes("model: {path: Größe}".encode("latin-1"))
    with pytest.raises(TrainerError, match="is no YAML"):
        read_recipe(str(tmp_path / "r.yaml"))


def test_the_last_width_has_no_norm_whose_groups_must_divide_it(tmp_path):
    check(read_recipe(write(tmp_path / "r.yaml", "projector: {widths: [512, 5]}")))


def test_no_clipping(tmp_path):
    check(read_recipe(write(tmp_path / "r.yaml", "training: {clip: .inf}")))


@pytest.mark.parametrize("name", [*SHIPPED])
def test_a_recipe_survives_being_written(name, tmp_path):
    recipe = read_recipe(name)
    path = write(tmp_path / "r.yaml", yaml.safe_dump(to_settings(recipe)))
    assert read_recipe(path) == recipe == build(to_settings(recipe))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimisers: {lora: {rat: 1}}", "no key optimisers.lora.rat. The nearest one is optimisers.lora.rate"),
        ("training: {rank: 8}", "no key training.rank. The nearest one is training."),
        ("stepps: 1", "no key stepps"),
        ("training: {steps: many}", "training.steps must be a whole number, got 'many'"),
        ("training: {steps: 1.5}", "training.steps must be a whole number, got 1.5"),
        ("training: {steps: true}", "training.steps must be a whole number, got True"),
        ("training: {steps: 0}", "training.steps must be at least 1, got 0"),
        ("training: {clip: .inf, steps: .inf}", "training.steps must be a whole number, got inf"),
        ("training: 5", "training must hold keys and values, got 5"),
        ("alignment: {k: 1.5}", "alignment.k must be at most 1, got 1.5"),
        ("alignment: {loss: [lgf]}", "alignment.loss must be text, got"),
        ("alignment: {features: [a, b, c]}", "one or two names, got 3 alignment.features. Set alignment.weights to 3"),
        ("alignment: {features: a}", "alignment.features must be a list, got 'a'"),
        ("alignment: {schedule: [[0, 1], [1]]}", r"alignment.schedule must be a longer list, got \[1\]"),
        ("optimisers: {lora: {betas: [0.9]}}", r"optimisers.lora.betas must be a longer list, got \[0.9\]"),
        ("trainig: {steps: 1}", "no key trainig. The nearest one is training$"),
        ("optimisers: {lora: {rate: .nan}}", "optimisers.lora.rate must be a finite number, got nan"),
        ("optimisers: {lora: {rate: .inf}}", "optimisers.lora.rate must be a finite number, got inf"),
        ("optimisers: {projector: {betas: [0.9, 1.5]}}", "optimisers.projector.betas must be below 1, got 1.5"),
        ("alignment: {weight: -1}", "alignment.weight must be at least 0, got -1"),
        ("alignment: {schedule: [[0, .nan]]}", "alignment.schedule must be a finite number, got nan"),
        ("training: {clip: 0}", "training.clip must be above 0, got 0"),
        ("training: {ema: 1}", "training.ema must be below 1, got 1"),
        ("model: {alpha: 0}", "model.alpha must be above 0, got 0"),
        ("projector: {widths: [512, 0]}", "projector.widths must be at least 1, got 0"),
        ("base: 5", "base must be the name of another recipe, got 5"),
        ("alignment: {schedule: [[5, 1], [1, 0]]}", "in the order of their steps"),
        ("projector: {groups: 5}", "projector.groups is 5, which does not divide a width of 768"),
        ("projector: {widths: []}", r"projector.widths must be a list of 1 at least, got \[\]"),
        ("alignment: {features: []}", r"alignment.features must be a list of 1 at least, got \[\]"),
        ("optimisers: {projector: {final_rate: -1}}", "optimisers.projector.final_rate must be at least 0, got -1"),
        ("run: {shard: 1}", "run.shard must be true or false, got 1"),
        ("model: {path: 5}", "model.path must be text, got 5"),
        ("run: {output: null}", "run.output must be text, got None"),
        ("base: nothing", "there is no recipe nothing: give a YAML file, or one of .*, bidirectional-lgf,"),
        ("[1, 2]", "must hold keys and values"),
        ("a: [1", "is no YAML"),
    ],
)
def test_mistakes_are_named_in_one_line(text, message, tmp_path):
    with pytest.raises(TrainerError, match=message) as error:
        check(read_recipe(write(tmp_path / "r.yaml", text)))
    assert "\n" not in str(error.value)


def test_a_command_without_a_recipe():
    for arguments in ([], ["--training.steps", "3"]):
        with pytest.raises(TrainerError, match=r"name a recipe first: a YAML file, or one of .*, bidirectional-lgf,"):
            parse_recipe(arguments)
    with pytest.raises(TrainerError, match=r"there is no recipe gone\.yaml"):
        parse_recipe(["gone.yaml"])


def test_rates_of_the_paper():
    lora, projector = Recipe().optimisers.lora, Recipe().optimisers.projector
    assert [lora.rate_at(step, 3000) for step in (0, 99, 199, 200, 2999)] == pytest.approx(
        [5e-7, 5e-5, 1e-4, 1e-4, 1e-4]
    )
    assert [projector.rate_at(step, 3000) for step in (0, 149)] == pytest.approx([5e-4 / 150, 5e-4])
    middle, last = 150 + (3000 - 150) // 2 - 1, 2999
    assert projector.rate_at(middle, 3000) == pytest.approx((5e-4 + 1e-5) / 2)
    assert projector.rate_at(last, 3000) == pytest.approx(1e-5)
    assert projector.rate_at(5000, 3000) == projector.rate_at(150, 150) == pytest.approx(1e-5), "and it stays there"
    quarter = Optimiser(rate=1.0, warmup=0, final_rate=0.0).rate_at(24, 100)
    assert quarter == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
