"""Report of `lgf doctor`: installed versions, what runs on this machine, and why the rest does not."""

import os
import platform
from importlib import metadata

import torch

from . import __version__
from .core import native
from .core.registry import backends
from .tested import TESTED, untested_reason

PACKAGES = [name for name in TESTED if name not in ("python", "torch")]
VARIABLES = (
    "LGF_BACKEND",
    "LGF_CPU_ISA",
    "LGF_AUTOTUNE",
    "LGF_SCRATCH_MIB",
    "LGF_VERIFY",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "TRITON_INTERPRET",
)


def examine() -> dict:
    """Return the report as plain data."""
    versions = {"python": platform.python_version(), "torch": torch.__version__} | _package_versions()
    return {
        "versions": {"lgf-kernels": __version__} | versions,
        "untested": {name: why for name, version in versions.items() if (why := untested_reason(name, version))},
        "system": {
            "platform": platform.platform(),
            "cpu": cpu_name(),
            "threads": torch.get_num_threads(),
            "torch cpu capability": torch.backends.cpu.get_cpu_capability(),
            "torch cuda": torch.version.cuda or torch.version.hip or "none (CPU build)",
        },
        "devices": _cuda_devices(),
        "backends": [row._asdict() for row in backends()],
        "native modules": {module: _module(device_type) for device_type, module in native.MODULES.items()},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def as_text(report: dict) -> str:
    """Format the report for a terminal."""
    untested = {name: f" ({why})" for name, why in report["untested"].items()}
    sections = [
        ("versions", [(name, version + untested.get(name, "")) for name, version in report["versions"].items()]),
        ("system", list(report["system"].items())),
    ]
    devices = [(row["name"], row["about"]) for row in report["devices"]]
    sections.append(("GPUs", devices or [("none", "torch sees no CUDA device")]))
    rows = [(b["name"], ("available: " if b["available"] else "no: ") + b["reason"]) for b in report["backends"]]
    sections.append(("backends, in order of preference", rows))
    for module, about in report["native modules"].items():
        sections.append((f"lgf_kernels.{module}", list(about.items())))
    sections.append(("environment", list(report["environment"].items()) or [("none set", ", ".join(VARIABLES))]))
    width = max(len(str(key)) for _, rows in sections for key, _ in rows) + 2
    return "\n\n".join(
        "\n".join([title, *(f"  {key!s:<{width}}{value}" for key, value in rows)]) for title, rows in sections
    )


def _package_versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def cpu_name() -> str:
    """Return the processor's model name from /proc/cpuinfo, else the name from `platform`."""
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _cuda_devices() -> list[dict[str, str]]:
    devices = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        about = (
            f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.multi_processor_count} SMs, "
            f"{properties.total_memory / 2**30:.0f} GiB"
        )
        devices.append({"name": f"cuda:{index}", "about": about})
    return devices


def _module(device_type: str) -> dict[str, str]:
    module, reason = native.load(device_type)
    if module is None:
        return {"available": "no", "reason": reason}
    devices = range(torch.cuda.device_count()) if device_type == "cuda" and torch.cuda.is_available() else ()
    if reasons := [reason for index in devices if (reason := native.loading_failure(index))]:
        return {"available": "no", "reason": "; ".join(dict.fromkeys(reasons))}
    return {"available": "yes", **{key: str(value) for key, value in module.build_info().items()}}
