"""Every setting, once: frozen typed sections with their defaults."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .base import NonNegative, NonNegativeInt, Positive, PositiveInt, Ratio, Section
from .compare import CompareConfig
from .recipes import Recipe
from .speed import SpeedConfig

MergeRule = Literal["sum_factors", "sum_deltas"]
Importance = Literal["magnitude", "activation", "sensitivity"]
Scope = Literal["per_tensor", "global"]
Policy = Literal["ratio", "ratio_strength", "ratio_weights", "ratio_per_adapter", "ratio_per_module_type"]
METRICS = ("loss", "em", "f1", "rouge", "bleu", "chrf", "bertscore")
Rival = Literal["zero_shot", "source", "target", "sequential", "merged"]
TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
MetricName = Literal["loss", "em", "f1", "rouge", "bleu", "chrf", "bertscore"]


class ModelConfig(Section):
    """The frozen base model."""

    name_or_path: str | None = Field(None, description="folder or hub id, or `demo` for the embedded backbone")
    revision: str | None = Field(None, description="hub revision; give a commit hash to pin the weights")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field(
        "auto", description="auto: bfloat16 on a GPU, float32 on the CPU"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    quantization: Literal["none", "bnb-4bit", "torchao-8bit"] = Field(
        "none", description="frozen weights in 4 or 8 bits; bnb-4bit needs a GPU"
    )
    attn_implementation: str | None = Field(None, description="passed to transformers, e.g. sdpa or eager")
    gradient_checkpointing: bool = Field(False, description="less memory for about a third more time")
    trust_remote_code: bool = Field(False, description="run code from the model repository")


class TaskConfig(Section):
    """What is asked of the model, and in which words."""

    name: Literal["qa", "summarization"] = "qa"
    language: str = Field("ar", description="target language code; en, ar and zh have built-in prompts and scoring")
    source_language: str = Field("en", description="language of the source adapter's data")
    prompt: str | None = Field(
        None, description="own target template; qa: {context} {question}, summarization: {article}"
    )
    source_prompt: str | None = Field(None, description="own template for the source data")
    answer_prefix: str | None = Field(None, description="text in front of the answer; default ' ' (zh and ja: none)")
    max_length: PositiveInt = Field(2200, description="prompt plus answer, in tokens; longer documents are cut")
    max_new_tokens: PositiveInt = Field(64, description="longest generated answer, in tokens")


class SplitFiles(Section):
    """Files of one language (JSONL, CSV, TSV, Parquet or SQuAD-format JSON), or `hf:NAME[:CONFIG]:SPLIT`."""

    train: str | None = Field(None, description="trained on")
    dev: str | None = Field(None, description="picks the best epoch; without it the last one is kept")
    micro_dev: str | None = Field(None, description="the controller's examples; never taken from another split")
    test: str | None = Field(None, description="scored; without it nothing is")


class DataConfig(Section):
    """Where the examples are and which checks they must pass."""

    source: SplitFiles = SplitFiles()
    target: SplitFiles = SplitFiles()
    micro_dev_size: PositiveInt = Field(16, description="m: how many micro-dev examples the controller may use")
    allow_leakage: bool = Field(False, description="go on although the same text is in two splits")
    fields: dict[str, str] = Field(default_factory=dict, description="own column names, e.g. {article: body}")


class LoraConfig(Section):
    """Shape of adapters that are trained here."""

    r: PositiveInt = Field(8, description="rank")
    alpha: Positive = Field(32.0, description="the update is scaled by alpha / r")
    target_modules: tuple[str, ...] | str = Field(
        ("q_proj", "v_proj"), description="names, a regular expression, or all-linear"
    )
    rslora: bool = Field(False, description="scale by alpha / sqrt(r) instead of alpha / r")


class AdaptersConfig(Section):
    """Adapters to merge; what is absent is trained here from `data`."""

    source: str | None = Field(None, description="PEFT folder or hub id")
    target: str | None = Field(None, description="PEFT folder or hub id")
    others: tuple[str, ...] = Field((), description="further PEFT folders or hub ids, merged after the two")
    continue_source: bool = Field(
        False,
        description="merge the source adapter fine-tuned on the target data (as train_target says), not itself",
    )
    allow_other_base: bool = Field(False, description="accept an adapter that names another base model")


class TrainingConfig(Section):
    """One optimization: AdamW with a learning rate that decays once per epoch."""

    epochs: PositiveInt = Field(10, description="passes over the training examples, at most")
    lr: Positive = Field(1e-4, description="learning rate")
    lr_decay: Positive = Field(1.0, description="factor on the learning rate after each epoch")
    batch_size: PositiveInt = Field(1, description="examples in one forward pass")
    accumulation: PositiveInt = Field(1, description="forward passes per optimizer step")
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive | None = Field(None, description="clip the gradient to this norm")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="dropout in front of the adapters")
    patience: PositiveInt | None = Field(3, description="stop after this many epochs without a better dev loss")
    eval_batch_size: PositiveInt = Field(16, description="examples in one pass without gradients")


class SearchConfig(TrainingConfig):
    """The controller run: the merged adapters are trained on the target data while ratios are probed."""

    epochs: NonNegativeInt = Field(
        0,
        description="passes over the training examples, at most; 0: probe the merge as it is, train nothing; "
        "default 10 with preset released or finalize.adapter=reuse",
    )
    lr_decay: Positive = 0.85
    patience: PositiveInt | None = Field(
        None, description="needs dev data when set; the controller itself never sees it"
    )


class FinalizeConfig(TrainingConfig):
    """The final run at the learned ratio."""

    accumulation: PositiveInt = 8
    lr_decay: Positive = 0.85
    adapter: Literal["fresh", "reuse"] = Field(
        "fresh", description="reuse: keep what the search trained and go on there at the learned point, no second run"
    )
    mask: Literal["static", "dynamic"] = Field("static", description="dynamic: selected again after every update")
    importance: Importance | None = Field(None, description="default prune.importance, as in the search")
    keep_start: bool = Field(
        False, description="dev may also choose the merge before any training, pruned or as it came"
    )
    keep: Literal["grasp", "best"] = Field(
        "grasp", description="what is exported; best: a simple rival instead when its dev loss is lower"
    )


class MergeConfig(Section):
    """How adapters become one update of the frozen weights (algorithm.md, section 2)."""

    rule: MergeRule = "sum_factors"
    scaling: Literal["fold", "ignore"] = Field("fold", description="ignore: every s_k is 1, as in the release")
    weights: tuple[float, ...] | None = Field(None, description="w_k: source, target, others; default all 1")
    strength: NonNegative = Field(1.0, description="g: factor on the merged update as a whole")


class PruneConfig(Section):
    """Which entries are pruned first."""

    importance: Importance = "magnitude"
    scope: Scope = "per_tensor"


class ControllerConfig(Section):
    """The GRPO controller of the prune ratio (paper, section 3; algorithm.md, section 4)."""

    preset: Literal["default", "released"] = "default"
    policy: Policy | None = Field(
        None, description="what is learned; default the preset's (ratio_strength; released: ratio)"
    )
    strength_min: Positive = Field(0.1, description="smallest factor on merge.strength, or on a weight")
    strength_max: Positive = Field(1.2, description="largest factor on merge.strength, or on a weight")
    p_min: Ratio | None = Field(None, description="smallest ratio; default the preset's (0; released 0.1)")
    p_max: Ratio | None = Field(None, description="largest ratio; default the preset's (0.95; released 0.8)")
    p_init: Ratio | None = Field(None, description="first mean; default 0.4, moved into the bounds")
    interval: PositiveInt = Field(10, description="K: optimizer steps between rounds")
    candidates: PositiveInt = Field(3, description="C: ratios probed in a round, beside the baseline")
    rounds: PositiveInt | None = Field(None, description="most rounds; default as many as the steps allow")
    policy_lr: NonNegative | None = Field(None, description="default the preset's (0.5; released 0.05)")
    anchor: NonNegative | None = Field(None, description="beta: pull of the mean to the committed ratio; default 0.05")
    entropy_bonus: NonNegative | None = Field(None, description="default the preset's (0.1; released 0.01)")
    max_step: Ratio = Field(0.10, description="largest change of the committed ratio in one round")
    seed: int | None = Field(None, description="the controller's own seed; default the run's")
    early_stop: bool = Field(True, description="skip rounds and stop when more probes would not change the answer")
    tolerance: NonNegative = Field(2e-4, description="nats that the next probes must promise, or probing stops")
    plateau: NonNegative = Field(0.3, description="standard errors that a sparser ratio may look worse by")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        low, high, start = self.p_min, self.p_max, self.p_init
        if low is not None and high is not None and low > high:
            raise ValueError(f"p_min must not exceed p_max, got p_min={low:g} and p_max={high:g}")
        if start is not None and (start < (low or 0.0) or start > (1.0 if high is None else high)):
            raise ValueError(f"p_init must lie in [p_min, p_max], got {start:g}")
        if self.strength_min >= self.strength_max:
            raise ValueError(
                f"strength_min must lie below strength_max, got {self.strength_min:g} and {self.strength_max:g}"
            )
        if self.preset == "released" and self.policy not in (None, "ratio"):
            raise ValueError(f"preset released learns a ratio only, got policy={self.policy}")
        return self


class EvaluateConfig(Section):
    """Scores and deployment figures."""

    metrics: tuple[MetricName, ...] | None = Field(None, description="default: all that suit the task")
    batch_size: PositiveInt = 16
    limit: PositiveInt | None = Field(None, description="use only the first N test examples, and say so")
    generation_limit: PositiveInt | None = Field(
        None, description="generate answers for the first N test examples only; losses are still of all"
    )
    bootstrap: PositiveInt = Field(1000, description="resamples behind every interval")
    bertscore_model: str | None = Field(None, description="encoder folder or hub id; unset: not computed")
    rivals: tuple[Rival, ...] = Field(
        ("zero_shot", "source", "target"),
        description="scored beside the result; sequential and merged train one more run",
    )
    deployment: bool = Field(True, description="measure load time, first token, throughput and memory")


class ExportConfig(Section):
    """What is written beside the plain PEFT folder."""

    sparse: bool = Field(True, description="bitmap-and-values file of the unsummed factors")
    merged_model: bool = Field(False, description="also the full base model with the adapter merged in")


class RunConfig(Section):
    """Where a run is kept and how it reports."""

    dir: str | None = Field(None, description="run folder; default runs/<task>-<language>-<seed>")
    checkpoint_every: PositiveInt = Field(50, description="optimizer steps between checkpoints")
    tokens: str | None = Field(None, description="folder that keeps token sequences, for many runs over the same files")
    report_to: tuple[TrackerName, ...] = Field((), description="experiment trackers; the command line's --report-to")


class Config(Section):
    """The whole configuration of a run."""

    seed: int = 42
    recipe: Recipe = Field(
        "paper",
        description="settings laid under all others; recommended: what measured best (docs/results.md), "
        "paper: the published method with this project's controller",
    )
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    lora: LoraConfig = LoraConfig()
    adapters: AdaptersConfig = AdaptersConfig()
    train_source: TrainingConfig = TrainingConfig(epochs=3, batch_size=8)
    train_target: TrainingConfig = TrainingConfig(epochs=10, batch_size=8)
    merge: MergeConfig = MergeConfig()
    prune: PruneConfig = PruneConfig()
    controller: ControllerConfig = ControllerConfig()
    search: SearchConfig = SearchConfig()
    finalize: FinalizeConfig = FinalizeConfig()
    speed: SpeedConfig = SpeedConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    run: RunConfig = RunConfig()
    compare: CompareConfig = CompareConfig()

    @model_validator(mode="after")
    def _across_sections(self) -> Self:
        weights = self.merge.weights
        expected = 2 + len(self.adapters.others)
        if weights is not None and len(weights) != expected:
            raise ValueError(f"merge.weights needs one number per adapter ({expected}), got {len(weights)}")
        if self.finalize.adapter == "reuse" and self.final_importance != self.prune.importance:
            raise ValueError(
                "finalize.importance has no effect with finalize.adapter=reuse, which keeps the search's mask"
            )
        return self

    @property
    def controller_seed(self) -> int:
        """The controller's seed: its own, or else the run's."""
        return self.seed if self.controller.seed is None else self.controller.seed

    @property
    def final_importance(self) -> Importance:
        """The importance of the final run: the search's, unless `finalize.importance` says otherwise."""
        return self.finalize.importance or self.prune.importance
