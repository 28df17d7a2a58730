import gzip
import json
import math
from pathlib import Path

import pytest

from concur_agents.errors import TraceError
from concur_agents.sim.traces import TraceAgent, TraceStep, bundled_sources, load_traces

AGENT = {
    "agent_id": "a-1",
    "source": "mine",
    "group": "issue-1",
    "shared_prefix_tokens": 117,
    "start_s": 4,  # an unknown key of a richer recording
    "steps": [
        {
            "prompt_tokens": 1000,
            "output_tokens": 100,
            "shared_prefix_tokens": 0,
            "tool_seconds": 0.5,
            "cached_tokens": 0,
        },
        {
            "prompt_tokens": 1200,
            "output_tokens": 50,
            "shared_prefix_tokens": 1000,
            "tool_seconds": None,
        },
        {
            "prompt_tokens": 1400,
            "output_tokens": 60,
            "shared_prefix_tokens": 1200,
            "tool_seconds": None,
            "user_seconds": 90.0,
        },
        {
            "prompt_tokens": 3000,
            "output_tokens": 10,
            "shared_prefix_tokens": 1400,
            "tool_seconds": 7.0,
        },
    ],
}


def written(path: Path, *agents: object) -> Path:
    text = "".join(a if isinstance(a, str) else json.dumps(a) + "\n" for a in agents)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "mine.jsonl.gz", AGENT)


def changed(**step: object) -> dict[str, object]:
    """The agent above with its first step changed."""
    return {**AGENT, "steps": [{**AGENT["steps"][0], **step}]}  # type: ignore[index]


def test_a_line_becomes_an_agent_with_the_recorded_numbers(path: Path) -> None:
    assert load_traces(path, impute=False) == [
        TraceAgent(
            id="a-1",
            source="mine",
            group="issue-1",
            group_shared_tokens=117,
            steps=(
                TraceStep(1000, 100, 0, 0.5),
                TraceStep(1200, 50, 1000, None),
                TraceStep(1400, 60, 1200, 0.0),  # a person's pause is dropped by default
                TraceStep(3000, 10, 1400, None),  # nothing follows the last call
            ),
        )
    ]


def test_plain_and_gzipped_files_and_folders_of_both_read_alike(tmp_path: Path, path: Path) -> None:
    other = {**AGENT, "agent_id": "a-2"}
    written(tmp_path / "other.jsonl", other, "\n")
    assert [a.id for a in load_traces(tmp_path)] == ["a-1", "a-2"]
    assert load_traces(tmp_path / "other.jsonl")[0].steps[0] == load_traces(path)[0].steps[0]


def test_a_tool_time_that_was_not_recorded_is_drawn_and_does_not_depend_on_the_others(
    tmp_path: Path, path: Path
) -> None:
    alone = load_traces(path)[0]
    both = load_traces(written(tmp_path / "2.jsonl", {**AGENT, "agent_id": "a-0"}, AGENT))
    assert alone.steps[1].tool_s is not None
    assert alone.steps[1].tool_s > 0
    assert both[1] == alone
    assert both[0].steps[1].tool_s != alone.steps[1].tool_s
    assert load_traces(path, seed=1)[0].steps[1].tool_s != alone.steps[1].tool_s


def test_imputed_tool_times_follow_the_log_normal_of_their_source() -> None:
    times = [s.tool_s for a in load_traces("miniswe-gemini3pro") for s in a.steps[:-1]]
    logs = [math.log(t) for t in times if t is not None]
    mean = sum(logs) / len(logs)
    spread = math.sqrt(sum((x - mean) ** 2 for x in logs) / len(logs))
    assert len(logs) == len(times) > 9000
    assert mean == pytest.approx(-1.45, abs=0.05)
    assert spread == pytest.approx(1.3, abs=0.05)


def test_a_persons_pause_is_kept_or_capped_when_asked(path: Path) -> None:
    assert load_traces(path, user="keep")[0].steps[2].tool_s == 90.0
    assert load_traces(path, user=20.0)[0].steps[2].tool_s == 20.0


def test_a_cap_holds_for_recorded_and_drawn_tool_times(path: Path) -> None:
    steps = load_traces(path, tool_cap_s=0.001, user="keep")[0].steps
    assert [s.tool_s for s in steps] == [0.001, 0.001, 0.001, None]


def test_an_agent_that_outgrows_the_context_is_dropped_or_cut(path: Path) -> None:
    assert load_traces(path, max_context=2999) == []
    cut = load_traces(path, max_context=2999, cut=True)[0]
    assert [s.prompt_tokens for s in cut.steps] == [1000, 1200, 1400]
    assert cut.steps[-1].tool_s is None
    assert load_traces(path, max_context=500, cut=True) == []
    assert len(load_traces(path, max_context=3010)[0].steps) == 4


def test_scaling_multiplies_every_token_count_and_keeps_at_least_one(path: Path) -> None:
    agent = load_traces(path, scale=0.01)[0]
    assert agent.group_shared_tokens == 1
    assert [s.prompt_tokens for s in agent.steps] == [10, 12, 14, 30]
    assert [s.output_tokens for s in agent.steps] == [1, 1, 1, 1]
    assert [s.shared_prefix_tokens for s in agent.steps] == [0, 10, 12, 14]


def test_a_prefix_known_in_whole_blocks_counts_as_the_whole_prompt(tmp_path: Path) -> None:
    """Otherwise every step of such a recording would seem to edit its own context."""
    steps = [
        {"prompt_tokens": 16981, "output_tokens": 154, "shared_prefix_tokens": 0},
        {"prompt_tokens": 20286, "output_tokens": 545, "shared_prefix_tokens": 16960},
        {"prompt_tokens": 62706, "output_tokens": 724, "shared_prefix_tokens": 20160},
    ]
    agent = {**AGENT, "source": "weka-claude-code", "steps": steps}
    loaded = load_traces(written(tmp_path / "w.jsonl", agent))[0]
    assert [s.shared_prefix_tokens for s in loaded.steps] == [0, 16981, 20160]


def test_the_bundled_recordings_load_by_name_with_the_documented_numbers() -> None:
    """The table in data/ATTRIBUTION.md says so."""
    counts = {
        name: (len(agents), sum(len(a.steps) for a in agents))
        for name in bundled_sources()
        for agents in [load_traces(name)]
    }
    assert counts == {
        "miniswe-gemini3pro": (250, 9613),
        "openhands-multiswe": (2, 82),
        "tau-airline-gpt4o": (100, 1122),
        "weka-claude-code": (314, 19200),
    }


def test_every_bundled_recording_is_attributed_and_all_of_them_are_small() -> None:
    data = Path(__file__).parents[2] / "concur_agents/sim/data"
    text = (data / "ATTRIBUTION.md").read_text("utf-8")
    assert all(f"`{name}.jsonl.gz`" in text for name in bundled_sources())
    assert sum(p.stat().st_size for p in data.glob("*.jsonl.gz")) < 400_000


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"agent_id": "a-1", "sour', "is not JSON"),
        ("[1, 2]\n", "is not a JSON object"),
        ({**AGENT, "agent_id": ""}, "agent_id is ''"),
        ({**AGENT, "agent_id": None}, "agent_id is None"),
        ({**AGENT, "steps": []}, "has no steps"),
        ({**AGENT, "steps": [3]}, "step 0 is not a JSON object"),
        ({**AGENT, "shared_prefix_tokens": -1}, "shared_prefix_tokens is -1"),
        (changed(prompt_tokens=0), "prompt_tokens is 0"),
        (changed(prompt_tokens=12.5), "prompt_tokens is 12.5"),
        (changed(prompt_tokens=True), "prompt_tokens is True"),
        (changed(output_tokens=None), "output_tokens is None"),
        (changed(tool_seconds=-0.1), "tool_seconds is -0.1"),
        (changed(tool_seconds="fast"), "tool_seconds is 'fast'"),
        (changed(tool_seconds=float("inf")), "tool_seconds is inf"),
    ],
)
def test_a_line_that_is_no_agent_is_refused_with_file_line_and_remedy(
    tmp_path: Path, line: object, complaint: str
) -> None:
    path = written(tmp_path / "bad.jsonl", {**AGENT, "agent_id": "good"}, "\n", line)
    with pytest.raises(TraceError) as caught:
        load_traces(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: ")
    assert complaint in message
    assert ";" in message  # what is wrong; what to do


def test_an_agent_id_used_twice_is_refused_and_both_lines_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "twice.jsonl", AGENT, AGENT)
    with pytest.raises(TraceError, match=r"twice.jsonl:2: .*already used at .*twice.jsonl:1;"):
        load_traces(path)


def test_a_torn_download_a_missing_file_and_an_empty_folder_say_what_to_do(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(AGENT).encode() * 50)
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TraceError, match=r"torn.jsonl.gz: cannot be read .*; copy or download"):
        load_traces(torn)
    torn.write_bytes(b"plain text")
    with pytest.raises(TraceError, match=r"torn.jsonl.gz: cannot be read .Not a gzip"):
        load_traces(torn)
    with pytest.raises(TraceError, match=r"no such file.* bundled are miniswe-gemini3pro"):
        load_traces(tmp_path / "absent.jsonl")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(TraceError, match=r"holds no .jsonl"):
        load_traces(empty)


def test_nonsense_options_are_refused(path: Path) -> None:
    with pytest.raises(TraceError, match="scale must be a positive number, got 0"):
        load_traces(path, scale=0)
    with pytest.raises(TraceError, match="user must be"):
        load_traces(path, user=-1.0)
