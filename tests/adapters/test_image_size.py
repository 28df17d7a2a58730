"""What an image is taken to be before any usage: by its size, read from its first bytes."""

import base64
import json
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concur_agents.adapters import image_size, payload, prompts
from concur_agents.adapters.prompts import of_body, of_messages
from concur_agents.core import Usage
from concur_agents.governor import Governor

REST = random.Random(1).randbytes(30_000)


def png(width: int, height: int) -> bytes:
    sizes = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR" + sizes + REST


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + width.to_bytes(2, "little") + height.to_bytes(2, "little") + REST


def segment(kind: int, data: bytes) -> bytes:
    return bytes([0xFF, kind]) + (len(data) + 2).to_bytes(2, "big") + data


def jpeg(width: int, height: int, *, before: int = 100, frame: int = 0xC0) -> bytes:
    sizes = b"\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big")
    tables = segment(0xE1, REST[:before]) + segment(0xC4, bytes(20)) + b"\xff"
    return b"\xff\xd8" + tables + segment(frame, sizes + bytes(9)) + REST


def webp(kind: bytes, data: bytes) -> bytes:
    return b"RIFF" + bytes(4) + b"WEBP" + kind + bytes(4) + data + REST


def extended(width: int, height: int) -> bytes:
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return webp(b"VP8X", bytes(4) + sizes)


def lossless(width: int, height: int) -> bytes:
    return webp(b"VP8L", b"\x2f" + (width - 1 | (height - 1) << 14).to_bytes(4, "little"))


def lossy(width: int, height: int) -> bytes:
    sizes = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return webp(b"VP8 ", bytes(3) + b"\x9d\x01\x2a" + sizes)


FORMATS: list[Any] = [png, gif, jpeg, extended, lossless, lossy]


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def openai(data: bytes, **more: str) -> dict[str, Any]:
    url = f"data:image/x;base64,{encoded(data)}"
    return {"type": "image_url", "image_url": {"url": url, **more}}


def responses(data: bytes, **more: str) -> dict[str, Any]:
    return {**more, "type": "input_image", "image_url": f"data:image/x;base64,{encoded(data)}"}


def anthropic(data: bytes) -> dict[str, Any]:
    source = {"type": "base64", "media_type": "image/x", "data": encoded(data)}
    return {"type": "image", "source": source}


def both(part: dict[str, Any]) -> tuple[int, int]:
    """The tokens of a part in a body, and in a framework's messages."""
    said = [{"role": "user", "content": [part, {"type": "text", "text": "look"}]}]
    return payload.text_size(json.dumps(said).encode())[1], payload.measure(said)[1]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", [openai, responses, anthropic])
def test_an_image_counts_by_its_pixels(form: Any, shape: Any) -> None:
    """A screenshot of 2,691 tokens was taken for 1,000."""
    tokens = 1920 * 1080 // 784
    assert both(shape(form(1920, 1080))) == (tokens, tokens)
    tokens = 280 * 140 // 784
    assert both(shape(form(280, 140))) == (tokens, tokens)


def test_raw_bytes_of_an_image_count_the_same() -> None:
    assert payload.measure([{"bytes": png(280, 280)}])[1] == 100
    assert payload.measure([bytearray(jpeg(280, 280))])[1] == 100
    assert payload.measure([memoryview(png(280, 280))])[1] == 1000


@pytest.mark.parametrize("before", [0, 1, 2, 3, 4, 5, 29_999])
@pytest.mark.parametrize("frame", [0xC0, 0xC1, 0xC2])
def test_the_size_of_a_jpeg_is_found_behind_its_thumbnail(before: int, frame: int) -> None:
    assert both(openai(jpeg(280, 280, before=before, frame=frame))) == (100, 100)


def test_low_detail_counts_85_whatever_the_size() -> None:
    assert both(openai(png(1920, 1080), detail="low")) == (85, 85)
    assert both(responses(png(1920, 1080), detail="low")) == (85, 85)
    assert both(openai(png(280, 280), detail="high")) == (100, 100)
    link = {"type": "image_url", "image_url": {"url": "https://a/b.png", "detail": "low"}}
    assert both(link) == (85, 85)
    said = [link, openai(png(280, 280)), link]
    assert payload.text_size(json.dumps(said).encode())[1] == 85 + 100 + 85


@pytest.mark.parametrize("form", FORMATS)
def test_tiny_and_huge_images_are_bounded(form: Any) -> None:
    assert both(openai(form(1, 1))) == (4, 4)
    assert both(openai(form(16_383, 16_383))) == (16_384, 16_384)
    if form is png:
        assert both(openai(form(2**32 - 1, 2**32 - 1))) == (16_384, 16_384)


@pytest.mark.parametrize("form", [png, gif, jpeg, lossy])
def test_an_image_without_a_size_counts_as_unknown(form: Any) -> None:
    assert both(openai(form(0, 1080))) == (1000, 1000)
    assert both(openai(form(1920, 0))) == (1000, 1000)


@given(st.sampled_from(FORMATS), st.integers(0, 400), st.binary(max_size=60))
def test_whatever_follows_a_broken_header_is_no_error(form: Any, kept: int, rest: bytes) -> None:
    data = form(280, 280)[:kept] + rest
    assert 4 <= image_size.tokens_of_bytes(data) <= 16_384
    text = "data:image/x;base64," + encoded(data)
    assert image_size.tokens_of_text(text) == image_size.tokens_of_bytes(data)
    assert 4 <= image_size.tokens_of_text(text[:-1]) <= 16_384
    if len(data) < 30:
        assert image_size.tokens_of_bytes(data) == 1000


@given(st.text(max_size=200))
def test_what_is_no_base64_is_no_error(said: str) -> None:
    assert 4 <= image_size.tokens_of_text("data:image/png;base64,iVBORw0KGgo" + said) <= 16_384


@pytest.mark.parametrize(
    "rest", [b"\xff" * 999_000, segment(0xFE, b"") * 250_000], ids=["filled", "comments"]
)
def test_a_hostile_jpeg_costs_no_more_than_some_reads(rest: bytes) -> None:
    reads: list[int] = []
    data = b"\xff\xd8" + rest

    def read(at: int, count: int) -> bytes:
        reads.append(count)
        return data[at : at + count]

    assert image_size.tokens(read) == 1000
    assert len(reads) <= 65
    assert sum(reads) < 1000


def test_a_megabyte_of_image_is_not_decoded() -> None:
    text = "data:image/png;base64," + encoded(png(280, 280) + bytes(8_000_000))
    began = time.thread_time()
    for _ in range(100):
        assert image_size.tokens_of_text(text) == 100
    assert time.thread_time() - began < 0.5  # decoded whole, it is seconds


def test_usage_corrects_the_estimate_of_later_images(gov: Governor) -> None:
    """Elsewhere a screenshot takes 1,105 tokens, and an icon as many as a tile."""
    agent = gov.agent("a")
    said: list[Any] = []
    tokens = 0
    estimates = []
    for width, height, taken in [
        (1920, 1080, 1105),
        (1920, 1080, 1105),
        (28, 28, 255),
        (1920, 1080, 1105),
    ]:
        said.append({"role": "user", "content": [openai(png(width, height))]})
        prompt = of_body(json.dumps({"messages": said}).encode())
        assert prompt is not None
        prompts.estimate(agent, prompt)
        estimates.append((prompt.tokens or 0) - tokens)
        tokens += taken
        prompts.learn(agent, prompt, Usage(tokens, 0))
    assert estimates[0] == pytest.approx(2644, abs=50)
    assert estimates[1] == pytest.approx(1105, abs=50)
    assert 1105 / 1.5 <= estimates[3] <= 1105 * 1.5  # an icon says little about it


def test_frameworks_and_bodies_agree_on_a_chat_with_images() -> None:
    said = [{"role": "user", "content": [openai(png(280, 280)), anthropic(jpeg(560, 280))]}]
    prompt = of_messages("messages", said)
    assert prompt is not None
    assert prompt.payloads == 300
    assert payload.text_size(json.dumps(said).encode())[1] == 300
