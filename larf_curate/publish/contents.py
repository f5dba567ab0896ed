"""What is published, before it is merged with what the destination has."""

from dataclasses import dataclass

from larf_curate.publish.kept_rows import KeptRows
from larf_curate.publish.pictures import Picture
from larf_curate.publish.removed import FOLDER
from larf_curate.publish.shards import Shards
from larf_curate.publish.source_card import SourceCard

CONFIG = "default"
"""Configuration of the kept rows."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The rows to publish, the other rows without their texts, and what is known of their source.

    Args:
        kept_rows: The folder of the rows, with the record of how they were chosen.
        shards: Parquet files of the kept rows.
        removed: Parquet files of all other rows; None if there are none.
        has_removed_text: Whether these have the texts of the rows.
        pictures: Plots for the card.
        source: What the card of the source dataset says.
    """

    kept_rows: KeptRows
    shards: Shards
    removed: Shards | None
    has_removed_text: bool
    pictures: tuple[Picture, ...]
    source: SourceCard

    @property
    def configs(self) -> dict[str, Shards]:
        """Parquet files by configuration, the default one first."""
        return {CONFIG: self.shards} | ({FOLDER: self.removed} if self.removed else {})

    @property
    def data_files(self) -> dict[str, Shards]:
        """The shards that each data file is of, by path."""
        return {path: shards for shards in self.configs.values() for path in shards.files}
