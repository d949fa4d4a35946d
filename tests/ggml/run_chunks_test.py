# SPDX-License-Identifier: MIT
"""`run` and the chunks it reads a prompt in; environment as of run_test.py."""

import json
import unittest

from run_test import WithModel, run, write_model


class Chunks(WithModel):
    def test_chunks_grow_late_in_a_long_prompt_unless_their_size_is_given(self):
        long = self.folder / "long.gguf"
        write_model(long, "llama", 32768, 1)
        self.text.write_text("a b " * 6200)  # 8 chunks of 2,048, one of 8,192, the rest

        def chunks(*more):
            arguments = ("-n", 1, "--json", "--verbose", "--coverage", 0, *more)
            result = run(*self.arguments(*arguments, model=long))
            self.assertEqual(result.returncode, 0, result.stderr)
            report = json.loads(result.stdout)
            return report["prompt_tokens"] // 2048, report["exact"]["layers"][0]["served"]

        self.assertEqual(chunks(), (12, 10))
        self.assertEqual(chunks("--chunk", 2048), (12, 13))
        self.text.write_text("a b " * 4500)  # the rest is not worth another size
        self.assertEqual(chunks(), (8, 9))


if __name__ == "__main__":
    unittest.main()
