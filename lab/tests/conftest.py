# SPDX-License-Identifier: MIT
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from lab import prompts  # noqa: E402  the path comes first
from lab.texts import Texts  # noqa: E402


class Words:
    """A tokenizer whose tokens are words: enough to cut prompts to a length."""

    chat_template = "yes"

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens

        class Encoded:
            input_ids = [hash(word) % 2**31 for word in text.split()]

        return Encoded

    def apply_chat_template(self, turns, tokenize, add_generation_prompt):
        assert not tokenize and add_generation_prompt
        return f"<user> {turns[0]['content']} <assistant> "


@pytest.fixture(scope="session")
def tokenizer():
    return prompts.Tokenizer(Words())


@pytest.fixture(scope="session")
def texts():
    return Texts()
