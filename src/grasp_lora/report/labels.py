"""The words by which people know systems, stages and scores."""

from __future__ import annotations

OURS = "grasp"
LABELS = {
    "zero_shot": "zero shot",
    "source": "source adapter only",
    "target": "target adapter only",
    "sequential": "target fine-tuned from source",
    "merged": "merged, not pruned",
    OURS: "GRASP",
}
STAGES = {
    "source_adapter": "source adapter",
    "target_adapter": "target adapter",
    "search": "search",
    "finalize": "final run",
    "export": "export",
    "deployment": "deployment figures",
}
METRICS = {
    "loss": "loss",
    "em": "exact match",
    "f1": "F1",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeL_char": "ROUGE-L (characters)",
    "bleu": "BLEU",
    "chrf": "chrF",
    "bertscore_raw": "BERTScore",
    "bertscore_rescaled": "BERTScore, rescaled",
}


def system_label(name: str) -> str:
    """Return what a system is called in tables; a name that is not known here speaks for itself."""
    return LABELS.get(name, name.replace("_", " "))


def stage_label(name: str) -> str:
    """Return what a stage is called; stages that evaluate or train a rival are named after the system."""
    if name.startswith("evaluate_"):
        return f"{system_label(name.removeprefix('evaluate_'))}: evaluation"
    if name.startswith("rival_"):
        return f"{system_label(name.removeprefix('rival_'))}: training"
    return STAGES.get(name, name.replace("_", " "))


def sentence_case(text: str) -> str:
    """Return text with its first letter upper-case, the others as they are."""
    return text[:1].upper() + text[1:]


def metric_label(name: str) -> str:
    """Return what a score is called."""
    return METRICS.get(name, name)
