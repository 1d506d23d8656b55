"""LoRA adapters as numbers: read from PEFT folders, ranked, masked, merged, attached to a model and written again."""
