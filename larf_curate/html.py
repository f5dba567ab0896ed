"""Content-Security-Policy of self-contained HTML pages."""

import base64
import hashlib

from markupsafe import Markup


def csp_hash(text: str) -> Markup:
    """Source expression with which a Content-Security-Policy allows exactly this inline script or style sheet."""
    return Markup("'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'")
