from pathlib import Path

import pytest

from contract.errors import UserError
from contract.settings import Settings, settings

VALUES = {
    "redis_url": ("rediss://user:pw@example.org:6380/3", "rediss://user:pw@example.org:6380/3"),
    "redis_ca": (__file__, Path(__file__)),
    "redis_master": ("mill", "mill"),
    "sentinel_user": ("watcher", "watcher"),
    "sentinel_password": ("pw", "pw"),
    "engines": ("/srv/engines", Path("/srv/engines")),
    "output": ("out put", Path("out put")),
    "engine": ("bge-small", "bge-small"),
    "runtime": ("onnxruntime", "onnxruntime"),
    "token_budget": ("4096", 4096),
    "threads": ("3", 3),
    "tokenizers": ("12", 12),
    "attempts": ("7", 7),
    "redis_patience": ("0.5", 0.5),
    "outstanding_bytes": ("1000000", 1_000_000),
    "batch_bytes": ("1000", 1000),
    "visibility_timeout": ("60", 60),
    "metrics_port": ("9808", 9808),
    "log": ("json", "json"),
    "heartbeat_timeout": ("10", 10.0),
    "stop_seconds": ("20", 20.0),
}


def test_every_setting_is_tested() -> None:
    assert set(VALUES) == set(Settings.model_fields)


@pytest.mark.parametrize("name", VALUES)
def test_a_setting_is_read_from_its_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, value = VALUES[name]
    monkeypatch.setenv(f"EMBEDMILL_{name.upper()}", text)
    settings.cache_clear()
    assert getattr(settings(), name) == value


@pytest.mark.parametrize("name", VALUES)
def test_a_setting_has_a_default_and_says_what_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in VALUES:
        monkeypatch.delenv(f"EMBEDMILL_{other.upper()}", raising=False)
    field = Settings.model_fields[name]
    assert getattr(Settings(), name) == field.default
    assert field.description


def test_the_environment_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings()
    monkeypatch.setenv("EMBEDMILL_ATTEMPTS", "9")
    assert settings() is before


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EMBEDMILL_REDIS_URL", "localhost:6379"),
        ("EMBEDMILL_REDIS_URL", "amqp://localhost"),
        ("EMBEDMILL_REDIS_URL", ""),
        ("EMBEDMILL_REDIS_URL", "sentinel://one/0;sentinel://two/1"),
        ("EMBEDMILL_TOKEN_BUDGET", "0"),
        ("EMBEDMILL_TOKEN_BUDGET", "many"),
        ("EMBEDMILL_THREADS", "-1"),
        ("EMBEDMILL_ATTEMPTS", "1.5"),
        ("EMBEDMILL_REDIS_PATIENCE", "-1"),
        ("EMBEDMILL_OUTSTANDING_BYTES", "1 GB"),
        ("EMBEDMILL_VISIBILITY_TIMEOUT", "0"),
    ],
)
def test_a_bad_value_is_refused_by_the_variables_name(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    settings.cache_clear()
    with pytest.raises(UserError) as caught:
        settings()
    message = caught.value.format_message()
    assert message.startswith(f"{variable} is {value!r}; ")
    assert f"set {variable} right" in message
    assert "\n" not in message


def test_a_refused_url_keeps_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDMILL_REDIS_URL", "http://miller:grain/@example.org")
    settings.cache_clear()
    with pytest.raises(UserError, match=r"example\.org") as caught:
        settings()
    assert "grain" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("redis_ca", "redis://localhost"),
        ("redis_ca", "redis+socket:///tmp/redis.sock"),
        ("redis_master", "rediss://localhost"),
        ("sentinel_user", "redis://localhost"),
        ("sentinel_password", "redis+socket:///tmp/redis.sock"),
    ],
)
def test_a_setting_that_the_address_has_no_use_for_is_refused(
    name: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"EMBEDMILL_{name.upper()}"
    monkeypatch.setenv("EMBEDMILL_REDIS_URL", url)
    assert Settings().redis.shown
    monkeypatch.setenv(variable, VALUES[name][0])
    with pytest.raises(UserError, match=f"{variable} is set, and EMBEDMILL_REDIS_URL begins with"):
        _ = Settings().redis
