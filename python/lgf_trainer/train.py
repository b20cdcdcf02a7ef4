"""Fine-tune CogVideoX with a LoRA, a projector and an alignment loss, on what `lgf extract` has cached.

    lgf train sam2videox --data.cache cache --run.output runs/dog      the paper's recipe
    lgf train my-recipe.yaml --training.steps 500                      your own, and a change to it
    accelerate launch -m lgf_cli train sam2videox ...          on several GPUs and nodes

A run that is started again goes on from its last checkpoint.
"""

import tyro

from .runtime.errors import TrainerError, is_disk_full
from .runtime.recipe import Recipe, read_recipe, shipped_recipes
from .runtime.text import with_help


def main(arguments: list[str]) -> int:
    """`lgf train RECIPE [--overrides]`."""
    recipe = parse(arguments)
    from lgf_kernels import BackendUnavailableError

    from .run import TrainingRun  # late, so that --help is fast

    try:
        TrainingRun(recipe).train()
    except BackendUnavailableError as error:
        raise TrainerError(str(error)) from error
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise TrainerError(
            f"{recipe.run.output}: the disk is full. Make room and run again: it goes on from there"
        ) from error
    return 0


def parse(arguments: list[str]) -> Recipe:
    """The recipe that the command line names, with its overrides."""
    name, overrides = (arguments[0], arguments[1:]) if arguments and arguments[0][:1] != "-" else (None, arguments)
    if name is None and not {"-h", "--help"} & set(overrides):
        raise TrainerError(f"name a recipe first: a YAML file, or one of {', '.join(shipped_recipes())}")
    return tyro.cli(
        with_help(Recipe),
        prog=f"lgf train {name or 'RECIPE'}",
        description=f"{__doc__}\nRecipes: {', '.join(shipped_recipes())}.",
        default=read_recipe(name) if name else Recipe(),
        args=overrides,
        config=(tyro.conf.FlagConversionOff,),
    )
