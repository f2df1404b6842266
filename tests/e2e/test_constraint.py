"""Random logits under a grammar: whatever they say, a text that ends is valid, by other implementations' judgement (jsonschema, re).

WEIR_LONG=1 makes ten times as many texts; WEIR_KIT_SCHEMAS names a file of more schemas, one {"name", "schema"} a line."""
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

jsonschema = pytest.importorskip("jsonschema", reason="the Python package jsonschema cannot be had")

BUILD = Path(os.environ["WEIR_BINARY"]).parents[2]
DRIVER = BUILD / "tests" / "e2e" / "constraint_driver"
COUNT = 10000 if os.environ.get("WEIR_LONG") else 1000

SCHEMAS = {
    "flat": {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
             "required": ["name", "age"], "additionalProperties": False},
    "lengths": {"type": "object", "properties": {"s": {"type": "string", "minLength": 2, "maxLength": 9}}, "required": ["s"]},
    "array": {"type": "array", "items": {"type": ["number", "null"]}, "minItems": 1, "maxItems": 5},
    "enum": {"enum": ["red", "gr\"een", 3, None, {"a": [1]}]},
    "any of": {"anyOf": [{"type": "boolean"}, {"type": "object", "properties": {"k": {"const": 1}}, "required": ["k"]}]},
    "recursive": {"$defs": {"node": {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                                     "required": ["v", "next"]}}, "$ref": "#/$defs/node"},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"},
    "numbers": {"type": "object", "properties": {"a": {"type": "number", "exclusiveMinimum": -2.5, "maximum": 17.25}, "b": {"type": "integer", "minimum": -7}},
                "required": ["a", "b"]},
    "open": {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 3},
    "optional": {"type": "object", "properties": {"a": {"type": "string", "maxLength": 4}, "b": {"type": "boolean"}, "c": {"type": "null"}},
                 "required": ["b"]},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"enum": ["x", "y"]}], "items": False, "minItems": 2},
    "anything": {},
}
REGEXES = [r"[a-f]{2,4}(x|yz)*", r"[0-9]{3}-[0-9]{4}", r"(the|a) [a-z]+\.", r"[^\x00-\x7f]{1,3}"]


def texts(tmp_path, kind, source, seed):
    path = tmp_path / "source"
    path.write_text(source)
    run = subprocess.run([DRIVER, kind, path, str(COUNT), str(seed)], capture_output=True, encoding="utf-8", timeout=900)
    lines = [json.loads(line) for line in run.stdout.split("\n") if line]  # splitlines would cut at U+2028, too
    assert run.returncode == 0, lines[-1:]
    return lines


def check_schema(tmp_path, schema, seed):
    lines = texts(tmp_path, "schema", json.dumps(schema), seed)
    assert "error" not in lines[0], lines[0]
    validator = jsonschema.Draft202012Validator(schema)
    ended = [line["text"] for line in lines if line["finish"] == "stop"]
    for text in ended:
        validator.validate(json.loads(text))
    return len(ended)


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_logits_give_valid_json(tmp_path, name):
    assert check_schema(tmp_path, SCHEMAS[name], sorted(SCHEMAS).index(name)) > COUNT // 2


@pytest.mark.parametrize("pattern", REGEXES)
def test_random_logits_match_the_pattern(tmp_path, pattern):
    ended = [line["text"] for line in texts(tmp_path, "regex", pattern, 1) if line["finish"] == "stop"]
    assert len(ended) > COUNT // 2
    for text in ended:
        assert re.fullmatch(pattern, text), text


@pytest.mark.skipif("WEIR_KIT_SCHEMAS" not in os.environ, reason="WEIR_KIT_SCHEMAS names no file of further schemas")
def test_random_logits_under_further_schemas(tmp_path):
    ended = refused = 0
    for number, line in enumerate(Path(os.environ["WEIR_KIT_SCHEMAS"]).read_text().splitlines()):
        case = json.loads(line)
        lines = texts(tmp_path, "schema", json.dumps(case["schema"]), number)
        if "error" in lines[0]:
            refused += 1
            continue
        validator = jsonschema.Draft202012Validator(case["schema"])
        for line in lines:
            if line["finish"] == "stop":
                ended += 1
                value = json.loads(line["text"])
                assert validator.is_valid(value), (case.get("name"), line["text"])
    print(f"{ended} texts, {refused} schemas refused")
    assert ended > 0
