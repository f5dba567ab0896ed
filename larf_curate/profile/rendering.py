"""The renderer of a profile's rows, without its model."""

from collections.abc import Mapping
from dataclasses import replace

from larf_curate.conversation.chat_template import Renderer
from larf_curate.errors import ProfileMismatchError
from larf_curate.models.loading import load_renderer
from larf_curate.models.source import identify
from larf_curate.profile.profile import SafetyProfile


def profile_renderer(
    profile: SafetyProfile, *, columns: Mapping[str, str] | None = None, model: str | None = None
) -> Renderer:
    """Load only the tokenizer of a profile's model, and make the renderer that scoring uses.

    Args:
        profile: The profile.
        columns: Column names by role; default: inferred from the rows.
        model: Model path, if the model has moved since the profile was built.

    Raises:
        ModelError: If the tokenizer cannot be loaded.
        ProfileMismatchError: If its chat template is not the one of the profile.
    """
    source = replace(profile.source, model_id=identify(model), revision=None) if model else profile.source
    renderer = load_renderer(source, max_length=profile.max_length, columns=columns)
    if renderer.template_digest != profile.template_digest:
        raise ProfileMismatchError(
            f"the chat template of {source.model_id} is not the one this profile was built with: build the profile "
            "again, or give the model and revision that it records"
        )
    return renderer
