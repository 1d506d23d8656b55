"""What `doctor` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape

from .tables import console, print_json, table


def show_examination(facts: Mapping[str, Any], as_json: bool) -> None:
    """Print what `doctor` found."""
    if as_json:
        print_json(facts)
        return
    shown, system = console(), facts["system"]
    installed = {name: version for name, version in facts["versions"].items() if version}
    shown.print(table(["package", "version"], list(installed.items())))
    shown.print(
        f"{system['cpu']}, {system['cores']} cores, {system['threads']} threads in use, "
        f"{(system['memory_bytes'] or 0) / 2**30:.1f} GiB memory; "
        f"{facts['free_disk_bytes'] / 2**30:.1f} GiB free on the disk of the run folder",
        markup=False,
    )
    for gpu in facts["gpus"]:
        shown.print(
            f"{gpu['name']}: compute capability {gpu['compute_capability']}, bf16 {'yes' if gpu['bf16'] else 'no'}, "
            f"{gpu['free_memory_bytes'] / 2**30:.1f} of {gpu['memory_bytes'] / 2**30:.1f} GiB free",
            markup=False,
        )
    if not facts["gpus"]:
        shown.print(facts["gpu"], markup=False)
    rows = [[name, "yes" if extra["installed"] else escape(extra["how"])] for name, extra in facts["extras"].items()]
    shown.print(table(["extra", "installed"], rows))
    shown.print(f"demo backbone: {facts['demo_backbone']}", markup=False)
    for problem in facts["problems"]:
        shown.print(f"[bold red]error[/] {escape(problem)}")
