"""What the commands of `hf-prune` do; `hf_prune.cli` holds their options."""
