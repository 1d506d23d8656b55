"""Settings: what there is (`sections`) and how it is read and written (`files`)."""

from .base import Ratio, Section
from .compare import CellConfig, CompareConfig, PartConfig, VariantConfig
from .files import build_config, load_config, parse_overrides, parse_yaml, setting_names, to_dict, to_yaml
from .sections import (
    METRICS,
    AdaptersConfig,
    Config,
    ControllerConfig,
    DataConfig,
    EvaluateConfig,
    ExportConfig,
    FinalizeConfig,
    Importance,
    LoraConfig,
    MergeConfig,
    MergeRule,
    MetricName,
    ModelConfig,
    Policy,
    PruneConfig,
    Rival,
    RunConfig,
    Scope,
    SearchConfig,
    SpeedConfig,
    SplitFiles,
    TaskConfig,
    TrackerName,
    TrainingConfig,
)
from .template import template

__all__ = [
    "METRICS", "AdaptersConfig", "CellConfig", "CompareConfig", "Config", "ControllerConfig", "DataConfig",
    "EvaluateConfig", "ExportConfig",
    "FinalizeConfig",
    "Importance", "LoraConfig", "MergeConfig", "MergeRule", "MetricName", "ModelConfig", "PartConfig", "Policy",
    "PruneConfig",
    "Ratio", "Rival",
    "RunConfig", "Scope", "SearchConfig", "Section", "SpeedConfig", "SplitFiles", "TaskConfig", "TrackerName",
    "TrainingConfig", "VariantConfig",
    "build_config", "load_config", "parse_overrides", "parse_yaml", "setting_names", "template", "to_dict", "to_yaml",
]  # fmt: skip
