"""The family table: the only place that names modules of particular architectures."""

from __future__ import annotations

from .layouts import AttentionLayout, Family, FeedForwardLayout, Tap


def _bert_attention(name: str, cached: bool = True) -> AttentionLayout:
    return AttentionLayout(
        name=name,
        core=f"{name}.self",
        query=f"{name}.self.query",
        key=f"{name}.self.key",
        value=f"{name}.self.value",
        output=f"{name}.output.dense",
        residual=Tap(f"{name}.output.LayerNorm"),
        counts={"num_attention_heads": "heads", "all_head_size": "width"},
        cached=cached,
    )


FAMILIES: tuple[Family, ...] = (
    Family(
        model_types=("bert", "roberta", "xlm-roberta", "camembert", "electra"),
        layers="encoder.layer",
        sublayers=(
            _bert_attention("attention"),
            _bert_attention("crossattention", cached=False),
            FeedForwardLayout(
                name="intermediate",
                inputs=("intermediate.dense",),
                output="output.dense",
                residual=Tap("output.LayerNorm"),
            ),
        ),
    ),
    Family(
        model_types=("distilbert",),
        layers="transformer.layer",
        sublayers=(
            AttentionLayout(
                name="attention",
                core="attention",
                query="attention.q_lin",
                key="attention.k_lin",
                value="attention.v_lin",
                output="attention.out_lin",
                residual=Tap("sa_layer_norm"),
                counts={"n_heads": "heads", "dim": "width"},
                cached=False,
            ),
            FeedForwardLayout(
                name="ffn",
                inputs=("ffn.lin1",),
                output="ffn.lin2",
                residual=Tap("output_layer_norm"),
            ),
        ),
    ),
)


def family_of(model_type: str | None) -> Family | None:
    """The table's entry for a `config.model_type`, or None."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def supported_model_types() -> tuple[str, ...]:
    """Every `config.model_type` in the table, in alphabetical order."""
    return tuple(sorted(model_type for family in FAMILIES for model_type in family.model_types))
