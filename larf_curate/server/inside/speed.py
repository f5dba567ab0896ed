"""Patches for two hot spots of argilla-server 2.8.0: unused webhook payloads, and validators built per record."""

from collections.abc import Awaitable, Callable
from typing import Any


def apply() -> None:
    """Apply both patches; responses of the API do not change."""
    _build_validators_once()
    _skip_webhooks_without_listeners()


def _build_validators_once() -> None:
    """Build the pydantic validators of settings once, not at each access of ``parsed_settings``."""
    from argilla_server.models import database
    from pydantic import TypeAdapter

    for model, settings in (
        (database.MetadataProperty, database.MetadataPropertySettings),
        (database.Question, database.QuestionSettings),
    ):
        model.parsed_settings = _parsed_by(TypeAdapter(settings))


def _parsed_by(adapter: Any) -> property:  # noqa: ANN401  TypeAdapter
    return property(lambda self: adapter.validate_python(self.settings))


def _skip_webhooks_without_listeners() -> None:
    """Skip notifications if no webhook is enabled, instead of building payloads that nobody receives."""
    from argilla_server.bulk import records_bulk
    from argilla_server.contexts import datasets, distribution
    from argilla_server.contexts.webhooks import list_enabled_webhooks

    Notify = Callable[[Any, Any, Any], Awaitable[list[Any]]]

    def if_enabled(notify: Notify) -> Notify:
        async def notify_enabled(db: Any, event: Any, subject: Any) -> list[Any]:  # noqa: ANN401
            return await notify(db, event, subject) if await list_enabled_webhooks(db) else []

        return notify_enabled

    distribution.notify_record_event_v1 = if_enabled(distribution.notify_record_event_v1)
    datasets.notify_response_event_v1 = if_enabled(datasets.notify_response_event_v1)

    notify_batch = records_bulk.UpsertRecordsBulk._notify_upsert_record_events

    async def notify_batch_enabled(self: Any, records: Any) -> None:  # noqa: ANN401
        if await list_enabled_webhooks(self._db):
            await notify_batch(self, records)

    records_bulk.UpsertRecordsBulk._notify_upsert_record_events = notify_batch_enabled
