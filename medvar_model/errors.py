"""Name everything the model side can refuse.

MedvarError                    of the data side: catch this to catch all of both
└── ModelError                 everything below
├── ConfigMismatch             numbers that cannot be built, or two parts that do not fit each other
├── MissingCheckpoint          a folder or file of weights that is absent, incomplete or of another kind
├── UnknownCondition           a condition name or id that the model was not trained with
├── ShardSetMismatch           tokens, checkpoints or runs that belong to another shard set or tokenizer
├── UnusableFolder             an output folder that is a file, may not be written, or holds something else
├── FolderInUse                a folder of a run or a token cache in which another process is at work
└── OutOfMemory                more than the memory of this machine or GPU holds

Every message is a sentence: what, found, wanted, and what to do next.
"""

from medvar_data.errors import MedvarError


class ModelError(MedvarError):
    """Base of all errors raised by `medvar_model`."""


class ConfigMismatch(ModelError):
    """A configuration cannot be built, or does not fit the weights or the part it is used with."""


class MissingCheckpoint(ModelError):
    """Weights were asked for that are not there, or are not what the caller says they are."""


class UnknownCondition(ModelError):
    """A condition was asked for that the model does not know."""


class ShardSetMismatch(ModelError):
    """Something was made from another shard set or tokenizer than the one in use."""


class UnusableFolder(ModelError):
    """An output folder cannot be made or written, or holds what must not be mixed with the output."""


class FolderInUse(ModelError):
    """Another process is at work in the folder of a run or a token cache."""


class OutOfMemory(ModelError):
    """The memory of the machine or the GPU does not suffice."""
