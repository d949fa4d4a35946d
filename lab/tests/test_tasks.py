# SPDX-License-Identifier: MIT
import re

import pytest

from lab import prompts, tasks
from lab.texts import TextError, Texts


@pytest.mark.parametrize("name", tasks.TASKS)
@pytest.mark.parametrize("length", [1500, 6000])
def test_a_prompt_fills_its_length_and_holds_its_answer(name, length, texts, tokenizer):
    task = tasks.TASKS[name]
    prompt = prompts.make(name, length, 3, texts, tokenizer)
    room = length - task.new_tokens
    assert len(prompt.tokens) <= room
    # cwe goes from short lists to long ones at once, and leaves a gap
    assert len(prompt.tokens) > (0.4 if name == "cwe" else 0.75) * room
    assert 1 <= len(prompt.answer_tokens) <= task.new_tokens
    assert bool(prompt.refs) == task.scored
    again = prompts.make(name, length, 3, texts, tokenizer)
    assert again == prompt
    assert prompts.make(name, length, 4, texts, tokenizer).tokens != prompt.tokens


@pytest.mark.parametrize("name", [name for name in tasks.TASKS if tasks.TASKS[name].scored])
def test_the_forced_answer_scores_full_marks(name, texts):
    sample = tasks.TASKS[name].build(tasks.rng_for(1, name, 0, 0), 400, texts)
    assert tasks.score(sample.refs, sample.prefix + sample.answer) == 1
    assert tasks.score(sample.refs, "nothing of it") == 0


def test_every_needle_is_in_the_haystack_once(texts):
    sample = tasks.TASKS["niah_multikey_1"].build(tasks.rng_for(1, "k", 0, 0), 100, texts)
    needles = re.findall(r"One of the special magic numbers for (\S+) is: (\d{7})\.", sample.message)
    assert len(needles) == len({key for key, _ in needles}) == 4
    assert dict(needles)[re.search(r"number for (\S+) mentioned", sample.prefix).group(1)] == sample.refs[0]


def test_a_haystack_of_needles_asks_for_one_of_many(texts):
    sample = tasks.TASKS["niah_multikey_2"].build(tasks.rng_for(1, "k", 0, 0), 100, texts)
    needles = re.findall(r"for (\S+) is: (\d{7})\.", sample.message)
    assert len(needles) == 101
    assert len({key for key, _ in needles}) == 101


def test_a_chain_assigns_before_it_reads(texts):
    sample = tasks.TASKS["vt"].build(tasks.rng_for(1, "vt", 0, 0), 100, texts)
    question = sample.message.rsplit("Memorize and track", 1)[1]
    at = [question.index(f"VAR {name} =") for name in sample.refs]
    assert at == sorted(at)


def test_common_words_are_the_most_frequent(texts):
    sample = tasks.TASKS["cwe"].build(tasks.rng_for(1, "cwe", 0, 0), 300, texts)
    words = re.findall(r"\d+\. (\w+)", sample.message.rsplit("Below is", 1)[1])
    assert all(words.count(word) == 30 for word in sample.refs)
    assert all(words.count(word) == 3 for word in set(words) - set(sample.refs))


def test_frequent_words_come_in_their_order(texts):
    sample = tasks.TASKS["fwe"].build(tasks.rng_for(1, "fwe", 0, 0), 1000, texts)
    counts = [sample.message.count(word) for word in sample.refs]
    assert counts == sorted(counts, reverse=True) and len(set(counts)) == 3


def test_a_code_question_has_one_answer(texts):
    sample = tasks.TASKS["code_parameters"].build(tasks.rng_for(1, "code", 0, 0), 500, texts)
    name = re.search(r"parameters of (\w+) are", sample.prefix).group(1)
    assert len(re.findall(rf"def {name}\(", sample.message)) == 1


def test_what_cannot_be_made_is_said(texts, tokenizer, tmp_path):
    with pytest.raises(prompts.PromptError, match="length: cwe needs more than 100 tokens"):
        prompts.make("cwe", 100, 0, texts, tokenizer)
    with pytest.raises(prompts.PromptError, match="takes 4096 tokens at most, got 8192"):
        prompts.make("vt", 8192, 0, texts, tokenizer, limit=4096)
    with pytest.raises(TextError, match="cwe at this length needs"):
        tasks.TASKS["cwe"].build(tasks.rng_for(1, "cwe", 0, 0), 10**6, texts)
    (tmp_path / "short").write_text("too little")
    with pytest.raises(TextError, match="at least 10000 characters together, got 10"):
        Texts([tmp_path / "short"])

    class NoTemplate:
        chat_template = None

    with pytest.raises(prompts.PromptError, match="no chat template"):
        prompts.Tokenizer(NoTemplate())
