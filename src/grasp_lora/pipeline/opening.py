"""A run folder opened for work: inputs checked, manifest written, locked, and left cleanly when it is stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from ..config import Config, load_config, to_yaml
from ..errors import ConfigError, Interrupted, RunError, TrainingError
from ..runs import (
    Progress,
    QuietProgress,
    RunFolder,
    build_manifest,
    changed_inputs,
    check_trackers,
    graceful_interrupt,
    tracked,
)
from .checks import preflight
from .models import location, resolve_device
from .stages import Run


def default_folder(config: Config) -> str:
    """Return the run folder: `run.dir`, or runs/<task>-<language>-<seed>."""
    return config.run.dir or f"runs/{config.task.name}-{config.task.language}-{config.seed}"


def inputs_of(config: Config) -> dict[str, str | None]:
    """Return the local files and folders, or hub names, that a configuration reads, by role."""
    found: dict[str, str | None] = {"model": location(config.model)}
    for side in ("source", "target"):
        files = getattr(config.data, side)
        found |= {f"data.{side}.{name}": getattr(files, name) for name in type(files).model_fields}
    found |= {"adapters.source": config.adapters.source, "adapters.target": config.adapters.target}
    return found | {f"adapters.others.{i}": path for i, path in enumerate(config.adapters.others)}


def open_folder(config: Config, *, resume: bool, overwrite: bool, command: Sequence[str] = ()) -> RunFolder:
    """Create or resume the run folder and write its manifest.

    Raises `RunError` for a folder that exists (unless asked), another configuration, or inputs that changed.
    """
    path = default_folder(config)
    device = str(resolve_device(config.model.device))
    manifest = build_manifest(config, inputs_of(config), command=command, device=device)
    if resume:
        folder = RunFolder.resume(path, to_yaml(config))
        try:
            _same_inputs(folder, manifest)
        except BaseException:
            folder.close()
            raise
        return folder
    folder = RunFolder.create(path, to_yaml(config), overwrite=overwrite)
    folder.write_manifest(manifest)
    return folder


def _same_inputs(folder: RunFolder, manifest: dict[str, Any]) -> None:
    """Compare the inputs with those of the manifest, or write it where the start was killed before it."""
    if not (folder.path / "manifest.json").exists() and not (folder.path / "stages").exists():
        folder.write_manifest(manifest)
        return
    changed = changed_inputs(folder.manifest(), manifest)
    if changed:
        raise RunError(
            f"inputs of run {folder.path} changed since it was started: {'; '.join(changed)}. Start a new run.dir."
        )


def saved_config(path: str | Path) -> Config:
    """Return the resolved configuration of an existing run folder."""
    folder = RunFolder.open(path)
    return load_config(folder.path / "config.yaml", [f"run.dir={folder.path}"])


def working(
    config: Config, progress: Progress | None = None, *, resume: bool = False, overwrite: bool = False,
    command: Sequence[str] = (), needs: Sequence[str] | None = None, extra: Mapping[str, str] | None = None,
) -> AbstractContextManager[Run]:  # fmt: skip
    """Check everything that needs no weights (`preflight`), then open the run folder for work.

    The folder is locked, and Ctrl-C is a clean stop after the current step. `needs` are splits that must be there,
    `extra` adapters to check beside the configured ones.
    """

    @contextmanager
    def opened() -> Any:
        if resume and overwrite:
            raise ConfigError("--resume goes on with a run, --overwrite replaces it. Give one of them.")
        shown = progress or QuietProgress()
        told = lambda: shown.warn("stopping after this step; press Ctrl-C again to stop at once")  # noqa: E731
        with graceful_interrupt(told) as flag, clean_stops():
            checked = preflight(config, needs, extra)
            for warning in checked.warnings:
                shown.warn(warning)
            check_trackers(config.run.report_to)
            with (
                open_folder(config, resume=resume, overwrite=overwrite, command=command) as folder,
                tracked(shown, config.run.report_to, folder.path, config) as reported,
            ):
                yield Run(config, folder, checked.splits, reported, lambda: flag.requested)

    return cast(AbstractContextManager[Run], opened())


@contextmanager
def clean_stops() -> Iterator[None]:
    """Turn a second Ctrl-C, and memory that runs out anywhere, into an error that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("stopped at once. Go on from the last checkpoint with --resume.") from None
    except torch.OutOfMemoryError as error:
        first = next(iter(str(error).splitlines()), "")
        raise TrainingError(
            f"out of GPU memory ({first}). Lower evaluate.batch_size, task.max_length or the eval_batch_size of the "
            "stage, or set model.quantization."
        ) from None
