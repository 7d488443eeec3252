"""The exception tree. Every error a user can cause is one of these, and its message is one clear sentence.

CalotypeError
├── UsageError          what was asked for makes no sense; the command line exits with 2
│   └── LatentFormatError   the latent format can't be told from the weights and was not given
├── PictureError        a picture can't be read or written
├── LatentsError        latents are damaged, of the wrong shape, or of another VAE
├── WeightsError        a weight file is not what it should be
│   └── FetchError      weights can't be fetched and are not in the cache
├── RemoteError         a server that files are at does not answer
├── StorageError        a disk refuses what is to be written
├── MemoryLimitError    there is not enough memory
└── NonFiniteError      a result holds NaN or infinity
"""


class CalotypeError(Exception):
    """Base of all errors raised on purpose; the command line prints it in one line and exits with 1."""


class UsageError(CalotypeError, ValueError):
    """The request itself is wrong: an option, a shape or a range."""


class LatentFormatError(UsageError):
    """The weights alone do not say how their latents are scaled."""


class PictureError(CalotypeError):
    """A picture is missing, damaged, too large or of a kind that can't be read."""


class LatentsError(CalotypeError):
    """Latents are damaged, have the wrong shape, or belong to another VAE."""


class WeightsError(CalotypeError):
    """A weight file is missing, damaged, or holds something other than a supported VAE."""


class FetchError(WeightsError):
    """Weights could neither be downloaded nor found in the local cache."""


class RemoteError(CalotypeError):
    """A server that files are at does not answer, or breaks off."""


class StorageError(CalotypeError):
    """A file can't be written: the disk is full, or refuses it."""


class MemoryLimitError(CalotypeError):
    """A computation needs more memory than the device has free."""


class NonFiniteError(CalotypeError):
    """A computation gave NaN or infinity where pixels or latents were expected."""


class CalotypeWarning(UserWarning):
    """Something was done differently from what was asked, and the result is still right."""
