"""The answer cache shared by processes, threads and forks, some of which are killed: nothing put is lost or torn."""

import signal
import threading
from pathlib import Path

import pytest
from caches import finish, query, script, total_is_right

from wst.students.cache import AnswerCache
from wst.types import Response


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "answers.sqlite"


WRITER = """
path, mine, other = sys.argv[1:4]
each, writes = map(int, sys.argv[4:])
cache = AnswerCache(path)
answer = lambda name, i: Response(f"{name} {i} " + "word " * (i % 200), i, bool(i % 2), i + 1)
missing = 0
for start in range(0, writes, each):
    batch = range(start, start + each)
    cache.put({f"{mine}-{i}": answer(mine, i) for i in batch} | {f"both-{i}": answer("both", i) for i in batch}, mine)
    keys = [f"{name}-{i}" for i in batch for name in (mine, other, "both")]
    got = cache.get(keys)
    for key, response in got.items():
        name, i = key.split("-")
        assert response == answer(name, int(i)), (key, response)
    assert sum(key.startswith(mine + "-") for key in got) == each, "its own answers are not there"
"""


@pytest.mark.parametrize("writes", [1000, pytest.param(10_000, marks=pytest.mark.long)])
def test_two_processes_with_many_writes_each_lose_and_tear_nothing(path: Path, writes: int) -> None:
    writers = [script(WRITER, path, *names, 20, writes) for names in (("a", "b"), ("b", "a"))]
    for writer in writers:
        finish(writer, 600)
    found = AnswerCache(str(path)).get(f"{name}-{i}" for i in range(writes) for name in ("a", "b", "both"))
    assert len(found) == 3 * writes
    for key, response in found.items():
        name, i = key.split("-")
        number = int(i)
        text = f"{name} {i} " + "word " * (number % 200)
        assert response == Response(text, number, bool(number % 2), number + 1)
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    assert total_is_right(path)


def test_threads_share_one_cache(path: Path) -> None:
    cache = AnswerCache(str(path))
    faults: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for i in range(20):
                cache.put({f"{name}{i}": Response(f"{name}{i}")}, name)
                got = cache.get(f"{other}{j}" for other in "abcdefgh" for j in range(i + 1))
                assert all(response.text == key for key, response in got.items())
                assert {f"{name}{j}" for j in range(i + 1)} <= set(got)
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert len(cache.get(f"{name}{i}" for name in "abcdefgh" for i in range(20))) == 160


FORKS = """
import threading
cache = AnswerCache(sys.argv[1])
cache.put({"before": Response("x")}, "s")
stop = threading.Event()
def busy():
    i = 0
    while not stop.is_set():
        cache.put({f"parent-{i}": Response("p")}, "s")
        i += 1
    print(i)
thread = threading.Thread(target=busy)
thread.start()
children = []
for child in range(6):
    pid = os.fork()
    if not pid:
        assert len(cache.get(["before"])) == 1
        for i in range(10):
            cache.put({f"child-{child}-{i}": Response("c")}, "s")
        sys.exit()  # with all that an interpreter does at its end
    children.append(pid)
codes = [os.waitpid(pid, 0)[1] for pid in children]
stop.set()
thread.join()
assert codes == [0] * 6, codes
assert len(cache.get(f"child-{child}-{i}" for child in range(6) for i in range(10))) == 60
"""


@pytest.mark.slow
def test_a_fork_opens_the_file_anew(path: Path) -> None:
    written = int(finish(script(FORKS, path)))
    assert written > 0
    found = AnswerCache(str(path)).get(["before", *(f"parent-{i}" for i in range(written))])
    assert len(found) == written + 1
    assert query(path, "PRAGMA integrity_check") == [("ok",)]


FORK_AND_CLOSE = """
cache = AnswerCache(sys.argv[1])
cache.put({"before": Response("x")}, "s")
reads, writes = os.pipe(), os.pipe()
if not os.fork():
    cache.get(["before"])
    os.write(reads[1], b"x")
    os.read(writes[0], 1)
    cache.put({f"child-{i}": Response("c") for i in range(5)}, "s")
    os._exit(0)
cache.get(["before"])
os.read(reads[0], 1)
cache.close()  # while the child has the file open
os.write(writes[1], b"x")
os.wait()
assert len(cache.get(f"child-{i}" for i in range(5))) == 5
"""


def test_a_forks_answers_outlive_its_parents_closing(path: Path) -> None:
    finish(script(FORK_AND_CLOSE, path))


KILLED = """
cache = AnswerCache(sys.argv[1])
for i in range(10**6):
    cache.put({f"{i}-{j}": Response(f"{i}-{j} " + "word " * 300) for j in range(3)}, "s")
    print(i, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 12, 50])
def test_a_killed_writer_loses_nothing_it_had_put(path: Path, lines: int) -> None:
    writer = script(KILLED, path)
    assert writer.stdout is not None
    for _ in range(lines):
        last = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    out, _ = writer.communicate()
    assert writer.returncode == -signal.SIGKILL
    last = max([last, *(int(line) for line in out.split("\n")[:-1])])
    found = AnswerCache(str(path)).get(f"{i}-{j}" for i in range(last + 1) for j in range(3))
    assert len(found) == 3 * (last + 1)
    assert all(response.text == f"{key} " + "word " * 300 for key, response in found.items())
    torn = {key for (key,) in query(path, "SELECT key FROM answers")} - set(found)
    assert torn in (set(), {f"{last + 1}-{j}" for j in range(3)}), "a put was kept in part"


CLAIMS = """
cache = AnswerCache(sys.argv[1])
print(cache.claim("a"), cache.claim("b"), flush=True)
if len(sys.argv) > 2:
    cache.claim("c")
    if os.fork():
        os.wait()
    else:
        print(cache.claim("c"), flush=True)  # its parent has it
        os._exit(0)
    sys.stdin.readline()
"""


def test_a_claim_excludes_others_until_it_is_released_or_its_process_ends(path: Path) -> None:
    cache, other = AnswerCache(str(path)), AnswerCache(str(path))
    assert cache.claim("a")
    assert not cache.claim("a")
    assert not other.claim("a")
    assert finish(script(CLAIMS, path)) == "False True\n"
    cache.release("a")
    assert other.claim("a")
    other.release("a")
    holder = script(CLAIMS, path, "hold")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True True\n"
    assert holder.stdout.readline() == "False\n"
    assert not cache.claim("a")
    holder.kill()
    holder.communicate()
    assert cache.claim("a"), "a claim outlived its process"
    cache.release("a")


def test_a_link_to_the_file_is_the_same_cache(path: Path, tmp_path: Path) -> None:
    cache = AnswerCache(str(path))
    cache.put({"key": Response("said")}, "s")
    link = tmp_path / "link.sqlite"
    link.symlink_to(path)
    other = AnswerCache(str(link))
    assert other.path == cache.path
    assert cache.claim("a")
    assert not other.claim("a")
    cache.release("a")
