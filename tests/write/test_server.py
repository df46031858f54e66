"""The demo's WebSocket, by clients of an own: users apart, stale answers dropped, nothing lost."""

import asyncio
import json
import threading
import time
import urllib.request

import pytest

from jaxllm.errors import UserError
from jaxllm.write import Lexicon, Proposal, Service, ServiceConfig, UserStore

pytest.importorskip("uvicorn", reason="the demo's server needs the extra demo")
websockets = pytest.importorskip("websockets", reason="the demo's server needs the extra demo")

from jaxllm.write.server import is_loopback, make_server, open_port  # noqa: E402

LINES = ("please send the invoice today", "please send the receipt today", "please send the invoice again")


class SlowModel:
    """A model's stand-in: it takes a while, and suggests the text's length."""

    def __init__(self, seconds):
        self.seconds, self.asked = seconds, []

    def session(self):
        return self

    def propose(self, text, deadline):
        time.sleep(self.seconds)
        self.asked.append(text)
        prefix = text.rpartition(" ")[2]
        return [] if time.perf_counter() > deadline else [Proposal((prefix + "q" * len(text),), 1.0)]


class Running:
    """A server on a free port, in a thread."""

    def __init__(self, folder, model=None, token=None, **values):
        shared = Lexicon()
        for line in LINES:
            shared.learn(line)
        self.service = Service(shared, model, UserStore(folder), ServiceConfig(**values))
        self.listening = open_port("127.0.0.1", 0)
        self.port, self.server = self.listening.getsockname()[1], make_server(self.service, token)
        run = dict(target=self.server.run, kwargs={"sockets": [self.listening]})
        self.thread = threading.Thread(**run, daemon=True)
        self.token = token

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        if self.token is None:
            page = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/").read().decode()
            self.token = json.loads(page.partition("const token = ")[2].partition(",")[0])
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(10)

    def url(self, path, user, scheme="http"):
        return f"{scheme}://127.0.0.1:{self.port}/{path}?token={self.token}&user={user:a>16}"

    def socket(self, user="one"):
        return websockets.connect(self.url("ws", user, "ws"))


async def say(socket, seq, text):
    await socket.send(json.dumps({"type": "text", "seq": seq, "text": text}))
    return json.loads(await asyncio.wait_for(socket.recv(), 10))


def test_typing_accepting_and_learning(tmp_path):
    async def talk(running):
        async with running.socket() as socket:
            answer = await say(socket, 1, "please send the inv")
            assert answer["seq"] == 1 and answer["by"] == "counts" and answer["ms"] < 1000
            assert answer["shown"][0]["text"].startswith("oice ") and answer["shown"][0]["first"] == "oice "
            await socket.send(json.dumps({"type": "accept", "text": "please send the inv", "whole": False}))
            await say(socket, 2, "please send the invoice ")
            assert (await say(socket, 3, "please qu"))["shown"] == []
            return await say(socket, 4, "Quokkas munch.\nQuokkas munch.\nqu")

    with Running(tmp_path) as running:
        answer = asyncio.run(talk(running))
        assert answer["shown"][0]["first"] == "okkas "
        held = json.loads(urllib.request.urlopen(running.url("export", "one")).read())
        assert "quokkas" in json.dumps(held)
        erase = urllib.request.Request(running.url("erase", "one"), method="POST")
        assert json.loads(urllib.request.urlopen(erase).read()) == {"erased": True}
        assert "quokkas" not in urllib.request.urlopen(running.url("export", "one")).read().decode()


def test_two_users_never_see_each_others_text_and_one_finds_theirs_again(tmp_path):
    secret = "the codeword is xyzzyplugh now.\n"

    async def talk(running):
        async with running.socket("anna") as anna, running.socket("bert") as bert:
            await say(anna, 1, "x")
            await say(anna, 2, secret * 3)
            assert (await say(anna, 3, secret * 3 + "the codeword is xy"))["shown"][0]["first"] == "zzyplugh "
            for seq, text in enumerate(("the codeword is xy", "the codeword is ", "xyzzy", "xy"), 1):
                assert "plugh" not in json.dumps(await say(bert, seq, text))
        async with running.socket("anna") as anna:  # reconnected: what was saved is there
            assert (await say(anna, 1, "the codeword is xy"))["shown"][0]["first"] == "zzyplugh "

    with Running(tmp_path) as running:
        asyncio.run(talk(running))


def test_the_models_answer_to_an_older_text_is_dropped(tmp_path):
    model = SlowModel(0.15)

    async def talk(running):
        async with running.socket() as socket:
            for seq in range(1, 6):
                await socket.send(json.dumps({"type": "text", "seq": seq, "text": "a" * seq}))
            answers = []
            with pytest.raises(TimeoutError):
                while True:
                    answers.append(json.loads(await asyncio.wait_for(socket.recv(), 1.0)))
            return answers

    with Running(tmp_path, model, budget_ms=5000.0) as running:
        answers = asyncio.run(talk(running))
    by_counts = [one["seq"] for one in answers if one["by"] == "counts"]
    by_model = [one for one in answers if one["by"] == "model"]
    assert by_counts == [1, 2, 3, 4, 5]
    assert [one["seq"] for one in by_model] == [5] and by_model[0]["shown"][0]["text"].strip() == "qqqqq"
    assert len(model.asked) < 5


def test_a_model_that_misses_its_deadline_is_not_shown(tmp_path):
    async def talk(running):
        async with running.socket() as socket:
            assert (await say(socket, 1, "a"))["by"] == "counts"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(socket.recv(), 0.5)

    with Running(tmp_path, SlowModel(0.1), budget_ms=20.0) as running:
        asyncio.run(talk(running))


def test_twenty_users_at_ten_keys_a_second_lose_nothing(tmp_path):
    """200 keystrokes a second in all, and then as fast as one client sends."""

    async def type_(running, user, keys, pause):
        text, seen = "please send the invoice to me ", []
        async with running.socket(f"user{user}") as socket:

            async def read():
                while len(seen) < keys:
                    seen.append(json.loads(await asyncio.wait_for(socket.recv(), 20))["seq"])

            reading = asyncio.create_task(read())
            for seq in range(keys):
                await socket.send(json.dumps({"type": "text", "seq": seq, "text": text[: seq % len(text)]}))
                await asyncio.sleep(pause)
            await reading
        return seen

    async def everybody(running):
        many = await asyncio.gather(*(type_(running, user, 10, 0.1) for user in range(20)))
        return many, await type_(running, 99, 200, 0.005)

    with Running(tmp_path) as running:
        many, fast = asyncio.run(everybody(running))
    assert all(seen == list(range(10)) for seen in many) and fast == list(range(200))


def test_what_is_not_allowed_is_told_and_the_connection_goes_on(tmp_path):
    async def talk(running):
        async with running.socket() as socket:
            assert "30 are the most" in (await say(socket, 1, "x" * 31))["message"]
            assert (await say(socket, 2, "ok"))["type"] == "suggest"
            assert "no newer than 2" in (await say(socket, 2, "ok"))["message"]
            for wrong in ("[]", "nonsense", '{"type": "steal"}', '{"type": "text", "seq": "a", "text": 5}'):
                await socket.send(wrong)
                assert json.loads(await socket.recv())["type"] == "error"
            with pytest.raises(websockets.exceptions.ConnectionClosed):
                await say(socket, 3, "x" * 100_000)
                await socket.recv()
        for query in ("token=wrong&user=" + "a" * 20, f"token={running.token}&user=../../etc"):
            with pytest.raises(websockets.exceptions.InvalidStatus):
                await websockets.connect(f"ws://127.0.0.1:{running.port}/ws?{query}")

    with Running(tmp_path, most_characters=30) as running:
        asyncio.run(talk(running))


def test_bound_elsewhere_the_page_asks_for_the_token(tmp_path):
    with Running(tmp_path, token="s3cret") as running:
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"http://127.0.0.1:{running.port}/")
        assert b"Predictive writing" in urllib.request.urlopen(
            f"http://127.0.0.1:{running.port}/?token=s3cret"
        ).read()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"http://127.0.0.1:{running.port}/export?user={'a' * 16}")
    assert is_loopback("127.0.0.1") and is_loopback("localhost") and not is_loopback("0.0.0.0")


def test_a_damaged_store_and_a_port_in_use_are_told(tmp_path):
    async def talk(running):
        async with running.socket("anna") as socket:
            return json.loads(await socket.recv())

    with Running(tmp_path) as running:
        running.service.store.path(f"{'anna':a>16}").write_text("{")
        assert "is not JSON" in asyncio.run(talk(running))["message"]
        with pytest.raises(UserError, match=f"port {running.port} of 127.0.0.1 cannot be opened"):
            open_port("127.0.0.1", running.port)


def test_a_machine_without_ipv6_is_told(monkeypatch):
    def refuse(family):
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr("socket.socket", refuse)
    with pytest.raises(UserError, match="port 0 of ::1 cannot be opened .Address family"):
        open_port("::1", 0)
