"""Every vector through every entry point: the expected code, and from the second reader the very rule."""
import unittest

import second_reader
from checks import all_checks, is_reachable
from harness import FOLDER, IDENTITY, RECORD, RULES, USE, VECTORS, Runner, command, expected, second_verdicts
from vectors import ATTACKS

# Attacks that no single file shows, and the tests that carry them out.
ELSEWHERE = {"verified by mistake": "tests/compile_fail; exit statuses of test_programs"}


class Vectors(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.runner = Runner()
        cls.addClassCleanup(cls.runner.close)
        cls.inputs = {name: cls.runner.write(name, vector) for name, vector in VECTORS.items()}
        rules = [vector.rule for vector in VECTORS.values()]
        print(f"{len(rules)} vectors, {rules.count(None)} of them accepted, {len(set(rules) - {None})} rules, "
              f"{len(ATTACKS)} attacks")

    def each(self, check):
        """check(vector, path, trust path, bytes, trust) for every vector."""
        for name, vector in VECTORS.items():
            with self.subTest(vector=name, rule=vector.rule):
                check(vector, *self.inputs[name])

    def test_every_rule_has_a_vector(self):
        self.assertEqual(set(RULES) - {vector.rule for vector in VECTORS.values()}, set())

    def test_every_attack_is_carried_out(self):
        self.assertEqual(set(ATTACKS) - set(ELSEWHERE) - {vector.attack for vector in VECTORS.values()}, set())

    def test_second_reader_has_the_codes_of_the_specification(self):
        self.assertEqual({rule: second_reader.code_of(rule) for rule in RULES}, RULES)

    def test_library(self):
        messages = []

        def check(vector, path, trust_path, _, trust):
            codes, message = self.runner.ask_library(path, trust_path, trust)
            messages.append(message)
            self.assertEqual(codes, expected(vector), message)
        self.each(check)
        reachable = [check for check in all_checks() if is_reachable(check)]
        self.assertEqual([str(check) for check in reachable if not any(map(check.known_by, messages))], [])
        print(f"{len(reachable)} checks in the source, each with a vector")

    def test_c_interface(self):
        def check(vector, path, _, __, trust):
            if vector.stage not in (FOLDER, RECORD):
                self.assertEqual(self.runner.ask_c(path, trust), expected(vector)[:2])
        self.each(check)

    def test_second_reader(self):
        def check(vector, path, _, data, trust):
            codes, rule = second_verdicts(vector, path, data, trust)
            self.assertEqual((codes, rule), (expected(vector), vector.rule))
        self.each(check)

    def test_programs(self):
        def check(vector, path, trust_path, _, trust):
            codes = expected(vector)
            if vector.stage == FOLDER:
                self.run_program(("moepack-pack", path, "--key", self.key(), "-o", self.runner.folder / "out.moeb"),
                                 codes[0])
                return
            if vector.stage == RECORD:
                if trust.kind == "anchor":
                    self.run_program(("moepack-verify", self.inputs["valid"][0], "--trust", path), codes[0])
                return
            self.run_program(("moepack-verify", path, "--trust", trust_path), codes[1])
            if vector.stage == IDENTITY:
                self.run_program(("moepack-device", "install", self.device(), path), RULES[vector.rule])
            if vector.stage == USE:
                self.run_program(("moepack-run", "generate", path, "--trust", trust_path, "--prompt", "abc", "-n", "1"),
                                 codes[2])
        self.each(check)

    def device(self):
        path = self.runner.folder / "device"
        if not path.exists():
            anchor = self.inputs["anchor_valid"][0]
            self.assertEqual(command("moepack-device", "provision", path, "--trust", anchor)[0], 0)
        return path

    def key(self):
        path = self.runner.folder / "key.pem"
        if not path.exists():
            self.assertEqual(command("moepack-pack", "keygen", "-o", path)[0], 0)
        return path

    def run_program(self, arguments, code):
        status, out, message = command(*arguments)
        self.assertEqual(status, code // 100, message)
        output = self.runner.folder / "out.moeb"
        if code:
            self.assertEqual(out, b"")
            self.assertFalse(output.exists())
        output.unlink(missing_ok=True)


if __name__ == "__main__":
    unittest.main()
