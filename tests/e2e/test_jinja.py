"""The template language against the original: random templates rendered by weir's interpreter and by the jinja2 package, set up as
transformers sets it up for chat templates.

WEIR_BINARY is the weir binary; the driver lies in the same build folder. WEIR_JINJA_CASES is how many templates (default 4000),
WEIR_JINJA_SEED where the random numbers start.
"""

import json
import os
import random
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

BINARY = os.environ.get("WEIR_BINARY")
DRIVER = Path(BINARY).resolve().parents[2] / "tests" / "e2e" / "jinja_driver" if BINARY else None
jinja2 = pytest.importorskip("jinja2", reason="jinja2 is not installed: the template language is NOT compared with the original")
import jinja2.ext  # noqa: E402
import jinja2.nodes  # noqa: E402
import jinja2.sandbox  # noqa: E402

pytestmark = pytest.mark.skipif(not (DRIVER and DRIVER.is_file()), reason="WEIR_BINARY is not set: the template language is NOT compared")

VARIABLES = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  Hello, wörld!\n", "n": 1},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1, "y": [True, None, 2.5]}}}]},
        {"role": "tool", "content": "<b>\"5 & '6'</b>", "n": 3},
        {"role": "user", "content": [{"type": "text", "text": "part"}, {"type": "image"}], "n": 2},
    ],
    "tools": [{"type": "function", "function": {"name": "get", "description": "Gets\nit", "parameters": {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "number"}}, "required": ["a"]}}}],
    "numbers": [3, 1, 2, 3, -5, 10],
    "words": ["beta", "Alpha", "gamma", "", "alpha", "日本"],
    "floats": [1.0, 0.5, -2.25, 1e16, 1e-7, 100.0],
    "mapping": {"b": 2, "a": 1, "c": {"d": [1, 2]}, "key with space": "v"},
    "s": "The quick brown fox", "multi": "line one\n  line two\n\nline four", "empty": "", "t": True, "f": False, "nothing": None,
    "i": 7, "x": 2.5, "unicode": "Ünïcödé ☃ 😀",
}

STRINGS = ["s", "multi", "empty", "unicode", "'a,b,,c'", "'  pad '", '"q\'uote"', "'x' * 3", "'T' ~ i", "messages[0].role", "messages[1]['content']", "words[5]",
           "'%s-%d' % ('a', 3)", "'<a href=\"x\">'", "'tab\\tnew\\n'", "'camelCase words_here'"]
NUMBERS = ["i", "x", "0", "1", "-3", "2.5", "1e3", "10 // 3", "10 / 4", "-7 % 3", "2 ** 5", "numbers[0]", "numbers | length", "words | length", "i + x", "7.0", "-7 // 2", "1_000",
           "0x1F", "numbers | sum", "floats[1]"]
LISTS = ["numbers", "words", "messages", "floats", "[1, 'two', 3.0, none, true]", "[]", "range(4)", "range(5, 0, -2)", "mapping | list", "mapping.items()", "mapping.keys()",
         "mapping.values()", "'a b c'.split()", "'a,b,,c'.split(',')", "numbers[1:4]", "numbers[::-1]", "words[-2:]", "(1, 2, 3)", "messages[3:]", "multi.splitlines()", "[[1, 2], [3, 4]]"]
DICTS = ["mapping", "messages[0]", "messages[2].tool_calls[0].function", "{'k': 1, 'l': [2, 3]}", "dict(a=1, b='z')", "tools[0]", "{}"]
OTHER = ["t", "f", "nothing", "undefined_name", "messages[0].missing", "mapping.c.d[1]", "loop is defined", "none", "mapping['nope']", "messages[9]"]
STRING_FILTERS = ["upper", "lower", "title", "capitalize", "trim", "length", "replace('a', 'XX')", "replace('o', '0', 1)", "first", "last", "list", "reverse", "string", "default('d')",
                  "default('d', true)", "indent", "indent(2)", "indent(2, true)", "indent(width=3, first=true, blank=true)", "indent('> ')", "wordcount", "center(30)", "escape", "e",
                  "tojson", "int", "float", "int(5)", "trim('T')", "truncate(8)", "truncate(8, true)", "truncate(8, true, '..')", "urlencode", "striptags", "safe", "join('-')", "wordwrap(8)",
                  "select('ne', 'a') | list", "batch(3) | list", "unique | list", "sort", "sort | join", "format", "pprint", "forceescape", "xmlattr", "filesizeformat"]
NUMBER_FILTERS = ["abs", "int", "float", "round", "round(1)", "round(1, 'floor')", "round(0, 'ceil')", "string", "tojson", "default(1)", "int(base=2)", "filesizeformat", "string | length", "round | int",
                  "round(-1)", "float | string"]
LIST_FILTERS = ["length", "count", "first", "last", "list", "reverse | list", "join(', ')", "join", "sort", "sort(reverse=true)", "unique | list", "sum", "min", "max", "tojson", "tojson(indent=2)",
                "tojson(separators=(',', ':'))", "tojson(sort_keys=true)", "tojson(ensure_ascii=false)", "tojson(indent=1, sort_keys=true)", "map('string') | list", "map('upper') | join('/')",
                "select('string') | list", "reject('number') | list", "select | list", "reject | list", "map(attribute='role') | list", "map(attribute='role', default='?') | join(' ')",
                "selectattr('role') | list | length", "selectattr('role', 'equalto', 'user') | list", "rejectattr('role', 'eq', 'user') | map(attribute='role') | list",
                "selectattr('n', 'defined') | map(attribute='n') | list", "batch(2) | list", "batch(2, 'fill') | list", "slice(2) | list", "slice(3, 'x') | list", "string", "default([])",
                "groupby('role') | list", "groupby('n', default=0) | map('first') | list", "sort(attribute='role') | map(attribute='role') | list", "map('length') | list", 
                "sort(case_sensitive=true)", "unique(case_sensitive=true) | list", "sum(start=10)", "map('default', 'z') | list", "select('in', [1, 3]) | list", "sum(attribute='n')",
                "map(attribute='0') | list", "map('trim') | list", "map('int') | sum", "max(attribute='n')", "first | tojson", "items | list"]
DICT_FILTERS = ["length", "list", "items | list", "dictsort", "dictsort(reverse=true)", "dictsort(false, 'value')", "tojson", "tojson(indent=4)", "tojson(sort_keys=true, indent=2)", "tojson(indent=none)",
                "string", "first", "join(',')", "default({})", "dictsort | list | length", "xmlattr", "map('upper') | list", "tojson(separators=(', ', '=')) ", "urlencode"]
STRING_METHODS = ["upper()", "lower()", "strip()", "lstrip()", "rstrip('!\\n')", "split()", "split(' ', 1)", "split(',')", "rsplit(' ', 1)", "splitlines()", "startswith('T')", "startswith(('a', 'T'))",
                  "endswith('x')", "replace('e', 'E')", "replace('e', '', 1)", "find('o')", "rfind('o')", "count('e')", "title()", "capitalize()", "isdigit()", "isalpha()", "isupper()", "join(['1', '2'])",
                  "removeprefix('The ')", "removesuffix('x')", "partition(' ')", "rpartition(' ')", "center(25, '*')", "ljust(5)", "rjust(25, '0')", "zfill(6)", "index('q')", "swapcase()", "format(1, a=2)",
                  "isspace()", "casefold()", "expandtabs(4)", "istitle()", "isalnum()", "islower()", "strip('T x')", "nope()"]
DICT_METHODS = ["get('a')", "get('zz')", "get('zz', 'dflt')", "items() | list", "keys() | list", "values() | list", "a", "b", "missing", "get('c', {}).get('d')", "name", "copy()"]
LIST_METHODS = ["index(3)", "count(3)", "copy()", "nope"]
TESTS = ["defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "mapping", "sequence", "iterable", "true", "false", "odd", "even", "divisibleby(2)", "eq(7)", "ne(7)",
         "gt(2)", "lt(2)", "ge 2", "in [1, 7, 's']", "sameas none", "upper", "lower", "callable", "equalto 7", "not none", "not string", "not defined", "filter", "test", "escaped", "greaterthan 3"]
COMPARE = ["==", "!=", "<", ">", "<=", ">=", "in", "not in", "and", "or", "~", "+", "-", "*", "%", "//", "/"]


class Generator:
    def __init__(self, rng):
        self.rng = rng
        self.depth = 0

    def one(self, items):
        return self.rng.choice(items)

    def atom(self):
        kind = self.rng.randrange(5)
        return self.one([STRINGS, NUMBERS, LISTS, DICTS, OTHER][kind]), kind

    def chained(self):
        text, kind = self.atom()
        if self.rng.random() < 0.25 and kind in (0, 2, 3):
            if not text[0].isalpha() or " " in text:
                text = f"({text})"
            return text + "." + self.one({0: STRING_METHODS, 2: LIST_METHODS, 3: DICT_METHODS}[kind])
        if self.rng.random() < 0.6 and kind < 4:
            filters = [STRING_FILTERS, NUMBER_FILTERS, LIST_FILTERS, DICT_FILTERS][kind] if self.rng.random() < 0.9 else LIST_FILTERS + STRING_FILTERS
            if " " in text:
                text = f"({text})"
            text += " | " + self.one(filters)
        return text

    def expression(self):
        self.depth += 1
        kind = self.rng.random() if self.depth < 4 else 0
        if kind < 0.55:
            text = self.chained()
        elif kind < 0.65:
            text = f"{self.chained()} is {self.one(TESTS)}"
        elif kind < 0.8:
            text = f"{self.expression()} {self.one(COMPARE)} {self.expression()}"
        elif kind < 0.86:
            text = f"({self.expression()}) if {self.expression()} else {self.expression()}"
        elif kind < 0.89:
            text = f"{self.expression()} if {self.expression()}"
        elif kind < 0.93:
            text = f"not {self.expression()}"
        elif kind < 0.96:
            text = f"({self.expression()}, {self.chained()})"
        else:
            text = f"({self.one(LISTS)})[{self.one(['0', '-1', '1:', ':2', '::2', 'i', '99', chr(39) + 'a' + chr(39)])}]"
        self.depth -= 1
        return text

    def open(self):
        return self.one(["{%", "{%", "{%-", "{%-", "{%+"]) + " "

    def close(self):
        return " " + self.one(["%}", "%}", "-%}", "-%}", "+%}"])

    def tag(self, text):
        return self.open() + text + self.close()

    def text(self):
        return self.one(["", " ", "\n", "\n\n", "  \n  ", "word", " two words ", "<|im_start|>", "\t", "{ }", "a\n  b", "x\r\ny", "# no\n", "%}"[:1]])

    def loop(self):
        target = self.one(["m", "m", "m", "k, v", "a, b"])
        source = self.one(["mapping.items()", "mapping | dictsort", "[(1, 2), (3, 4)]", "messages | groupby('role')"]) if "," in target else self.one(LISTS + ["s", "tools"])
        if self.rng.random() < 0.2:
            source += f" if {self.one(['m', 'm is string', 'not loop', 'm != 3', 'm.role is defined'])}" if target == "m" else ""
        body = self.block() + self.one(["{{ loop.index }}", "{{ loop.first }}{{ loop.last }}", "{{ loop.index0 }}/{{ loop.length }}", "{{ loop.revindex }}{{ loop.revindex0 }}",
                                        "{{ loop.previtem }}|{{ loop.nextitem }}", "{{ loop.cycle('a', 'b', 'c') }}", "{{ loop.changed(m) }}", "{{ loop.depth }}", "", "{{ m }}", "{{ k }}={{ v }}",
                                        "{{ ', ' if not loop.last }}", "{% set ns.total = ns.total + loop.index %}", "{% set inner = loop.index %}"])
        if self.rng.random() < 0.25:
            body += self.tag(f"if {self.one(['loop.index > 2', 'loop.last', 'm == 3', 'loop.first'])}") + self.tag(self.one(["break", "continue"])) + self.tag("endif") + self.text()
        body += self.block()
        ending = self.tag("else") + self.block() if self.rng.random() < 0.2 else ""
        return self.tag(f"for {target} in {source}") + body + ending + self.tag("endfor")

    def statement(self):
        self.depth += 1
        kind = self.rng.randrange(14) if self.depth < 4 else self.rng.randrange(4)
        if kind < 4:
            result = "{{" + self.one(["", "-", " "]) + " " + self.expression() + " " + self.one(["", "-", " "]) + "}}"
        elif kind == 4:
            middle = self.tag("elif " + self.expression()) + self.block() if self.rng.random() < 0.3 else ""
            middle += self.tag("else") + self.block() if self.rng.random() < 0.4 else ""
            result = self.tag("if " + self.expression()) + self.block() + middle + self.tag("endif")
        elif kind < 8:
            result = self.loop()
        elif kind == 8:
            result = self.tag(f"set v{self.rng.randrange(3)} = {self.expression()}") + self.text() + "{{ v0 }}{{ v1 is defined }}"
        elif kind == 9:
            result = self.tag("set captured" + self.one(["", " | upper", " | trim"])) + self.block() + self.tag("endset") + "[{{ captured }}]"
        elif kind == 10:
            result = self.tag("macro mac(a, b=" + self.one(["1", "'d'", "a", "none"]) + ")") + "{{ a }}:{{ b }}" + self.one(["", "{{ kwargs }}", "{{ varargs }}", "{{ caller is defined }}"]) + self.tag("endmacro")
            result += self.one(["{{ mac(1) }}", "{{ mac(1, b=2) }}", "{{ mac('x', 'y') }}", "{{ mac() }}", "{{ mac(b='q', a=s) }}", "{{ mac(1, 2, 3) }}", "{{ mac(1, c=4) }}", "{{ mac.name }}{{ mac.arguments }}",
                                "{% call mac(1) %}body{% endcall %}"])
        elif kind == 11:
            result = self.tag("filter " + self.one(["upper", "trim", "indent(2)", "replace('a', 'b')", "title"])) + self.block() + self.tag("endfilter")
        elif kind == 12:
            result = self.tag(f"with w = {self.expression()}, z = 1") + "{{ w }}{{ z }}" + self.block() + self.tag("endwith")
        else:
            result = self.one(["{# comment #}", "{#- c -#}", "{% raw %}{{ raw }}{% endraw %}", "{%- raw -%} {% x %} {%- endraw -%}", "{% generation %}gen{{ i }}{% endgeneration %}",
                               "{{ strftime_now('%d %b %Y') }}", "{{ raise_exception('stop: ' ~ i) }}", "{{ namespace(a=1).a }}", "{{ 'a' 'b' }}", "{{ cycler('a', 'b').next() }}",
                               "{% set c = joiner('; ') %}{{ c() }}x{{ c() }}", "{% set ns.total = 5 %}{{ ns.total }}", "{% do 1 %}", "{% if %}", "{{ }}", "{% endfor %}", "{{ s.}}", "{% set ns.x.y = 1 %}"])
        self.depth -= 1
        return result

    def block(self):
        return "".join(self.text() + self.statement() for _ in range(self.rng.randrange(3))) + self.text()

    def template(self):
        return "{% set ns = namespace(total=0) %}" + "".join(self.text() + self.statement() for _ in range(self.rng.randint(1, 3))) + self.text()


# ---- the original --------------------------------------------------------------------------------------------------------------


class GenerationTag(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_show"), [], [], body).set_lineno(line)

    def _show(self, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime(2026, 1, 15, 12).strftime(form)
    return env


def original(env, source):
    try:
        template = env.from_string(source)
    except jinja2.exceptions.TemplateSyntaxError as error:
        return {"error": str(error), "syntax": True}
    except Exception as error:  # constants are folded while compiling, and what they raise comes out here
        return {"error": f"{type(error).__name__}: {error}", "syntax": None}
    try:
        return {"text": template.render(**json.loads(json.dumps(VARIABLES)))}
    except Exception as error:  # anything that a template can make Python raise
        return {"error": f"{type(error).__name__}: {error}", "syntax": False}


def same(ours, theirs):
    if "text" in theirs:
        return ours.get("text") == theirs["text"]
    return "error" in ours and theirs["syntax"] in (None, ours["syntax"])


def is_comparable(theirs):
    """Addresses of objects differ from run to run; and weir writes the views of a dict as JSON, which Python refuses to. (Not
    tried at all: a name that is set in a loop's body after an inner block has read the outer one, which jinja2 takes for undefined.)"""
    return not any(part in theirs.get("text", "") for part in (" at 0x", "<generator")) and "Object of type dict_" not in theirs.get("error", "")


def test_random_templates():
    rng = random.Random(int(os.environ.get("WEIR_JINJA_SEED", "1")))
    env = environment()
    sources = [Generator(rng).template() for _ in range(int(os.environ.get("WEIR_JINJA_CASES", "4000")))]
    lines = "".join(json.dumps({"source": source, "variables": VARIABLES}) + "\n" for source in sources)
    done = subprocess.run([DRIVER], input=lines, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.split("\n") if line]
    assert len(answers) == len(sources)
    different, n_rendered = [], 0
    for source, ours in zip(sources, answers):
        theirs = original(env, source)
        n_rendered += "text" in theirs
        if is_comparable(theirs) and not same(ours, theirs):
            different.append(f"{source!r}\n  original: {theirs}\n  weir:     {ours}")
    assert n_rendered > len(sources) / 10, "too few templates render: the generator is broken"
    assert not different, f"{len(different)} of {len(sources)} templates differ:\n" + "\n".join(sorted(different, key=len)[:40])
