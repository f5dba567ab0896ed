"""The profile that scored some rows, from this machine's cache."""

from collections.abc import Mapping
from typing import Any

from larf_curate.errors import ProfileError
from larf_curate.files import cache_home
from larf_curate.manifests import check_profile
from larf_curate.profile.profile import SafetyProfile


def profile_of(scored: Mapping[str, Any], profile: SafetyProfile | None = None) -> SafetyProfile | None:
    """The profile that scored a selection: the one given, else the one that this machine kept, else None.

    Args:
        scored: Manifest of the scored dataset.
        profile: A profile to check against it.

    Raises:
        ProfileMismatchError: If the profile given is another.
    """
    recorded = scored.get("profile") or {}
    if profile is not None:
        check_profile(profile, recorded)
        return profile
    digest = recorded.get("digest")
    folder = cache_home() / "profiles" / str(digest)
    try:
        return SafetyProfile.from_pretrained(folder) if digest and folder.is_dir() else None
    except ProfileError:  # damaged, or written by a version that kept less: as good as none
        return None
