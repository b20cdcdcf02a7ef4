"""Extraction at scale: short generated clips through `lgf extract --teacher none` with a stub encoder, killed and started again.

    python benchmarks/tools/extraction_at_scale.py FOLDER [--clips 10000] [--kills 3]

Two processes extract; both are killed (SIGKILL) at random places, and the same command goes on. In the end every clip must be
there once, windows that a kill left must be as they were, and no process may have grown by more than 64 MiB. Printed are windows
a second, memory, and what opening the cache and a sample cost. Half of the clips are files of a folder, half are in shards.
"""

import here  # isort: skip

import argparse
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lgf_cli
import torch
from lgf_trainer import extract
from lgf_trainer.data.cache import WindowCache
from lgf_trainer.data.export import encode_video
from lgf_trainer.data.index import listed
from lgf_trainer.data.samples import TrainingSamples
from lgf_trainer.generators.base import Generator
from lgf_trainer.runtime.files import file_hash
from lgf_trainer.testing import FRAMES, make_tiny_pipeline
from torch import Tensor
from torch.nn.functional import avg_pool2d

SHARD = 1000  # clips
EVENTS = ("open", "os.scandir", "os.listdir")
GROWTH = 64  # MiB, of a process after its first tenth of windows


class StubEncoder:
    """Encoder that pools pixels instead of running a VAE and a text encoder; it is called as `Encoders` is."""

    def __init__(self, generator: Generator, *_: object):
        self.channels, self.text = 2 * generator.config["out_channels"], generator.text

    def __call__(self, video: Tensor, caption: str, seed: str) -> dict[str, Tensor]:
        pooled = avg_pool2d(video[::4], 8).mean(1)
        number = torch.tensor(float(int(caption.split()[-1])))
        return {"latents": pooled.expand(self.channels, *pooled.shape), "text": number.expand(self.text)}


def make_clips(folder: Path, count: int) -> Path:
    """Write the clips with their captions, unless they are there; return their folder."""
    place = folder / "clips"
    if (place / "complete").exists():
        return place
    rng = torch.Generator().manual_seed(0)
    for first in range(0, count, SHARD):
        numbers = range(first, min(first + SHARD, count))
        part = place / f"{first:06d}"
        part.mkdir(parents=True, exist_ok=True)
        half = numbers[len(numbers) // 2]
        with tarfile.open(place / f"{first:06d}.tar", "w") as shard:
            for number in numbers:
                cells = torch.randint(256, (8, 12, 3), generator=rng, dtype=torch.uint8)
                picture = cells.repeat_interleave(8, 0).repeat_interleave(8, 1)
                frames = torch.stack([picture.roll(2 * t, 1) for t in range(FRAMES)]).numpy()
                for suffix, content in (("mp4", encode_video(frames, 8, {})), ("txt", f"clip {number}".encode())):
                    name = f"{number:06d}.{suffix}"
                    if number < half:
                        (part / name).write_bytes(content)
                    else:
                        member = tarfile.TarInfo(name)
                        member.size = len(content)
                        shard.addfile(member, io.BytesIO(content))
    (place / "complete").touch()
    return place


class Extraction:
    """`lgf extract` on two processes of this script; each logs its windows and memory."""

    def __init__(self, folder: Path, output: str):
        self.folder, self.output = folder, folder / output
        self.logs = [folder / f"{output}-{rank}.jsonl" for rank in range(2)]

    def words(self) -> list[str]:
        """Return the arguments of `lgf extract`."""
        options = {"output": self.output, "model": self.folder / "model", "teacher": "none"}
        return [
            str(self.folder / "clips"),
            *(str(word) for name, value in options.items() for word in (f"--{name}", value)),
        ]

    def report(self) -> dict[str, Any]:
        """Return what the last run that came to its end has reported."""
        return json.loads((self.output / "report.json").read_text())

    def start(self) -> list[subprocess.Popen]:
        """Start the processes."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        paths = os.pathsep.join(map(str, (here.ROOT, here.ROOT / "python", Path(__file__).parent)))
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": paths}
        shared |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "TQDM_DISABLE": "1"}
        return [
            subprocess.Popen(
                [sys.executable, "-P", __file__, "--worker", log, *self.words()],
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL, stderr=log.with_suffix(".txt").open("w"),
            )
            for rank, log in enumerate(self.logs)
        ]  # fmt: skip

    def finish(self) -> dict[str, Any]:
        """Run to the end; return the report."""
        ended = [process.wait() for process in self.start()]
        if any(ended):
            raise SystemExit(
                f"the extraction into {self.output} ended with {ended}; {self.logs[0].with_suffix('.txt')} says why"
            )
        return self.report()

    def kill_at(self, windows: int) -> int:
        """Kill both processes when so many windows are there; return how many are in the end."""
        processes = self.start()
        while self.count() < windows and all(process.poll() is None for process in processes):
            time.sleep(random.uniform(0, 0.05))
        for process in processes:
            process.send_signal(signal.SIGKILL)
        ended = [process.wait() for process in processes]
        if ended != [-signal.SIGKILL] * 2:
            raise SystemExit(f"the extraction into {self.output} was to be killed, and ended with {ended}")
        return self.count()

    def count(self) -> int:
        """Return how many windows are there."""
        return len(listed(self.output / "windows"))

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of the windows that are there."""
        cache = WindowCache(self.output)
        return {key: file_hash(cache.path(key)) for key in cache.keys()}

    def memory(self) -> list[list[tuple[int, float, float]]]:
        """Return (windows written, MiB, seconds of processor time) of both processes, over time."""
        return [[tuple(json.loads(line)) for line in log.read_text().splitlines()] for log in self.logs]


def work(log: Path, words: list[str]) -> int:
    """Run `lgf extract WORDS` with the stub encoder, and log windows and memory twice a second."""
    written = 0
    extract.Encoders = StubEncoder
    write = WindowCache.write

    def counted(*arguments: object) -> None:
        nonlocal written
        write(*arguments)
        written += 1

    WindowCache.write = counted

    def watch() -> None:
        with log.open("w") as file:
            while True:
                file.write(json.dumps([written, resident(), time.process_time()]) + "\n")
                file.flush()
                time.sleep(0.5)

    threading.Thread(target=watch, daemon=True).start()
    return lgf_cli.main(["extract", *words])


def resident() -> float:
    """Return the memory of this process in MiB, of its own and not of files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise SystemExit("/proc/self/status says no RssAnon: this tool needs Linux")


def check(report: dict[str, Any], cache: WindowCache, clips: int) -> None:
    """Refuse a cache in which a clip is missing or is there twice, or a report that says otherwise."""
    keys = cache.keys()
    if sorted(report["written"] + report["present"]) != keys or report["skipped"] or report["damaged"]:
        raise SystemExit(f"{cache.folder}: the report is not of the windows that are there")
    captions = sorted(cache.read(key).about["caption"] for key in keys)
    if captions != sorted(f"clip {number}" for number in range(clips)):
        raise SystemExit(f"{cache.folder}: {len(set(captions))} clips in {len(captions)} windows, {clips} are expected")


def events(run: Callable[[], object]) -> dict[str, int]:
    """Return how many files and folders are opened while `run` runs."""
    counts, counting = dict.fromkeys(EVENTS, 0), True

    def hook(event: str, _: tuple) -> None:
        if counting and event in counts:
            counts[event] += 1

    sys.addaudithook(hook)
    run()
    counting = False
    return counts


def sample(folder: Path, output: Path, steps: int) -> None:
    """Print what opening the cache and sampling from it costs."""
    data = TrainingSamples(WindowCache(output), Generator.read(str(folder / "model")), (), seed=0)
    for name, run, count in (
        ("listing the folder", lambda: listed(output / "windows"), 1),
        ("opening the cache", lambda: WindowCache(output).keys(), 1),
        ("samples", lambda: [data[number] for number in range(steps)], steps),
    ):
        begun = time.monotonic()
        run()
        seconds = time.monotonic() - begun
        print(f"{count} x {name}: {1e3 * seconds / count:.2f} ms each; files and folders opened: {events(run)}")


def main(arguments: list[str]) -> int:
    """Run `python benchmarks/tools/extraction_at_scale.py ARGUMENTS`; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of clips, the model and caches; clips that are there are kept")
    parser.add_argument("--clips", type=int, default=10_000, help="(default: 10000)")
    parser.add_argument("--kills", type=int, default=3, help="(default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the places where it is killed")
    given = parser.parse_args(arguments)
    make_clips(given.folder, given.clips)
    make_tiny_pipeline(given.folder / "model", image_to_video=False)
    extraction, rng, kept = Extraction(given.folder, "cache"), random.Random(given.seed), {}
    for _ in range(given.kills):
        there = extraction.kill_at(rng.randint(extraction.count() + 1, given.clips - 1))
        print(f"killed with {there} windows", flush=True)
        check_kept(kept, kept := extraction.hashes())
    report = extraction.finish()
    check(report, WindowCache(extraction.output), given.clips)
    check_kept(kept, extraction.hashes())
    made, seconds = len(report["written"]), report["seconds"]
    print(
        f"{len(report['present'])} windows were kept and {made} written in {seconds:.1f} s: {made / seconds:.0f} a second"
    )
    for rank, log in enumerate(extraction.memory()):
        print_memory(rank, log)
    sample(given.folder, extraction.output, min(1000, given.clips))
    return 0


def check_kept(before: dict[str, str], after: dict[str, str]) -> None:
    """Refuse windows that were changed or lost by going on."""
    if not before.items() <= after.items():
        raise SystemExit("windows that were there have been changed or lost")


def print_memory(rank: int, log: list[tuple[int, float, float]]) -> None:
    """Print what a process has used; refuse one that has grown."""
    made, _, seconds = log[-1]
    working = [(windows, size) for windows, size, _ in log if windows >= max(1, made / 10)] or [log[-1][:2]]
    shown = ", ".join(f"{size:.0f} MiB after {windows}" for windows, size in working[:: max(1, len(working) // 6)])
    print(f"process {rank}: {made} windows in {seconds:.0f} s of processor time, start included; {shown}")
    if max(size for _, size in working) - working[0][1] > GROWTH:
        raise SystemExit(f"process {rank} has grown by more than {GROWTH} MiB")


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(work(Path(words[1]), words[2:]) if words[:1] == ["--worker"] else main(words))
