import pytest

from concur_agents.sim.cache import Run
from concur_agents.sim.text import (
    BadRequestError,
    DeterministicModel,
    FlatPrompts,
    Message,
    Reply,
    ToolCall,
    count_tokens,
    flat_bytes,
    read_messages,
    read_responses_input,
    text_of_tokens,
    tools_run,
)


def reply(
    model: DeterministicModel,
    *messages: Message,
    tools: tuple[str, ...] = (),
    min_tokens: int = 0,
    max_tokens: int = 4000,
    ignore_eos: bool = False,
) -> Reply:
    return model.reply(
        tuple(m.run for m in messages),
        messages,
        tools,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        ignore_eos=ignore_eos,
    )


@pytest.mark.parametrize("tokens", [1, 2, 7, 1000])
def test_a_text_of_n_tokens_has_n_tokens_and_survives_stripping(tokens: int) -> None:
    text = text_of_tokens(tokens, "seed")
    assert count_tokens(text) == tokens
    assert text == text.strip()
    assert text == text_of_tokens(tokens, "seed")
    assert tokens < 3 or text != text_of_tokens(tokens, "other")


def test_no_tokens_are_no_text() -> None:
    assert text_of_tokens(0) == ""
    assert count_tokens("") == 0
    assert [count_tokens("x" * n) for n in (1, 4, 5)] == [1, 1, 2]


def test_a_message_is_as_long_as_its_text_and_never_empty() -> None:
    assert Message("user", text_of_tokens(12)).tokens == 12
    assert Message("assistant", "").tokens == 1
    assert Message("assistant", "", (ToolCall("id", "look", '{"a":1}'),)).tokens == 3


def test_content_names_a_message_and_ids_and_spacing_of_tool_calls_do_not() -> None:
    """Frameworks parse the arguments of a tool call and write them again their own way."""
    said = Message("assistant", "", (ToolCall("call_1", "look", '{"b": 2, "a": [1, 2]}'),))
    sent_back = Message("assistant", "", (ToolCall("x", "look", '{"a":[1,2],"b":2}'),))
    assert said.run == sent_back.run
    others = [
        Message("user", "", said.calls),
        Message("assistant", "x", said.calls),
        Message("assistant", "", (ToolCall("call_1", "peek", '{"b": 2, "a": [1, 2]}'),)),
        Message("assistant", "", (ToolCall("call_1", "look", '{"b": 2, "a": [1]}'),)),
        Message("assistant", "", (*said.calls, *said.calls)),
    ]
    assert len({said.run.key, *(m.run.key for m in others)}) == 6


def test_broken_arguments_and_lone_surrogates_are_content_like_any_other() -> None:
    assert Message("assistant", "\ud800", (ToolCall("", "look", '{"a": '),)).run.tokens == 3


def test_chat_messages_are_read_in_all_their_forms() -> None:
    raw = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "function": {"name": "look", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "seen"},
    ]
    assert read_messages(raw) == [
        Message("system", "be brief"),
        Message("user", "ab"),
        Message("assistant", "", (ToolCall("1", "look", "{}"),)),
        Message("tool", "seen"),
    ]


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (None, "a list of at least one"),
        ([], "a list of at least one"),
        (["hi"], r"messages\[0\] must be an object with a role"),
        ([{"content": "hi"}], r"messages\[0\] must be an object with a role"),
        ([{"role": "user", "content": 3}], r"messages\[0\].content must be"),
        ([{"role": "assistant", "tool_calls": [{}]}], "tool_calls is malformed"),
    ],
)
def test_what_is_no_chat_is_refused(raw: object, complaint: str) -> None:
    with pytest.raises(BadRequestError, match=complaint):
        read_messages(raw)


def test_the_same_chat_has_the_same_content_through_either_api() -> None:
    chat = read_messages(
        [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "look twice"},
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "1", "function": {"name": "look", "arguments": "{}"}},
                    {"id": "2", "function": {"name": "peek", "arguments": "{}"}},
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "seen"},
        ]
    )
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "look twice"}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
        {"type": "function_call", "call_id": "2", "name": "peek", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "seen"},
    ]
    responses = read_responses_input(items, "be brief")
    assert [m.run for m in responses] == [m.run for m in chat]
    assert read_responses_input("hi", None) == [Message("user", "hi")]


@pytest.mark.parametrize("raw", [None, [], [{"type": "image"}], [{"type": "reasoning"}], ["hi"]])
def test_what_is_no_input_of_a_response_is_refused(raw: object) -> None:
    with pytest.raises(BadRequestError, match="input"):
        read_responses_input(raw, None)


def test_tools_are_the_beginning_of_a_prompt() -> None:
    assert tools_run([]) == ()
    assert tools_run([{"a": 1, "b": 2}]) == tools_run([{"b": 2, "a": 1}])
    assert tools_run([{"a": "x" * 390}])[0].tokens == 100


# --- replies -------------------------------------------------------------------------------------


def test_the_same_prompt_and_seed_have_the_same_reply() -> None:
    hello = Message("user", "hello")
    model = DeterministicModel(seed=1)
    assert reply(model, hello) == reply(DeterministicModel(seed=1), hello)
    assert reply(model, hello).text != reply(DeterministicModel(seed=2), hello).text
    assert reply(model, hello).text != reply(model, hello, hello).text


def test_the_length_of_a_reply_is_natural_unless_it_is_fixed() -> None:
    model = DeterministicModel(median_tokens=100)
    lengths = sorted(reply(model, Message("user", str(i))).message.tokens for i in range(401))
    assert lengths[0] < 40
    assert 85 < lengths[200] < 115
    assert lengths[-1] > 300
    hello = Message("user", "hello")
    cut = reply(model, hello, max_tokens=5)
    assert (cut.message.tokens, cut.cut) == (5, True)
    whole = reply(model, hello, min_tokens=900, max_tokens=1000)
    assert (whole.message.tokens, whole.cut) == (900, False)
    endless = reply(model, hello, max_tokens=1000, ignore_eos=True)
    assert (endless.message.tokens, endless.cut) == (1000, True)


def test_a_marker_in_the_last_message_makes_the_model_call_that_tool() -> None:
    model = DeterministicModel()
    ask = Message("user", 'please CALL:look{"at": {"x": 1}} and CALL:peek{} now')
    calls = reply(model, ask, tools=("look", "peek")).calls
    assert [(c.name, c.arguments) for c in calls] == [("look", '{"at": {"x": 1}}'), ("peek", "{}")]
    assert len({c.id for c in calls}) == 2
    answered = reply(model, ask, Message("tool", "seen"), tools=("look", "peek"))
    assert answered.calls == ()
    assert answered.text
    again = reply(model, ask, Message("tool", "CALL:peek{}"), tools=("look", "peek"))
    assert [c.name for c in again.calls] == ["peek"]


@pytest.mark.parametrize("text", ["CALL:look", "CALL:other{}", 'CALL:look{"a', "look{}"])
def test_what_is_no_marker_of_an_offered_tool_is_answered_with_text(text: str) -> None:
    assert reply(DeterministicModel(), Message("user", text), tools=("look",)).text
    assert reply(DeterministicModel(), Message("user", "CALL:look{}"), tools=()).text


def test_a_script_decides_replies_and_may_leave_them_to_the_model() -> None:
    def script(messages: object) -> Reply | None:
        return Reply("ok") if "yes" in str(messages) else None

    model = DeterministicModel(script=script)
    assert reply(model, Message("user", "yes")).text == "ok"
    assert reply(model, Message("user", "no")).text != "ok"


# --- flat prompts --------------------------------------------------------------------------------


def tokens(runs: tuple[Run, ...]) -> int:
    return sum(run.tokens for run in runs)


def test_a_flat_prompt_that_continues_another_begins_with_the_same_runs() -> None:
    flat = FlatPrompts()
    first, width = flat_bytes(text_of_tokens(300, "a"))
    runs = flat.runs(first, width)
    output = Run("output", 50)
    said = text_of_tokens(50, "b").encode()
    flat.remember(first + said, width, (*runs, output))
    longer = flat.runs(first + said + text_of_tokens(70, "c").encode(), width)
    assert longer[: len(runs) + 1] == (*runs, output)
    assert tokens(longer) == 420
    edited = flat.runs(first + b"?" + said[1:], width)
    assert output not in edited


def test_flat_prompts_share_their_beginning_in_chunks() -> None:
    flat = FlatPrompts()
    system = text_of_tokens(200, "system")
    one = flat.runs(*flat_bytes(system + text_of_tokens(100, "one")))
    two = flat.runs(*flat_bytes(system + text_of_tokens(100, "two")))
    assert tokens(one) == tokens(two) == 300
    shared = [a for a, b in zip(one, two, strict=True) if a == b]
    assert tokens(tuple(shared)) == 192


def test_ids_and_any_alphabet_can_be_a_flat_prompt() -> None:
    flat = FlatPrompts()
    assert tokens(flat.runs(*flat_bytes(list(range(1000))))) == 1000
    assert tokens(flat.runs(*flat_bytes("ä" * 41))) == 11
    for bad in ([1, "x"], [-1], [2**40]):
        with pytest.raises(BadRequestError, match="token ids"):
            flat_bytes(bad)  # type: ignore[arg-type]


def test_what_was_sent_long_ago_is_forgotten_and_memory_stays_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("concur_agents.sim.text._KEPT_SEQUENCES", 10)
    flat = FlatPrompts()
    sent = [text_of_tokens(80, str(i)).encode() for i in range(30)]
    for data in sent:
        flat.remember(data, 4, (Run(data, 80),))
    assert flat.runs(sent[-1], 4) == (Run(sent[-1], 80),)
    assert flat.runs(sent[0], 4) != (Run(sent[0], 80),)
    assert len(flat._known) == 10
