"""The model families that a trainer learns: what each is, and which topic it learns from.

Owns the passing of settings to tasks, and what a block of `examples` or `chains` becomes. Must not read topics.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from features.fields import Field
from infra.settings import Settings, SettingsError
from models.click_task import ClickTask
from models.prerank.task import CANDIDATE, PrerankTask, chain_rows, exposed_rows
from models.task import Task
from models.window import SOURCE, fit_columns
from stream.blocks import OPTIONAL_COLUMNS, SERVED_COLUMNS, Header, decode_block, decode_chains
from stream.plan import new_creative_plan, new_plan, new_prerank_plan

Kind = Literal["click", "prerank", "creatives"]


@dataclass(frozen=True)
class Family:
    """One lineage of models, and what it learns from.

    Attributes:
        name: Of the family; the key of what is announced and asked for.
        kind: `click`: impressions by the click model; `prerank`: candidates by the pre-ranker; `creatives`:
            impressions by the creative ranker.
        task: How it learns.
        topic: Where the blocks are.
        decode: From the bytes of a block to its header and its rows.
        complete_s: Up to which event time a block's header says that its rows are complete.
        identity: The columns that name a row.
    """

    name: str
    kind: Kind
    task: Task[Any, Any]
    topic: Literal["examples", "chains"]
    decode: Callable[[bytes], tuple[Header, pl.DataFrame]]
    complete_s: Callable[[Header], float]
    identity: tuple[str, ...]

    @property
    def fields(self) -> tuple[Field, ...]:
        """What its models read."""
        return self.task.plan.fields


def family_of(settings: Settings, kind: Kind) -> Family:
    """Return the family of a kind.

    Raises:
        SettingsError: If a name in the settings is unknown, or they turn no such family on.
    """
    makes = {"click": click_family, "prerank": prerank_family, "creatives": creative_family}
    if (family := makes[kind](settings)) is None:
        raise SettingsError(f'[{kind}] network must be named for the family {kind}, got ""; set it, or ask for click')
    return family


def click_family(settings: Settings) -> Family:
    """Return the click model's family.

    Raises:
        SettingsError: If a name in the settings is unknown.
    """
    return Family(
        name=settings.model.family,
        kind="click",
        task=ClickTask(new_plan(settings)),
        topic="examples",
        decode=example_decoder(settings.fields, keep=("snapshot", *SERVED_COLUMNS)),
        complete_s=lambda header: header.watermark_s,
        identity=SOURCE,
    )


def prerank_family(settings: Settings) -> Family | None:
    """Return the pre-ranker's family, None where `[prerank] network` names none.

    Raises:
        SettingsError: If a name in the settings is unknown.
    """
    if not settings.prerank.network:
        return None
    plan = new_prerank_plan(settings)
    return Family(
        name=settings.prerank.family,
        kind="prerank",
        task=PrerankTask(plan, gate_penalty=settings.prerank.gate_penalty),
        topic="chains",
        decode=_chain_decoder(plan.fields),
        complete_s=lambda header: header.horizon_s,
        identity=CANDIDATE,
    )


def creative_family(settings: Settings) -> Family | None:
    """Return the creative ranker's family, None where `[creatives] network` names none.

    Raises:
        SettingsError: If a name in the settings is unknown.
    """
    if not settings.creatives.network:
        return None
    plan = new_creative_plan(settings)
    decode = example_decoder(plan.fields)

    def decode_exposed(value: bytes) -> tuple[Header, pl.DataFrame]:
        header, frame = decode(value)
        return header, exposed_rows(frame)

    return Family(
        name=settings.creatives.family,
        kind="creatives",
        task=PrerankTask(plan, gate_penalty=0.0),
        topic="examples",
        decode=decode_exposed,
        complete_s=lambda header: header.watermark_s,
        identity=SOURCE,
    )


def families_of(settings: Settings) -> tuple[Family, ...]:
    """Return all families of a deployment, the click model's first.

    Raises:
        SettingsError: If a name in the settings is unknown.
    """
    others = (prerank_family(settings), creative_family(settings))
    return (click_family(settings), *(family for family in others if family is not None))


def example_decoder(
    fields: tuple[Field, ...], *, keep: Collection[str] = ()
) -> Callable[[bytes], tuple[Header, pl.DataFrame]]:
    """Return what reads blocks of examples, with the columns of these fields.

    Args:
        fields: Of who reads.
        keep: Which of `OPTIONAL_COLUMNS` stay where a block has them: nothing is learnt from any.
    """
    dropped = [name for name in OPTIONAL_COLUMNS if name not in keep]

    def decode(value: bytes) -> tuple[Header, pl.DataFrame]:
        header, frame = decode_block(value)
        return header, fit_columns(frame.drop(dropped, strict=False), fields)

    return decode


def _chain_decoder(fields: tuple[Field, ...]) -> Callable[[bytes], tuple[Header, pl.DataFrame]]:
    def decode(value: bytes) -> tuple[Header, pl.DataFrame]:
        header, frame = decode_chains(value)
        return header, chain_rows(fit_columns(frame, fields))

    return decode
