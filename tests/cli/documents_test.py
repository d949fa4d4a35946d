# SPDX-License-Identifier: MIT
"""The manual page and the completions hold every option that --help shows, and shells take them.

usage: TOKENSPARSE=path/of/the/program python3 documents_test.py"""

import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

PROGRAM = os.environ["TOKENSPARSE"]
FLAGS = re.compile(r"^  (-[-,a-z0-9]+)", re.MULTILINE)
VERBS = re.compile(r"^  ([a-z][-a-z]*)  ", re.MULTILINE)


def output(*arguments):
    command = [PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def verbs(*path):
    """Every verb of the program that has none of its own, as a tuple of words, with its --help."""
    text = output(*path, "--help")
    inner = text.partition("\nSubcommands:\n")[2].partition("\n\n")[0]
    yield path, text.partition("\nStart here:")[0]
    for name in VERBS.findall(inner):
        yield from verbs(*path, name)


HELP = dict(verbs())


def flags_of(text):
    return [flag for flags in FLAGS.findall(text) for flag in flags.split(",")]


class Documents(unittest.TestCase):
    def test_help_was_read(self):
        self.assertIn(("bench", "attend"), HELP)
        self.assertIn("--coverage", flags_of(HELP["apply",]))
        self.assertGreater(sum(len(flags_of(text)) for text in HELP.values()), 60)

    def test_the_manual_has_every_option_in_its_verbs_section(self):
        page = output("manual").replace("\\-", "-")
        sections = page.split("\n.SS tokensparse ")
        for verb, text in HELP.items():
            section = page
            if verb:
                heading = " ".join(verb)
                section = next(s for s in sections if s.startswith(heading + "\n"))
            for flag in flags_of(text):
                self.assertRegex(section, rf"\\fB{flag}\\fR", f"{verb}")

    def test_flags_take_no_value(self):
        page = output("manual").replace("\\-", "-")
        for flag in ("--help", "--version", "--json", "--cpu-time"):
            self.assertRegex(page, rf"\\fB{flag}\\fR\n", flag)
        self.assertNotIn("VALUE", page)
        self.assertNotRegex(output("completion", "fish"), r"-l json .*-r")

    @unittest.skipUnless(shutil.which("groff"), "needs groff")
    def test_the_manual_is_without_warnings(self):
        done = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww", "-z"],
            input=output("manual"), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def complete(self, *words):
        """What bash offers for the last of the words."""
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder, "tokensparse")
            script.write_text(output("completion", "bash"))
            command = 'source "$1"; shift; COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _tokensparse; '
            command += 'printf "%s\\n" "${COMPREPLY[@]}"'
            done = subprocess.run(
                ["bash", "-c", command, "bash", script, "tokensparse", *words],
                capture_output=True, text=True, timeout=60, check=True,
            )  # fmt: skip
            self.assertEqual(done.stderr, "")
            return done.stdout.split()

    def test_bash_offers_every_option_of_a_verb(self):
        for verb, text in HELP.items():
            self.assertEqual(sorted(self.complete(*verb, "-")), sorted(flags_of(text)), verb)

    def test_bash_offers_verbs_and_choices(self):
        self.assertEqual(self.complete("pl"), ["plugin-path"])
        self.assertEqual(self.complete("bench", "s"), ["score", "select"])
        self.assertEqual(self.complete("apply", "--share", ""), ["head", "kv_group", "layer"])
        self.assertEqual(self.complete("completion", ""), ["bash", "zsh", "fish"])
        self.assertEqual(self.complete("apply", "--out", ""), [])

    def test_zsh_and_fish_have_every_option_of_a_verb(self):
        zsh, fish = output("completion", "zsh"), output("completion", "fish").splitlines()
        for verb, text in HELP.items():
            own = zsh.partition(f"\n    '{' '.join(verb)}')\n")[2].partition("\n      ;;\n")[0]
            lines = [line for line in fish if verb_of_fish(line) == verb]
            for flag in flags_of(text):
                self.assertIn(f"'*{flag}[", own, verb)
                name = f" -l {flag[2:]} " if flag.startswith("--") else f" -s {flag[1:]} "
                self.assertTrue(any(name in line for line in lines), (verb, flag))

    def test_shells_that_are_there_take_them(self):
        for shell, check in (("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")):
            if shutil.which(shell):
                with tempfile.NamedTemporaryFile("w") as script:
                    script.write(output("completion", shell))
                    script.flush()
                    done = subprocess.run([shell, check, script.name], capture_output=True, text=True)
                    self.assertEqual((done.returncode, done.stderr), (0, ""), shell)

    def test_another_shell_is_refused_by_name(self):
        done = subprocess.run([PROGRAM, "completion", "csh"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 2)
        self.assertIn("must be one of bash, zsh, fish, got csh", done.stderr)


def verb_of_fish(line):
    condition = re.search(r" -n '([^']*)'", line)
    if not condition or condition[1] == "__fish_use_subcommand":
        return ()
    return tuple(re.findall(r"__fish_seen_subcommand_from (\S+?)(?:;|$)", condition[1]))


if __name__ == "__main__":
    unittest.main()
