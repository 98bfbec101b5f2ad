"""Messages that were damaged, forged or are too large, against a tier that must go on answering."""

import io
import json
import pickle
import socket
import struct
import threading
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from tier_helpers import X, assert_same, attached, first_tier, serving

from leenet_fx import InputError
from leenet_fx.runtime.active_batch import ActiveBatch
from leenet_fx.tiers.answers import Answers, read_answers
from leenet_fx.tiers.coding import CODINGS
from leenet_fx.tiers.link import Link, LinkError
from leenet_fx.tiers.messages import Message, MessageError, encode, read
from leenet_fx.tiers.tier import Tier

EE = attached()
MESSAGE = Message("samples", {"count": 2, "x": "é"}, {"a": torch.arange(6.0).view(2, 3)})


@pytest.fixture(scope="module")
def address():
    with serving(EE, 1) as found:
        yield found


def parsed(content, **options):
    return read(io.BytesIO(content).read, **options)


def assembled(header, body=b""):
    """A message with a right checksum."""
    crc = zlib.crc32(body, zlib.crc32(header))
    return struct.pack("!4sIIQI", b"LNFX", 1, len(header), len(body), crc) + header + body


def test_a_message_is_read_as_it_was_sent():
    found = parsed(encode(MESSAGE))
    assert found.kind == MESSAGE.kind
    assert found.fields == MESSAGE.fields
    assert torch.equal(found.tensors["a"], MESSAGE.tensors["a"])
    assert assembled(b'{"kind": "x"}') == encode(Message("x"))


@given(st.data())
def test_every_changed_byte_is_noticed(data):
    content = bytearray(encode(MESSAGE))
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    padding = b"\0" * 2**10
    with pytest.raises(MessageError):
        parsed(bytes(content) + padding)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "is another program at this address"),
        (struct.pack("!4sIIQI", b"LNFX", 2, 2, 0, 0), "version 1, got version 2"),
        (struct.pack("!4sIIQI", b"LNFX", 1, 2**31, 0, 0), "header has 2147483648 bytes"),
        (struct.pack("!4sIIQI", b"LNFX", 1, 2, 2**60, 0), "has 1152921504606846976 bytes"),
        (assembled(b"not json"), "Not a header in JSON"),
        (assembled(b"\xff\xfe"), "Not a header in JSON"),
        (assembled(b"[" * 60000), "Not a header in JSON"),
        (assembled(b"[]"), "no 'kind'"),
        (assembled(b'{"kind": 3}'), "no 'kind'"),
        (assembled(b'{"kind": "x"}', b"no tensors"), "Not a header in JSON with tensors"),
        (assembled(b'{"kind": "x"}', pickle.dumps({"a": 1})), "Not a header in JSON with tensors"),
    ],
)
def test_what_is_no_message_is_a_clear_error(content, message):
    with pytest.raises(MessageError, match=message):
        parsed(content)


def test_a_message_larger_than_the_limit_is_neither_sent_nor_read():
    large = Message("x", {}, {"a": torch.zeros(1000)})
    with pytest.raises(InputError, match="at most 999 are sent at once"):
        encode(large, 999)
    with pytest.raises(MessageError, match="at most 999"):
        parsed(encode(large), max_bytes=999)


def hello(link, ee=EE, stage=1):
    identity = Tier(ee, 0, stage).identity
    fields = {"network": identity.network, "policy": identity.policy, "stage": stage}
    link.send(Message("hello", fields))
    return link.receive(10)


def connected(address):
    host, port = address.split(":")
    return Link(socket.create_connection((host, int(port)), 10), timeout=10)


def header_of(message):
    return {"kind": message.kind, **message.fields}


def sent_samples():
    """A right message of samples."""
    tier = Tier(EE, 0, 1)
    active = ActiveBatch((X,), len(X), torch.arange(len(X)))
    tier.run(active, torch.empty(len(X), 5))
    return tier.behind.message(active, "unchanged", seconds=10.0)


RIGHT = sent_samples()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@settings(max_examples=60)
@given(data=st.data())
def test_a_forged_message_gets_a_reason_and_others_are_still_answered(address, data):
    header, tensors = header_of(RIGHT), dict(RIGHT.tensors)
    change = data.draw(st.sampled_from(["field", "drop", "add", "shape", "dtype", "kind"]))
    name = next(iter(tensors))
    if change == "field":
        field = data.draw(st.sampled_from([key for key in header if key != "kind"]))
        old = header[field]
        header[field] = data.draw(JSON.filter(lambda value: value != old))
    elif change == "drop":
        tensors.pop(name)
    elif change == "add":
        tensors["one.more"] = torch.zeros(data.draw(st.integers(0, 3)))
    elif change == "shape":
        axis = data.draw(st.integers(0, tensors[name].ndim - 1))
        tensors[name] = tensors[name].narrow(axis, 0, 1).contiguous()
    elif change == "dtype":
        tensors[name] = tensors[name].to(data.draw(st.sampled_from([torch.float16, torch.int32])))
    else:
        header["kind"] = data.draw(st.text(max_size=8))
    link = connected(address)
    assert hello(link).kind == "ready"
    content = assembled(json.dumps(header).encode(), save(tensors) if tensors else b"")
    link._socket.sendall(content)
    reply = link.receive(20)
    harmless = change == "field" and field in ("seconds", "orders", "coding")
    if reply.kind == "answers":
        assert harmless
    else:
        assert reply.kind == "failed"
        assert reply.fields["reason"]
    link.close()


@pytest.mark.parametrize(
    "content",
    [b"", b"LNFX", b"GET / HTTP/1.1\r\n\r\n" * 3, b"\0" * 100],
    ids=["nothing", "a part", "http", "zeros"],
)
def test_a_tier_goes_on_after_bytes_that_are_no_message(content, address, caplog):
    host, port = address.split(":")
    for _ in range(40):
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.sendall(content)
    device = first_tier(EE, 1, address)
    assert_same(device.predict(X), EE.predict(X))
    device.close()


@pytest.mark.parametrize("coding", CODINGS)
def test_damaged_answers_count_as_a_tier_that_is_gone(coding, caplog):
    listening = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listening.getsockname()[1]}"

    def answer():
        with listening:
            link = Link(listening.accept()[0], timeout=10)
            link.receive(10)
            link.send(Message("ready", {"stages": [[1, 5]]}))
            link.receive(10)
            content = bytearray(encode(Message("answers", {"sent": []}, {"a": torch.zeros(9)})))
            content[-1] ^= 1
            link._socket.sendall(content)
            link.close()

    thread = threading.Thread(target=answer)
    thread.start()
    device = first_tier(EE, 1, address, coding=coding)
    found = device.predict(X)
    thread.join()
    assert torch.equal(found.fallback, EE.predict(X).exit_index >= 1)
    assert "its checksum differs" in caplog.text
    device.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"exit_index": torch.full((3,), 5, dtype=torch.int16)},
        {"exit_index": torch.full((3,), 0, dtype=torch.int16)},
        {"exit_index": torch.full((3,), -1, dtype=torch.int16)},
        {"tier": torch.full((3,), 200, dtype=torch.uint8)},
        {"logits": torch.zeros(3, 4)},
        {"logits": torch.zeros(2, 5)},
        {"fallback": torch.zeros(3, dtype=torch.uint8)},
    ],
)
def test_answers_that_cannot_be_are_refused(changes):
    like = torch.zeros(3, 5)
    answers = Answers.empty(like)
    answers.exit_index += 3
    right = answers.message()
    assert read_answers(right, like, range(1, 5)).exit_index.tolist() == [2, 2, 2]
    forged = Message("answers", right.fields, {**right.tensors, **changes})
    with pytest.raises(MessageError, match="Answers n"):
        read_answers(forged, like, range(1, 5))
    for sent in (None, 3, [-1], [1.5], [True], [1] * 99):
        with pytest.raises(MessageError, match="numbers of bytes"):
            read_answers(Message("answers", {"sent": sent}, right.tensors), like, range(1, 5))


def test_a_link_that_closes_within_a_message_is_an_error():
    host = socket.create_server(("127.0.0.1", 0))
    sender = socket.create_connection(host.getsockname())
    link = Link(host.accept()[0], timeout=10)
    sender.sendall(encode(MESSAGE)[:-3])
    sender.close()
    with pytest.raises(LinkError, match="closed the connection"):
        link.receive(10)
    link.close()
    host.close()
