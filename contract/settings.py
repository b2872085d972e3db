"""Settings: the only place that reads the environment. Each is ``EMBEDMILL_<NAME>``."""

import functools
import re
from pathlib import Path

from pydantic import Field, RedisDsn, TypeAdapter, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from contract.errors import UserError


class Settings(BaseSettings):
    """What every command shares. A command's own flags come on top of these."""

    model_config = SettingsConfigDict(env_prefix="EMBEDMILL_", frozen=True, use_attribute_docstrings=True)

    redis_url: str = "redis://localhost:6379/0"
    """The Redis that carries the batches: ``redis://`` or ``rediss://``."""

    engines: Path = Path("engines")
    """Folder that holds one folder per engine."""

    output: Path = Path("output")
    """Folder that holds one folder per job."""

    engine: str | None = None
    """Name of the engine to use. Unset: the one built last."""

    token_budget: int = Field(default=512, ge=1)
    """Most tokens, padding included, that one thread of the ONNX Runtime engine computes at once; a longer row is
    computed alone. 512 was the fastest of 512, 1,024 and 2,048 on two cores: a larger micro-batch leaves the cache."""

    threads: int | None = Field(default=None, ge=1)
    """Cores that one worker child computes on. Unset: the machine's, divided among the children."""

    attempts: int = Field(default=4, ge=1)
    """How often a batch is tried before it is set aside as dead."""

    redis_patience: float = Field(default=30.0, ge=0)
    """Seconds that the producer and the verifier wait for a Redis that does not answer. A worker waits for ever."""

    outstanding_bytes: int = Field(default=256 * 2**20, ge=1)
    """Most bytes of batches that are in Redis at once; the producer waits above that."""

    visibility_timeout: int = Field(default=1800, ge=1)
    """Seconds after which Redis hands a batch that a vanished worker held to another; three times the longest batch."""

    @field_validator("redis_url")
    @classmethod
    def _is_redis_url(cls, url: str) -> str:
        TypeAdapter(RedisDsn).validate_python(url)
        return url


@functools.cache
def settings() -> Settings:
    """The process's settings, read from the environment once.

    Raises:
        UserError: a variable's value is not of its kind; the message names the variable.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        variable = f"EMBEDMILL_{str(first['loc'][0]).upper()}"
        value = re.sub("//.*@", "//…@", str(first["input"]))  # a URL's password is not for a terminal or a log
        raise UserError(
            f"{variable} is {value!r}", first["msg"].lower(), f"set {variable} right, or unset it"
        ) from None
