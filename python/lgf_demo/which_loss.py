"""`lgf demo --losses`, from the options of the command to the page and the picture."""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from lgf_cli.errors import UserError
from lgf_trainer.runtime.progress import progress
from lgf_trainer.runtime.text import format_table

from lgf_kernels.core.files import write_whole

from .losses import LOSSES
from .study import BEFORE, QUICK, REFERENCE, Settings, missing, run
from .study_report import PAGE, PICTURE, costs_by_loss, page, picture, runs_by_loss, table


def chosen(words: list[str]) -> list[str]:
    """Return the names of losses that the words of `--losses` stand for, in the order of the table.

    Raises:
        UserError: there is no such loss.
    """
    if unknown := set(words) - {"all", *LOSSES}:
        raise UserError(f"--losses: there is no {sorted(unknown)[0]!r}. There are: all, {', '.join(LOSSES)}")
    return [name for name in LOSSES if "all" in words or name in words]


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the size of the study that the options ask for."""
    whole = QUICK if options.quick else Settings()
    seeds = tuple(seed + options.seed for seed in whole.seeds)
    return replace(whole, seeds=seeds, steps=options.steps or whole.steps)


def compare_losses(options: argparse.Namespace) -> Path:
    """Make the runs that the output folder lacks, print the table, write page and picture; returns the page's path."""
    if options.video:
        raise UserError(
            "--losses is judged by motion that is known, and that of a video is not. Leave --video or --losses out"
        )
    names, settings, folder = chosen(options.losses), settings_of(options), options.output
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    runs, costs = missing(folder, settings, names)
    total = len(settings.seeds) * (len(names) + 1)
    print(f"lgf demo: {len(names)} losses, seeds {', '.join(map(str, settings.seeds))}, {settings.steps} steps each")
    if len(runs) < total:
        print(f"{total - len(runs)} of {total} runs are in {folder} already, and are not made again")
    with progress(total=len(runs) + len(costs), bar_format="{desc:<30} {bar:30} {n_fmt}/{total_fmt} {elapsed}") as bar:
        for done in run(folder, settings, names, options.backend):
            bar.set_description_str(done, refresh=False)
            bar.update()
    rows, costs = ({n: v for n, v in found(folder, settings).items() if n in (*names, BEFORE)}
                   for found in (runs_by_loss, costs_by_loss))  # fmt: skip
    write_whole(folder / PAGE, page(rows, costs, settings).encode())
    write_whole(folder / PICTURE, picture(rows, costs))
    print(f"\n{format_table(table(rows, costs))}\n")
    print(
        f"Means over {len(settings.seeds)} seeds, with the least and the largest; end-point errors (EPE) in tokens, over the"
    )
    print(f"moving tokens of clips never trained on. The weights give every loss the first gradient of {REFERENCE}.")
    print(f"Written: {folder / PAGE}, {folder / PICTURE}")
    return folder / PAGE
