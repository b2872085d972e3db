"""Messages that are not the producer's."""

import pickle
from pathlib import Path

from kombu.connection import Connection
from kombu.messaging import Producer

from contract.engine import EngineSpec
from contract.redis.keys import queue_of
from contract.redis.messages import TASK
from tests.commands import wait_until
from tests.security.station import Station, open_job, send


class Bomb:
    """A pickle that makes a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.file), "w"))


def test_nothing_but_json_of_a_tasks_form_is_taken(station: Station, tiny: EngineSpec, tmp_path: Path) -> None:
    queue = queue_of(open_job(station, tiny, tmp_path / "output").key)
    file = tmp_path / "harm"
    arguments = ["job", 0]
    bodies = {
        "application/x-python-serialize": pickle.dumps((arguments, {"x": Bomb(file)}, {})),
        "application/x-yaml": f"!!python/object/apply:builtins.open ['{file}', 'w']".encode(),
        "application/x-msgpack": b"\x93\x92\xa3job\x00\x80\x80",
        "application/data": pickle.dumps(Bomb(file)),
    }
    formless = [b"5", b"{}", b"[1, 2, 3]", b'[["job", 0], {}, 5]', b"{bad"]
    headers = {"task": TASK, "id": "forged", "lang": "py", "argsrepr": "", "kwargsrepr": "", "root_id": "forged"}
    url = f"redis://admin:admin@localhost:{station.port}/0"
    with Connection(url) as connection:
        sender = Producer(connection)
        for kind, body in [*bodies.items(), *(("application/json", body) for body in formless)]:
            sender.publish(
                body, exchange="", routing_key=queue, content_type=kind, content_encoding="binary", headers=headers
            )
    refused = "Received invalid task message: "
    wait_until(lambda: station.log.read_text().count(refused) == len(bodies) + len(formless), 20)
    for kind in ("pickle", "yaml", "msgpack"):
        assert f"{refused}Refusing to deserialize untrusted content of type {kind}" in station.log.read_text()
    wait_until(lambda: not station.client().hlen("unacked"))
    assert not file.exists()
    pickle.loads(bodies["application/x-python-serialize"])
    assert file.exists()  # it would have


def test_a_message_that_names_no_job_is_dropped_in_one_line(station: Station, tiny: EngineSpec, tmp_path: Path) -> None:
    job, other = open_job(station, tiny, tmp_path / "output"), open_job(station, tiny, tmp_path / "other")
    names: list[object] = [
        other.key,
        "../../etc",
        "/etc",
        "a/../b",
        "a\0b",
        "x\n[INFO] all is well",
        ["a", "list"],
        None,
        "a:out",
    ]
    for name in names:
        send(station, job, name, 0)
        shown = ascii(name)[:200].strip("'")
        station.said(f"dropped a message for batch 0 of job {shown}, which nobody announced")
    for number in ("../0", 1.0, -1, 10**30, True, None, [0]):
        send(station, job, job.key, number)
        station.said(f"dropped a message for batch {ascii(number).strip(chr(39))} of job {job.key}")
    assert "\n[INFO] all is well" not in station.log.read_text()
    assert not list(tmp_path.rglob("*.parquet"))
