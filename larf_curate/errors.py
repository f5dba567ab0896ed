"""One tree of errors; each one is also the built-in a caller would expect.

::

    LarfCurateError
    ├── InputError (ValueError)            what the user gave cannot be used
    │   ├── ConversationError              a row is not a conversation
    │   ├── ReferenceSetError              a reference set is unusable
    │   └── ProfileError                   a profile is unreadable or does not fit
    │       └── ProfileMismatchError       it was made for another model, template or dtype
    ├── ModelError (ValueError)            a model cannot be loaded or read
    ├── ScoringError (RuntimeError)        scoring could not go on
    ├── MissingExtraError (ImportError)    an optional dependency is not installed
    ├── ReviewError (RuntimeError)         the review queue refused
    │   └── ReviewServerError              the Argilla server is down, or refuses the key
    ├── PublishError (RuntimeError)        the Hub refused
    └── TrainingError (RuntimeError)       fine-tuning or its evaluation could not go on

Every message says what was wanted, what came, and what to do.
"""


class LarfCurateError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(LarfCurateError, ValueError):
    """Something the user gave cannot be used."""


class ConversationError(InputError):
    """A row cannot be read as a conversation."""


class ReferenceSetError(InputError):
    """A reference set is missing columns, one-sided or empty."""


class ProfileError(InputError):
    """A safety profile cannot be read or used."""


class ProfileMismatchError(ProfileError):
    """A safety profile was made for another model, chat template or dtype."""


class ModelError(LarfCurateError, ValueError):
    """A model cannot be loaded, has no chat template, or has no blocks we can find."""


class ScoringError(LarfCurateError, RuntimeError):
    """Scoring a dataset could not go on."""


class MissingExtraError(LarfCurateError, ImportError):
    """An optional dependency is not installed; the message holds the pip command."""


class ReviewError(LarfCurateError, RuntimeError):
    """The review queue could not do what was asked."""


class ReviewServerError(ReviewError):
    """The Argilla server cannot be reached or refuses the credentials."""


class PublishError(LarfCurateError, RuntimeError):
    """The Hub refused a publication."""


class TrainingError(LarfCurateError, RuntimeError):
    """Fine-tuning or its evaluation could not go on."""
