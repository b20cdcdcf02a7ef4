"""Report what is installed, what runs on this machine, and why the rest does not.

For bug reports: versions, devices, backends, the compile options of the native modules, and the
environment variables that have an effect. It contains no paths, user names or host names.

  lgf doctor            for people
  lgf doctor --json     for programs
"""

import argparse
import json


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="lgf doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return result


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    from lgf_kernels import doctor  # imports torch, which help does not need

    report = doctor.examine()
    print(json.dumps(report, indent=2) if options.json else doctor.as_text(report))
    return 0
