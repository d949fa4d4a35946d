# SPDX-License-Identifier: MIT
import json

import pytest

from lab import results, sweep
from lab.engines import EngineError

FIELDS = {"model": "m", "length": 1500, "plan": {"a": {"coverage": 0.1}}, "n": 3}


class FakeEngine:
    limit = 2000

    def __init__(self, job, tokenizer):
        self.subject, self.tokenizer = {"model": job.model, "engine": f"chunk {job.chunk}"}, tokenizer


def run(tmp_path, tokenizer, texts, jobs, part=0, parts=1, deadline=float("inf")):
    asked, made = [], []

    def make_engine(job):
        made.append(job.model)
        return FakeEngine(job, tokenizer)

    def ask(engine, prompt, name, setting, generate):
        asked.append((engine.subject["model"], prompt.key, name, setting))
        return {"prompt": prompt.key, "setting": name, "generated": generate}

    done = sweep.work(jobs, tmp_path, part, parts, make_engine, texts, ask, deadline)
    return done, asked, made


def jobs_of(tmp_path, *changes):
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps([{"name": "j", **FIELDS, **change} for change in changes]))
    return sweep.read(file, lambda plan, only: {"dense": {}, plan: only})


def test_processes_share_the_prompts_of_a_job(tmp_path, tokenizer, texts):
    jobs = jobs_of(tmp_path, {"tasks": ["vt", "niah_single_1"]})
    asked = [run(tmp_path, tokenizer, texts, jobs, part, 2)[1] for part in (0, 1)]
    assert not set(asked[0][i][1:3] for i in range(6)) & set(asked[1][i][1:3] for i in range(6))
    assert {name for _, _, name, _ in asked[0]} == {"dense", "a"}
    assert sweep.merge(sorted(tmp_path.glob("j-*.jsonl")), tmp_path / "all.jsonl") == 12
    header, rows, _ = results.read(tmp_path / "all.jsonl")
    assert header["model"] == "m" and len(rows) == 12


def test_every_process_asks_every_task(tmp_path):
    (job,) = jobs_of(tmp_path, {"n": 8})
    shares = [job.prompts(part, 4) for part in range(4)]
    assert sorted(sum(shares, [])) == sorted((task, index) for task in sweep.TASKS for index in range(8))
    assert all({task for task, _ in share} == set(sweep.TASKS) for share in shares)


def test_a_job_says_whether_answers_are_generated(tmp_path, tokenizer, texts):
    jobs = jobs_of(tmp_path, {"n": 1, "tasks": ["vt"]}, {"name": "k", "n": 1, "tasks": ["vt"], "generate": True})
    assert run(tmp_path, tokenizer, texts, jobs)[0]
    asked = {name: results.read(tmp_path / f"{name}-0.jsonl")[1] for name in "jk"}
    assert {name: [row["generated"] for row in rows] for name, rows in asked.items()} == {"j": [False] * 2, "k": [True] * 2}


def test_what_was_answered_is_not_asked_again_when_n_grows(tmp_path, tokenizer, texts):
    jobs = jobs_of(tmp_path, {"n": 1}, {"n": 2})
    assert [job.n for job in jobs] == [1, 2]
    done, asked, made = run(tmp_path, tokenizer, texts, jobs)
    assert done and len(asked) == 2 * 2 * 4 and len(set(asked_key(asked))) == len(asked)
    assert made == ["m"]  # the model is kept
    assert run(tmp_path, tokenizer, texts, jobs)[1] == []
    (last,) = jobs_of(tmp_path, {"first": 2})
    assert {key.split("/")[2] for _, key, _, _ in run(tmp_path, tokenizer, texts, [last])[1]} == {"2"}


def test_another_number_of_processes_goes_on_where_the_first_stopped(tmp_path, tokenizer, texts):
    (job,) = jobs_of(tmp_path, {"n": 2})
    first = run(tmp_path, tokenizer, texts, [job], part=1, parts=3)[1]
    rest = [run(tmp_path, tokenizer, texts, [job], part, 2)[1] for part in (0, 1)]
    assert len(first) > 0 and sum(map(len, rest), len(first)) == 2 * 2 * 4
    assert sweep.merge(sorted(tmp_path.glob("j-*.jsonl")), tmp_path / "all.jsonl") == 16


def test_a_prompt_that_its_length_cannot_hold_is_left_out_and_said(tmp_path, tokenizer, texts, capsys):
    (job,) = jobs_of(tmp_path, {"tasks": ["code_parameters", "vt"], "length": 600, "n": 1})
    done, asked, _ = run(tmp_path, tokenizer, texts, [job])
    assert done and [(key, name) for _, key, name, _ in asked] == [("vt/600/0", "dense"), ("vt/600/0", "a")]
    assert "code_parameters/600/0 is left out: length: " in capsys.readouterr().err


def asked_key(asked):
    return [(key, name) for _, key, name, _ in asked]


def test_a_model_is_loaded_for_each_way_to_ask_it(tmp_path, tokenizer, texts):
    jobs = jobs_of(tmp_path, {"n": 1}, {"name": "k", "n": 1, "chunk": 512}, {"name": "l", "n": 1, "model": "w"})
    assert run(tmp_path, tokenizer, texts, jobs)[2] == ["m", "m", "w"]


def test_time_that_is_up_ends_a_share(tmp_path, tokenizer, texts):
    done, asked, _ = run(tmp_path, tokenizer, texts, jobs_of(tmp_path, {}), deadline=0)
    assert not done and asked == []


def test_results_of_two_models_are_not_merged(tmp_path):
    for name in ("a", "b"):
        results.Store(tmp_path / name, {"model": name}).close()
    with pytest.raises(results.ResultsError, match="first line"):
        sweep.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")


def test_a_job_with_a_field_that_is_none_is_named(tmp_path):
    with pytest.raises(EngineError, match="job 1.*lenght"):
        jobs_of(tmp_path, {"lenght": 5})
