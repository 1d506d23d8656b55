"""The stages alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import Config
from ..errors import ConfigError, check_choice
from .options import (
    AnsweringAdapter,
    AsJson,
    ConfigFile,
    GoOn,
    Overwrite,
    Quiet,
    ReportTo,
    ScoredAdapter,
    Sets,
    command_line,
    out,
    read_config,
)

if TYPE_CHECKING:
    from ..pipeline.stages import Run

app = typer.Typer()


@dataclass(frozen=True)
class _Stage:
    """One stage in a run folder, which is made, or gone on with when it is there with the same settings.

    `needs` are the splits it cannot do without, `replaces` the stages that --overwrite makes anew, `extra` adapters to
    check beside the configured ones.
    """

    config: Config
    quiet: bool
    overwrite: bool
    resume: bool
    needs: Sequence[str]
    replaces: Sequence[str]
    extra: dict[str, str] | None = None

    def run(
        self, work: Callable[[Run], dict[str, Any]], first: Callable[[Run], object] = lambda _run: None
    ) -> dict[str, Any]:
        """Do `work`; `first` checks what earlier stages must have left, before anything is removed."""
        from ..pipeline.opening import default_folder, working
        from ..runs import make_progress
        from ..runs.folder import MARKER

        exists = (Path(default_folder(self.config)) / MARKER).is_file()
        with working(
            self.config, make_progress(self.quiet), resume=exists or self.resume, command=command_line(),
            needs=self.needs, extra=self.extra,
        ) as opened:  # fmt: skip
            first(opened)
            for name in self.replaces if self.overwrite else ():
                opened.folder.stage(name).reset()
            result: dict[str, Any] = work(opened)
            return result


@app.command("train-adapter")
def train_adapter(
    role: Annotated[str, typer.Option(help="source or target.")] = "target",
    config: ConfigFile = None,
    sets: Sets = None,
    overwrite: Overwrite = False,
    resume: GoOn = False,
    report_to: ReportTo = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train the source or the target adapter alone."""
    from ..pipeline.stages import ADAPTER, adapter_stage
    from .facts import show_facts

    check_choice("--role", role, ("source", "target"))
    resolved = read_config(config, sets, report_to)
    if getattr(resolved.adapters, role) is not None:
        raise ConfigError(f"adapters.{role} names an adapter already. Remove the setting to train one here.")

    def work(opened: Run) -> dict[str, Any]:
        adapter_stage(opened, role)
        stage = opened.folder.stage(f"{role}_adapter")
        return {"adapter": str(stage.path / ADAPTER), **(stage.done() or {})["outcome"]}

    stage = _Stage(resolved, quiet, overwrite, resume, [f"{role}.train"], [f"{role}_adapter"])
    show_facts(stage.run(work), as_json)


@app.command()
def search(
    config: ConfigFile = None,
    sets: Sets = None,
    overwrite: Overwrite = False,
    resume: GoOn = False,
    report_to: ReportTo = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Learn the prune ratio; adapters come from the configuration or from earlier stages of the run folder."""
    from ..pipeline.checks import required_splits
    from ..pipeline.members import members
    from ..pipeline.stages import all_adapters, search_stage
    from .console import show_search

    resolved = read_config(config, sets, report_to)
    stage = _Stage(resolved, quiet, overwrite, resume, required_splits(resolved), ["search"])
    show_search(stage.run(lambda opened: search_stage(opened, members(opened, all_adapters(opened)))), as_json)


@app.command()
def finalize(
    ratio: Annotated[float | None, typer.Option(help="Prune ratio, 0 to 1; default: what search learned.")] = None,
    config: ConfigFile = None,
    sets: Sets = None,
    overwrite: Overwrite = False,
    resume: GoOn = False,
    report_to: ReportTo = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Prune the merge at one ratio and fine-tune it."""
    from ..pipeline.checks import required_splits
    from ..pipeline.finalize import check_ratio
    from ..pipeline.members import members
    from ..pipeline.stages import all_adapters, final_stage, learned_point
    from .facts import show_facts

    if ratio is not None:
        check_ratio(ratio)
    resolved = read_config(config, sets, report_to)

    def check(opened: Run) -> None:
        if ratio is None:
            learned_point(opened)

    def work(opened: Run) -> dict[str, Any]:
        final = final_stage(opened, members(opened, all_adapters(opened)), ratio)
        return {
            "ratio": final.ratio,
            "point": final.point.to_dict(),
            "density": final.density,
            "dev_losses": list(final.outcome.dev_losses),
        }

    needs = required_splits(resolved, search=False)
    stage = _Stage(resolved, quiet, overwrite, resume, needs, ["finalize"])
    show_facts(stage.run(work, first=check), as_json)


@app.command()
def evaluate(
    adapter: ScoredAdapter = None,
    config: ConfigFile = None,
    sets: Sets = None,
    overwrite: Overwrite = False,
    resume: GoOn = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Score the run's final adapter and its rivals, or any adapter, on the test split."""
    from ..pipeline.keeping import GRASP
    from ..pipeline.stages import require_final
    from ..pipeline.story import evaluate_finished, evaluate_one
    from .console import show_scores

    resolved = read_config(config, sets)
    needs = ["target.test"]
    if adapter is not None:
        one = _Stage(resolved, quiet, overwrite, resume, needs, [], {"adapter": adapter})
        show_scores(one.run(lambda opened: evaluate_one(opened, adapter, anew=overwrite)), as_json)
        return
    systems = [f"evaluate_{name}" for name in (*resolved.evaluate.rivals, GRASP)]
    trained = [f"rival_{name}" for name in resolved.evaluate.rivals if name in ("merged", "sequential")]
    stage = _Stage(resolved, quiet, overwrite, resume, needs, [*trained, *systems])
    show_scores(stage.run(evaluate_finished, first=require_final), as_json)


@app.command()
def generate(
    adapter: AnsweringAdapter = None,
    source: Annotated[str | None, typer.Option("--input", help="File of examples; answers in it are not used.")] = None,
    prompt: Annotated[str | None, typer.Option(help="One prompt, taken literally.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write JSON lines here instead of printing them.")] = None,
    config: ConfigFile = None,
    sets: Sets = None,
    quiet: Quiet = False,
) -> None:
    """Answer examples of a file, or one prompt, with an adapter on the base model."""
    from ..pipeline.answering import answer_file, answer_prompt
    from ..runs import make_progress, to_json, write_text_atomic

    if (source is None) == (prompt is None):
        raise ConfigError("generate needs either --input FILE or --prompt TEXT.")
    resolved = read_config(config, sets)
    if prompt is not None:
        rows = [{"prompt": prompt, "prediction": answer_prompt(resolved, adapter, prompt)}]
    else:
        rows = answer_file(resolved, adapter, str(source), make_progress(quiet))
    text = "".join(to_json(row) + "\n" for row in rows)
    if output is None:
        out(text.rstrip("\n"))
    else:
        write_text_atomic(output, text)


@app.command()
def export(
    config: ConfigFile = None,
    sets: Sets = None,
    overwrite: Overwrite = False,
    resume: GoOn = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write the run's final adapter as a plain PEFT folder (and sparse file, and merged model if asked)."""
    from ..pipeline.stages import require_final
    from ..pipeline.story import export_finished
    from .facts import show_facts

    stage = _Stage(read_config(config, sets), quiet, overwrite, resume, [], ["keep", "export", "deployment"])
    show_facts(stage.run(export_finished, first=require_final), as_json)
