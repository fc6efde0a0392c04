"""Every error Freehold raises on purpose. Each message says what was found, what was expected and what to do.

FreeholdError                    the root; the command line prints its message and exits with status 2
├── RequestError                 an argument is wrong: a sampling value, an option, an id out of range
│   └── ContextError             the prompt does not fit the model's context
├── NotFoundError                no such model, file or tensor
├── ModelFileError               a file is not what it claims to be: truncated, malformed, hostile
├── UnsupportedError             the file is valid, but names an architecture, format or option not implemented
├── TemplateError                a chat template is broken, or exceeded its time or output budget
├── StoreError                   the model store: locked, unwritable, or its content fails verification
│   └── DownloadError            a model could not be fetched
├── ResourceError                this machine has too little memory or disk for what was asked
├── KernelError                  a kernel level this processor lacks, or operands that do not fit together
└── EngineError                  the engine was closed, or its thread died
"""


class FreeholdError(Exception):
    """Root of the tree; catch this to catch everything Freehold reports on purpose."""


class RequestError(FreeholdError):
    """An argument of the caller is wrong."""


class ContextError(RequestError):
    """The prompt does not fit the model's context: `n_prompt` tokens, where prompt and answer may have `context`."""

    def __init__(self, message: str, *, n_prompt: int, context: int) -> None:
        super().__init__(message)
        self.n_prompt = n_prompt
        self.context = context


class NotFoundError(FreeholdError):
    """No such model, file or tensor."""


class ModelFileError(FreeholdError):
    """A model file is truncated, malformed or hostile."""


class UnsupportedError(FreeholdError):
    """A valid file asks for something that is not implemented."""


class TemplateError(FreeholdError):
    """A chat template is broken or exceeded its budget."""


class StoreError(FreeholdError):
    """The model store is locked, unwritable or damaged."""


class DownloadError(StoreError):
    """A model could not be fetched."""


class ResourceError(FreeholdError):
    """Too little memory or disk."""


class KernelError(FreeholdError):
    """A kernel cannot run here, or its operands do not fit together."""


class EngineError(FreeholdError):
    """The engine is closed or its thread died."""
