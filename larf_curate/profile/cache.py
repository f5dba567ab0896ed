"""Lookup of the profile that scored a dataset in this machine's cache."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from larf_curate.errors import ProfileError
from larf_curate.files import cache_home
from larf_curate.manifests import check_profile

if TYPE_CHECKING:
    from larf_curate.profile.profile import SafetyProfile


def profile_of(scored: Mapping[str, Any], profile: "SafetyProfile | None" = None) -> "SafetyProfile | None":
    """Find the profile that scored a dataset: the one given, else the cached one, else None.

    Args:
        scored: Manifest of the scored dataset.
        profile: A profile to check against the manifest; default: look it up in the cache.

    Raises:
        ProfileMismatchError: If the given profile is not the one in the manifest.
    """
    recorded = scored.get("profile") or {}
    if profile is not None:
        check_profile(profile, recorded)
        return profile
    from larf_curate.profile.profile import SafetyProfile  # imports torch, which takes seconds

    digest = recorded.get("digest")
    folder = cache_home() / "profiles" / str(digest)
    try:
        cached = SafetyProfile.from_pretrained(folder) if digest and folder.is_dir() else None
    except ProfileError:  # damaged, or of an older format: the same as not cached
        return None
    return cached if cached and cached.digest == digest else None
