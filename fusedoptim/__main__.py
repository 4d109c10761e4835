"""`python -m fusedoptim`: what this installation is and what it runs on."""

import argparse
import json
from pathlib import Path

from fusedoptim import build_info


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def main() -> None:
    """Print ``build_info()``, and where the package lies, as an aligned list or, with ``--json``, as a JSON object."""
    parser = argparse.ArgumentParser(prog="python -m fusedoptim", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    info = {"path": str(Path(__file__).resolve().parent), **build_info()}
    if parser.parse_args().json:
        print(json.dumps(info, indent=2))
        return
    width = max(map(len, info))
    for name, value in info.items():
        print(f"{name.replace('_', ' '):<{width}}  {_text(value)}")


if __name__ == "__main__":
    main()
