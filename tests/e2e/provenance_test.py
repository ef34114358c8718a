"""What a bundle says about how it was made: the documents fit their schemas, name what is there by digest, tell nothing of
the machine, and moepack rebuild makes the same bundle from what they record."""
import copy
import getpass
import hashlib
import json
import os
import pathlib
import socket
import sys

import jsonschema

from harness import SOURCE, TRUST, WORK, WREN, Case, run

sys.path.insert(0, str(SOURCE / "tests/vectors"))
import second_wire as wire  # noqa: E402
from second_plain import decode_chunk  # noqa: E402
from second_reader import Bundle  # noqa: E402
from writer import encode  # noqa: E402

BUNDLE = WORK / "wren-i4g64.moeb"
SCHEMAS = {name: jsonschema.Draft7Validator(json.loads((SOURCE / f"tests/schemas/{file}.schema.json").read_text()),
                                            format_checker=jsonschema.FormatChecker())
           for name, file in (("bom", "bom-1.6"), ("statement", "statement"))}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def documents(bundle):
    """{name: parsed} as inspect prints them."""
    return run("inspect", bundle, "--trust", TRUST, "--json").json()["provenance"]


def places(document, path=()):
    """Every key of every object, by its path."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield path + (key,)
            yield from places(value, path + (key,))
    elif isinstance(document, list):
        for i, value in enumerate(document):
            yield from places(value, path + (i,))


def changed(document, path, change):
    """A copy in which the object that holds path's last key was changed: change(object, key)."""
    out = copy.deepcopy(document)
    at = out
    for step in path[:-1]:
        at = at[step]
    change(at, path[-1])
    return out


def misspell(holder, key):
    holder[key + "x"] = holder.pop(key)


def subjects_of(bundle):
    """{name: digest} of what is in a bundle, by format/SPEC.md, section 15."""
    out = {"program": bundle.blob_digests[1], "tokenizer": bundle.blob_digests[2], "hot-list": bundle.blob_digests[5]}
    tables = {"dense-table": (wire.DENSE_TABLE, {"version": 1, "units": bundle.dense})}
    for table in bundle.tables:
        tables[f"expert-table/{table['table']}"] = (wire.EXPERT_TABLE, table)
    for name, (fields, table) in tables.items():
        units = []
        for unit in table["units"]:
            plain = b"".join(decode_chunk(chunk, bundle.data[chunk["offset"]:chunk["offset"] + chunk["stored_bytes"]]) for chunk in unit["chunks"])
            digest = hashlib.sha256(plain).digest()
            units.append({**unit, "chunks": [{"stored_bytes": len(plain), "plain_bytes": len(plain), "stored_digest": digest,
                                              "plain_digest": digest}]})
        out[name] = sha256(encode(fields, {**table, "units": units}))
    return out


class Provenance(Case):
    def pack(self, folder, name="b.moeb", *more, epoch=None, expect=0):
        os.environ.pop("SOURCE_DATE_EPOCH", None)
        if epoch is not None:
            os.environ["SOURCE_DATE_EPOCH"] = epoch
        try:
            run("pack", folder, "--key", WORK / "key.pem", "--product", "wren", *more, "-o", self.dir / name, expect=expect)
        finally:
            os.environ.pop("SOURCE_DATE_EPOCH", None)
        return self.dir / name

    def full_bundle(self):
        """One whose documents have every field there is."""
        recipe = self.dir / "recipe.yaml"
        recipe.write_text("version: 1\ntarget_bpw: 4.5\ntarget_resident: 20MB\n"
                          "defaults: {candidates: [i3g64, i4g64, i5g64]}\n"
                          "rules: [{match: '.*q_proj', codec: i8g64}, {match: lm_head, keep: true}]\n"
                          "prune: {nm: '2:4', targets: '.*experts.*gate_proj'}\ndrop_experts: {count: 1}\n"
                          "prune_channels: {share: 0.25}\nprobes: false\ndomains: {german: 2}\n")
        arguments = ("compress", WREN, "--profile", WORK / "wren.mprof", "--recipe", recipe)
        run(*arguments, "-o", self.dir / "first")
        run(*arguments, "--like", self.dir / "first/plan.json", "-o", self.dir / "full")
        return self.pack(self.dir / "full", "full.moeb", "--version", "1.2", "--counter", 9, "--zstd-level", 3, "--golden",
                         SOURCE / "examples/wren/golden.txt", "--golden-steps", 4, "--golden-tolerance", "0.02",
                         epoch="1700000000")

    def assert_fits(self, name, document):
        errors = [f"{list(e.absolute_path)}: {e.message[:200]}" for e in SCHEMAS[name].iter_errors(document)]
        self.assertEqual(errors, [], name)

    def test_documents_fit_their_schemas_and_no_field_can_be_missing_or_misspelt(self):
        bundle = self.full_bundle()
        shown = documents(bundle)
        # What may be left out: without a profile, a plan of --like, a time or a measured quality.
        optional = {"timestamp", "finishedOn", "metadata", "source_date_epoch", "mediaType", "datasets", "modelParameters",
                    "modelCard", "task", "architectureFamily", "modelArchitecture", "hashes", "properties", "data", "version",
                    "bom-ref", "tools", "components", "component", "dependencies", "dependsOn", "ref", "value", "slice", "type",
                    "performanceMetrics", "quantitativeAnalysis"}
        for name, document in shown.items():
            self.assert_fits(name, document)
            free = ("recipe",) if name == "statement" else ()
            required = 0
            for path in places(document):
                misspelt = changed(document, path, misspell)
                in_domains = "domains" in path[:-1]
                self.assertTrue(in_domains or not SCHEMAS[name].is_valid(misspelt), (name, path, "misspelt"))
                missing = changed(document, path, lambda holder, key: holder.pop(key))
                if SCHEMAS[name].is_valid(missing):
                    self.assertTrue(path[-1] in optional or set(free) & set(path), (name, path, "missing"))
                else:
                    required += 1
            self.assertGreater(required, 20, name)
        for key in ("bomFormat", "specVersion"):
            self.assertFalse(SCHEMAS["bom"].is_valid(changed(shown["bom"], (key,), lambda holder, k: holder.pop(k))))
        # Documents of the simplest bundle: no profile, so no texts, no quality.
        run("compress", WREN, "--codec", "i8g64", "-o", self.dir / "plain")
        plain = documents(self.pack(self.dir / "plain", "plain.moeb"))
        for name, document in plain.items():
            self.assert_fits(name, document)
        self.assertNotIn("quantitativeAnalysis", plain["bom"]["metadata"]["component"]["modelCard"])
        for target in ("full.moeb", "plain.moeb"):
            more = ("--profile", WORK / "wren.mprof", "--like", self.dir / "first/plan.json") if target == "full.moeb" else ()
            report = run("rebuild", self.dir / target, "--trust", TRUST, "--model", WREN, *more, "--json").json()
            self.assertIs(report["same"], True, target)

    def test_everything_is_named_by_its_digest(self):
        statement_file, bom_file = self.dir / "statement.json", self.dir / "bom.json"
        report = run("inspect", BUNDLE, "--trust", TRUST, "--json", "--statement", statement_file, "--bom", bom_file).json()
        blob = next(entry for entry in report["blobs"] if entry["kind"] == "provenance")
        self.assertEqual(sha256(statement_file.read_bytes() + bom_file.read_bytes()), blob["sha256"])
        statement, bom = json.loads(statement_file.read_bytes()), json.loads(bom_file.read_bytes())
        self.assertEqual({"statement": statement, "bom": bom}, report["provenance"])
        byproducts = {d["name"]: d["digest"]["sha256"] for d in statement["predicate"]["runDetails"]["byproducts"]}
        self.assertEqual(byproducts, {"bom.cdx.json": sha256(bom_file.read_bytes()),
                                      "plan.json": sha256((WORK / "dir-i4g64/plan.json").read_bytes()),
                                      "errors.json": sha256((WORK / "dir-i4g64/errors.json").read_bytes())})
        dependencies = {d["name"]: d["digest"]["sha256"]
                        for d in statement["predicate"]["buildDefinition"]["resolvedDependencies"]}
        self.assertEqual(dependencies["model/model.safetensors"], sha256((WREN / "model.safetensors").read_bytes()))
        self.assertEqual(dependencies["profile"], sha256((WORK / "wren.mprof").read_bytes()))
        self.assertEqual(dependencies["calibration/novel"],
                         sha256((SOURCE / "examples/wren/text/novel.calib.txt").read_bytes()))
        self.assertEqual({c["bom-ref"]: c["hashes"][0]["content"] for c in bom["components"]}, dependencies)
        data = BUNDLE.read_bytes()
        second = Bundle(data, json.loads(TRUST.read_text()))
        second.blob_digests = {b["kind"]: b["digest"].hex() for b in second.manifest["blobs"]}
        subjects = {d["name"]: d["digest"]["sha256"] for d in statement["subject"]}
        self.assertEqual(subjects_of(second), subjects)
        contents = b"".join(bytes.fromhex(d["digest"]["sha256"]) for d in statement["subject"])
        self.assertEqual(bom["metadata"]["component"]["hashes"][0]["content"], sha256(contents))
        quality = json.loads((WORK / "dir-i4g64/errors.json").read_text())
        metrics = bom["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
        self.assertEqual(float(metrics[0]["value"]), quality["kld"])

    def test_nothing_of_the_machine_and_no_time_goes_in(self):
        text = json.dumps(documents(BUNDLE))
        for word in {str(SOURCE), str(WORK), str(pathlib.Path.home()), "/tmp", socket.gethostname(), getpass.getuser() + "@",
                     "timestamp", "finishedOn"}:
            self.assertNotIn(word, text)
        first, second = self.pack(WORK / "dir-i4g64", "a", epoch="0"), self.pack(WORK / "dir-i4g64", "b", epoch="0")
        self.assertEqual(first.read_bytes(), second.read_bytes())
        shown = documents(first)
        self.assertEqual(shown["bom"]["metadata"]["timestamp"], "1970-01-01T00:00:00Z")
        self.assertEqual(shown["statement"]["predicate"]["runDetails"]["metadata"]["finishedOn"], "1970-01-01T00:00:00Z")
        for bad in ("x", "-1", "1 ", "253402300800"):
            self.pack(WORK / "dir-i4g64", "c", epoch=bad, expect=2)
        self.assertFalse((self.dir / "c").exists())

    def test_rebuild_refuses_other_inputs(self):
        profile = WORK / "wren.mprof"
        rebuild = ("rebuild", BUNDLE, "--trust", TRUST, "--model")
        self.assert_refused(*rebuild, WREN, status=2, says=["--profile", sha256(profile.read_bytes())])
        other = self.dir / "other.mprof"
        other.write_bytes(profile.read_bytes() + b" ")
        self.assert_refused(*rebuild, WREN, "--profile", other, status=4, says=["other.mprof", sha256(profile.read_bytes())])
        model = self.copy_model(WREN)
        weights = bytearray((model / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (model / "model.safetensors").write_bytes(weights)
        self.assert_refused(*rebuild, model, "--profile", profile, status=4, says=["model.safetensors", sha256(weights)])
        (model / "generation_config.json").unlink()
        self.assert_refused(*rebuild, model, "--profile", profile, status=4, says="generation_config.json")
        plan = WORK / "dir-i4g64/plan.json"
        self.assert_refused(*rebuild, WREN, "--profile", profile, "--like", plan, status=2, says="--like")

    def lie(self, old, new):
        """A copy of a compressed folder whose record says `new` where `old` stood, finished as moepack does."""
        folder = self.copy_model(WORK / "dir-i4g64", f"lie-{sha256(new)[:8]}")
        record, complete = folder / "provenance.json", folder / "complete"
        before = record.read_bytes()
        after = before.replace(old, new)
        self.assertNotEqual(before, after)
        record.write_bytes(after)
        complete.write_bytes(complete.read_bytes().replace(hashlib.sha256(before).digest(), hashlib.sha256(after).digest()))
        return self.pack(folder)

    def test_rebuild_names_what_was_not_made_as_recorded(self):
        bundle = self.lie(b'"i4g64"', b'"i5g64"')
        self.assert_refused("rebuild", bundle, "--trust", TRUST, "--model", WREN, "--profile", WORK / "wren.mprof", status=4,
                            says=["expert table 0, units 0 to 15: tensors or codecs", "expert table 3, units 0 to 15", "another plan"])
        bundle = self.lie(b'"gptq": true', b'"gptq":false')
        self.assert_refused("rebuild", bundle, "--trust", TRUST, "--model", WREN, "--profile", WORK / "wren.mprof", status=4,
                            says=["expert table 0, units 0 to 15: plain bytes"])

    def test_rebuild_takes_only_what_it_can_check(self):
        self.assert_refused("rebuild", BUNDLE, "--trust", TRUST, status=2, says="--model")
        forged = self.dir / "forged.moeb"
        data = bytearray(BUNDLE.read_bytes())
        data[1568 + 40] ^= 1
        forged.write_bytes(data)
        self.assert_refused("rebuild", forged, "--trust", TRUST, "--model", WREN, status=4, says="signature")
        self.assert_refused("inspect", WORK / "dir-i4g64", "--bom", self.dir / "bom.json", status=2, says="--bom",
                            output=self.dir / "bom.json")

    def test_rebuild_keeps_the_folder_on_request(self):
        run("rebuild", BUNDLE, "--trust", TRUST, "--model", WREN, "--profile", WORK / "wren.mprof", "-o", self.dir / "again",
            "--threads", 1)
        for path in (WORK / "dir-i4g64").iterdir():
            self.assertEqual((self.dir / "again" / path.name).read_bytes(), path.read_bytes(), path.name)
