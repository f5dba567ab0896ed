"""Exception hierarchy of the package; each error also derives from the built-in exception a caller would expect.

    LarfCurateError
    ├── InputError (ValueError)            a user's input is invalid
    │   ├── ConversationError              a row is not a conversation
    │   ├── ReferenceSetError              a reference set is unusable
    │   └── ProfileError                   a profile is unreadable or unusable
    │       └── ProfileMismatchError       a profile was built for another model, chat template or dtype
    ├── ModelError (ValueError)            a model cannot be loaded or used
    ├── ScoringError (RuntimeError)        scoring failed
    ├── MissingExtraError (ImportError)    an optional dependency is not installed
    ├── ReviewError (RuntimeError)         a review operation failed
    │   └── ReviewServerError              the Argilla server is unreachable or rejects the credentials
    ├── PublishError (RuntimeError)        publishing failed
    └── TrainingError (RuntimeError)       fine-tuning or its evaluation failed

Every message is one line that states what was expected, what was given, and how to fix it.
"""


class LarfCurateError(Exception):
    """Base class of all errors that this package raises deliberately."""


class InputError(LarfCurateError, ValueError):
    """A user's input is invalid."""


class ConversationError(InputError):
    """A row cannot be parsed as a conversation."""


class ReferenceSetError(InputError):
    """A reference set is empty, lacks columns, or lacks unsafe or safe examples."""


class ProfileError(InputError):
    """A safety profile cannot be read or used."""


class ProfileMismatchError(ProfileError):
    """A safety profile was built for another model, chat template or dtype."""


class ModelError(LarfCurateError, ValueError):
    """A model cannot be loaded or used: no chat template, an unsupported architecture, or broken weights."""


class ScoringError(LarfCurateError, RuntimeError):
    """Scoring a dataset failed and cannot continue."""


class MissingExtraError(LarfCurateError, ImportError):
    """An optional dependency is not installed; the message gives the pip command."""


class ReviewError(LarfCurateError, RuntimeError):
    """A review operation failed."""


class ReviewServerError(ReviewError):
    """The Argilla server cannot be installed, started or reached, or rejects the credentials."""


class PublishError(LarfCurateError, RuntimeError):
    """Publishing failed: the Hub rejected the request, or the destination cannot be used."""


class TrainingError(LarfCurateError, RuntimeError):
    """Fine-tuning or its evaluation failed and cannot continue."""
