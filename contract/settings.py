"""Settings: the only module that reads the environment. Each is ``EMBEDMILL_<NAME>``."""

import functools
import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, FilePath, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from contract.errors import UserError
from contract.redis.address import Address, Login, Watch, parse
from contract.store import LocationField, location


class Settings(BaseSettings):
    """The settings of all commands. ``docs/settings.md`` shows these fields' defaults and docstrings as a table."""

    model_config = SettingsConfigDict(env_prefix="EMBEDMILL_", frozen=True, use_attribute_docstrings=True)

    redis_url: str = "redis://localhost:6379/0"
    """Address of the Redis that carries the batches: ``redis://user:password@host:port/number``, ``rediss://`` for TLS,
    ``redis+socket:///path`` for a socket of this machine, or ``sentinel://host:port;sentinel://host:port/number``.
    Nothing may follow the database's number. Percent-encode a password that holds more than letters and digits."""

    redis_ca: FilePath | None = None
    """File with the certificate authority that signed Redis's certificate, for ``rediss://``. Unset: the system's
    authorities. With ``sentinel://`` it means that Sentinels and Redis speak TLS."""

    redis_master: str = "mymaster"
    """Name under which Sentinels watch Redis, for ``sentinel://``."""

    sentinel_user: str | None = None
    """User of the Sentinels themselves, if they have users. Redis's own is in the URL."""

    sentinel_password: str | None = None
    """Password of the Sentinels themselves, if they have one. Redis's own is in the URL."""

    engines: Path = Path("engines")
    """Folder that holds one folder per engine."""

    output: LocationField = location("output")
    """Folder that holds one folder per job: a path, or ``s3://bucket/prefix`` or ``gs://bucket/prefix``."""

    engine: str | None = None
    """Name of the engine to use. Unset: the engine that was built last."""

    runtime: Literal["auto", "tensorrt", "torch", "onnxruntime", "modules"] = "auto"
    """What a worker computes with: ``tensorrt``, ``torch``, ``onnxruntime``, ``modules`` or ``auto``. On a machine with
    a GPU, ``auto`` means the fastest that ``python -m engine_build tune`` measured; where nothing was measured,
    TensorRT if it is installed and the engine has a plan, and else PyTorch. Without a GPU it means ONNX Runtime, and
    for an engine with rows of more than 1,024 tokens PyTorch where that is installed. An engine that was not exported
    to ONNX is computed by PyTorch in any case."""

    token_budget: int = Field(default=512, ge=1)
    """Most tokens of one micro-batch of ONNX Runtime, padding included; each core computes one micro-batch at a time. A
    longer row is computed alone. Rows × length × length is at most 4 million too, for the memory of the attention. 512
    was the fastest of 512, 1,024 and 2,048 on two cores."""

    threads: int | None = Field(default=None, ge=1)
    """CPU cores that one worker process computes on. Unset: the machine's cores, divided among the worker's
    processes."""

    tokenizers: int | None = Field(default=None, ge=1)
    """Processes in which a producer tokenizes; 1 is the producer's own. Unset: half as many as the machine has cores,
    divided among the producers that the job has on it, and fewer for a small job."""

    attempts: int = Field(default=3, ge=1)
    """How many times a batch is tried as a whole. If all of them fail, the worker searches for the rows that make it
    fail."""

    redis_patience: float = Field(default=30.0, ge=0)
    """Seconds that the producer waits for a Redis that does not answer. A worker waits without a limit."""

    outstanding_bytes: int = Field(default=256 * 2**20, ge=1)
    """Most bytes of a job's batches that may be in Redis at once (default: 256 MiB). The job's producers share them;
    they wait above that, and above half of Redis's ``maxmemory``."""

    batch_bytes: int = Field(default=256 * 2**20, ge=1)
    """Most bytes of one batch (default: 256 MiB). The producer publishes no larger one, and a worker takes none."""

    visibility_timeout: int = Field(default=600, ge=1)
    """Seconds after which Celery gives a batch that a worker holds to another worker. It is the fallback for a lost
    machine while no producer runs. Set it higher than the slowest batch takes: a slower batch is computed twice."""

    heartbeat_timeout: float = Field(default=10.0, ge=3)
    """Seconds of silence after which the producer takes a worker for dead and publishes its batch again, and another
    producer of the job for dead and makes what that had claimed. A worker sends a heartbeat about every two seconds."""

    stop_seconds: float = Field(default=8.0, ge=1)
    """Seconds within which a worker ends after SIGTERM or Ctrl-C, whatever it waits for. Its batch has all but the last
    three of them to finish."""

    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Port at which a worker serves Prometheus metrics. Unset: it serves none."""

    log: Literal["text", "json"] = "text"
    """Format of a worker's log: ``text``, or ``json`` for one JSON object a line."""

    @field_validator("redis_url")
    @classmethod
    def _is_redis_url(cls, url: str) -> str:
        try:
            parse(url)
        except ValueError as error:
            raise PydanticCustomError("redis_url", "{expected}", {"expected": str(error)}) from None
        return url

    @property
    def redis(self) -> Address:
        """What ``redis_url`` says, with what belongs to it.

        Raises:
            UserError: another setting is set that means nothing for such an address.
        """
        scheme = self.redis_url.partition(":")[0]
        for name, schemes in _FOR_SCHEMES.items():
            if is_set(name) and scheme not in schemes:
                raise UserError(
                    f"{_variable(name)} is set, and EMBEDMILL_REDIS_URL begins with {scheme}://",
                    f"expected {' or '.join(f'{one}://' for one in schemes)}, for which it is",
                    "unset it, or correct the address",
                )
        login = Login(self.sentinel_user, self.sentinel_password)
        return parse(self.redis_url, Watch(self.redis_master, login, tls=self.redis_ca is not None))


_FOR_SCHEMES = {
    "redis_ca": ("rediss", "sentinel"),
    **dict.fromkeys(("redis_master", "sentinel_user", "sentinel_password"), ("sentinel",)),
}
"""Settings that belong to addresses of some schemes alone."""


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
        variable = _variable(str(first["loc"][0]))
        # A URL's password is not for a terminal or a log.
        value = re.sub("//.*@", "//…@", str(first["input"]), flags=re.DOTALL)
        raise UserError(
            f"{variable} is {value!r}", first["msg"].lower(), f"set {variable} right, or unset it"
        ) from None


def engines_in_cache() -> Path:
    """Where ``embedmill embed`` keeps engines."""
    return cache_folder() / "engines"


def cache_folder() -> Path:
    """What later runs may use: ``~/.cache/embedmill``, or below ``XDG_CACHE_HOME``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "embedmill"


def is_set(name: str) -> bool:
    """Whether the environment has the setting of this name, a field of ``Settings``."""
    return _variable(name) in os.environ


def put(**values: str) -> None:
    """Set settings for this process and all that it starts, over what the environment says."""
    os.environ |= {_variable(name): value for name, value in values.items()}
    settings.cache_clear()


def _variable(name: str) -> str:
    return f"EMBEDMILL_{name.upper()}"
