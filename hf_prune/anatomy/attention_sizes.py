"""The arithmetic of attention projections: numbers of heads from numbers of rows, and where each unit's rows are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from .layouts import AttentionLayout, Makes
from .projections import Part

# CodeGen cuts its fused projection into so many slices (it was trained on as many accelerators).
SLICES = 4


@dataclass(frozen=True)
class HeadSizes:
    """Sizes of an attention block.

    Attributes:
        heads: query heads.
        kv: key and value heads; `heads` is a multiple of it.
        head_dim: size of a query or key head.
        value_dim: size of a value head.
        group: query heads per key head (also where no head is left).
        shared: whether all queries share one key by design, so that the query heads are the units.
    """

    heads: int
    kv: int
    head_dim: int
    value_dim: int
    group: int
    shared: bool = False

    @classmethod
    def of(
        cls,
        rows: Mapping[Makes, int],
        columns: int,
        head_dim: int,
        group: int | None,
        declared: int | None,
        shared: bool = False,
    ) -> Self | None:
        """The sizes that explain the projections, or None.

        Args:
            rows: rows of each input projection, by what it makes.
            columns: columns of the output projection.
            head_dim: size of a head.
            group: query heads per key head, where the module says so; needed where no head is left.
            declared: query heads, where the module says so.
            shared: whether one key serves all queries by design.
        """
        heads = rows["query"] // head_dim if "query" in rows else columns // head_dim
        value_dim = columns // heads if heads else head_dim
        kv = _kv_heads(rows, heads, head_dim)
        sizes = cls(heads, kv, head_dim, value_dim, heads // kv if heads and kv else group or 1, shared and kv == 1)
        agree = columns == heads * value_dim and (not kv or heads % kv == 0) and (not heads or bool(kv))
        agree = agree and all(count == sizes.rows(makes) for makes, count in rows.items())
        return sizes if (agree and declared in (None, heads)) or (not heads and agree) else None

    @property
    def kv_width(self) -> int:
        """Rows that make keys."""
        return self.kv * self.head_dim

    def rows(self, makes: Makes) -> int:
        """Rows of a projection that makes `makes`."""
        queries, keys, values = self.heads * self.head_dim, self.kv * self.head_dim, self.kv * self.value_dim
        return {"query": queries, "key": keys, "value": values, "key+value": keys + values}.get(
            makes, queries + keys + values
        )

    def units(self, slices: bool, coupled: bool) -> tuple[int, Literal["heads", "KV groups", "filters", "sublayer"]]:
        """How many units there are and what they are: KV groups, or the query heads around one shared key."""
        if coupled:
            return min(1, self.heads), "sublayer"
        if slices:
            return self.heads // SLICES, "heads"
        if self.group == 1 or self.shared:
            return self.heads, "heads"
        return self.kv, "KV groups"

    def heads_per_unit(self, units: int) -> int:
        """Query heads of one unit."""
        return self.heads // units if units else 1 if self.shared else self.group

    def per_unit(self, kind: Literal["heads", "kv"], units: int) -> int:
        """How many heads, or KV heads, go with a unit."""
        if kind == "heads":
            return self.heads_per_unit(units)
        return self.kv // units if units else 1


def _kv_heads(rows: Mapping[Makes, int], heads: int, head_dim: int) -> int:
    if "key" in rows:
        return rows["key"] // head_dim
    if "key+value" in rows:
        return rows["key+value"] // (2 * head_dim)
    return (next(iter(rows.values())) // head_dim - heads) // 2


def parts_of(makes: Makes, sizes: HeadSizes, units: int) -> tuple[Part, ...]:
    """Where the units' rows are in a projection that makes `makes`."""
    if not units:
        return ()
    shared = sizes.shared and units > 1  # query heads around one key: only queries are cut
    queries, keys, values = sizes.rows("query"), sizes.rows("key"), sizes.rows("value")
    if makes == "slices":
        length = sizes.heads // SLICES * sizes.head_dim
        return tuple(Part(start * length, sizes.head_dim) for start in range(3 * SLICES))
    if makes == "query" or (shared and makes in ("groups", "query+key+value")):
        return (Part(0, queries // units),)
    if shared:
        return ()
    if makes in ("key", "value"):
        return (Part(0, (keys if makes == "key" else values) // units),)
    if makes == "key+value":
        return Part(0, keys // units), Part(keys, values // units)
    if makes == "groups":
        return (Part(0, (queries + keys + values) // units),)
    return Part(0, queries // units), Part(queries, keys // units), Part(queries + keys, values // units)


def output_parts(layout: AttentionLayout, sizes: HeadSizes, units: int) -> tuple[Part, ...]:
    """Where the units' columns are in the output projection."""
    if not units:
        return (Part(0, sizes.heads_per_unit(0) * sizes.value_dim),)
    if "slices" in layout.inputs.values():
        length = sizes.heads // SLICES * sizes.value_dim
        return tuple(Part(start * length, sizes.value_dim) for start in range(SLICES))
    return (Part(0, sizes.heads * sizes.value_dim // units),)
