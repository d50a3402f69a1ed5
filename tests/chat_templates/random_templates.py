#!/usr/bin/env python3
"""Random templates, rendered by jinja2 and by ours: where both render, the bytes must be equal.

    tests/chat_templates/random_templates.py [BUILD] [--cases N] [--seed N] [--show]

What we refuse by name (status unsupported) or by a limit may differ; any other difference is a failure.
Skipped with a line where jinja2 is not installed."""
import argparse
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys

try:
    import environment
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(0)

STRINGS = [
    "", "a", "abc", "Hello World", "  pad ", "x,y,,z", "äöü ß", "ΑΣ ὈΔΥΣΣΕΎΣ", "日本語", "line\nbreak\r\nx", "'q'",
    '"d"', "it's \"both\"", "<b>&amp;</b>", "1", "42", "-7", "3.14", "1e3", "true", "ǆ ǅ", "\t\x0b\x1f\x7f\xad",
    "😀 smile", "a_b-c(d", "%s and %d", "{} {x}", "user", "content", "role", "ﬁ ŉ"
]
ATTRS = ["role", "content", "name", "items", "keys", "x", "y", "missing", "upper", "get", "tool_calls", "0", "count"]
VARIABLES = {
    "messages": [{
        "role": "system",
        "content": "You are  helpful. "
    }, {
        "role": "user",
        "content": " Hi <|im_end|> there\n"
    }, {
        "role":
        "assistant",
        "content":
        "",
        "tool_calls": [{
            "type": "function",
            "function": {
                "name": "f",
                "arguments": {
                    "a": 1,
                    "b": [True, None, 2.5],
                    "ü": "x"
                }
            }
        }]
    }, {
        "role": "tool",
        "content": [{
            "type": "text",
            "text": "part"
        }, {
            "type": "text",
            "text": "ß"
        }],
        "name": "f"
    }, {
        "role": "user",
        "content": "日本語 and more"
    }],
    "tools": [{
        "type": "function",
        "function": {
            "name": "get",
            "description": "d",
            "parameters": {
                "type": "object",
                "properties": {
                    "b": {
                        "type": "string"
                    },
                    "a": {
                        "type": "number"
                    }
                },
                "required": ["b"]
            }
        }
    }],
    "documents":
    None,
    "add_generation_prompt":
    True,
    "bos_token":
    "<s>",
    "eos_token":
    "</s>",
    "n":
    5,
    "f":
    2.5,
    "big":
    123456789012345,
    "neg":
    -3,
    "t":
    True,
    "s":
    "Some String",
    "u":
    "Ünï",
    "l": [3, 1, 2],
    "strs": ["b", "A", "c", "a"],
    "empty": [],
    "d": {
        "b": 1,
        "a": {
            "x": [1, 2]
        },
        "C": None
    },
    "mixed": [1, "a", None, 2.5, True, [1], {
        "k": "v"
    }],
    "nested": [[1, 2], [3], []],
    "none":
    None
}
NAMES = [
    "messages", "tools", "documents", "add_generation_prompt", "bos_token", "n", "f", "neg", "t", "s", "u", "l",
    "strs", "empty", "d", "mixed", "nested", "undef", "loop", "x", "y", "z", "m", "ns", "big"
]
FILTERS = [
    "trim", "length", "upper", "lower", "title", "capitalize", "default('dd')", "d(1, true)", "join", "join(', ')",
    "join('-', attribute='role')", "first", "last", "list", "map('upper')", "map(attribute='role')",
    "map(attribute='x', default='?')", "select", "select('string')", "reject('none')", "select('odd')",
    "selectattr('role', 'equalto', 'user')", "rejectattr('role', 'in', ['user', 'tool'])", "selectattr('name')",
    "items", "dictsort", "dictsort(by='value')", "dictsort(reverse=true)", "sort", "sort(reverse=true)",
    "sort(case_sensitive=true)", "sort(attribute='role')", "unique", "reverse", "replace('a', 'X')",
    "replace('', '-', 2)", "string", "int", "int(-1)", "int(base=16)", "float", "abs", "round", "round(1)",
    "round(2, 'floor')", "round(-1)", "round(1, 'ceil')", "sum", "sum(start=10)", "min", "max", "indent",
    "indent(2, true)", "indent('> ', blank=true)", "tojson", "tojson(indent=2)", "tojson(ensure_ascii=true)",
    "tojson(separators=(',', ':'))", "tojson(sort_keys=true)", "tojson(indent=4, sort_keys=true)", "safe", "escape",
    "e", "batch(2)", "batch(2, 'f')", "slice(2)", "slice(3, 'f')", "groupby('role')", "truncate(5)",
    "truncate(6, true, '..', 0)", "wordcount", "center(11)", "format(1)", "format('a', 2)", "count", "attr('x')",
    "map('default', 'z')", "map('first')", "map('length')", "forceescape", "map('int')", "map(attribute=0)"
]
TESTS = [
    "defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number", "integer", "float",
    "boolean", "true", "false", "equalto 'a'", "eq(1)", "ne none", "lt 3", "gt(2)", "le 2.5", "ge 1", "odd", "even",
    "divisibleby 3", "in ['a', 1, none]", "in 'abc'", "callable", "lower", "upper", "sameas none", "escaped"
]
METHODS = [
    "strip()", "strip('a ')", "lstrip()", "rstrip('\\n')", "split()", "split(',')", "split(' ', 1)", "rsplit(',', 1)",
    "split(none, 1)", "rsplit(none, 1)", "splitlines()", "splitlines(true)", "startswith('H')",
    "startswith(('a', 'H'))", "endswith('d')", "replace('l', 'L')", "replace('l', '', 1)", "upper()", "lower()",
    "title()", "capitalize()", "swapcase()", "find('l')", "find('l', 4)", "rfind('o')", "count('l')", "count('')",
    "isdigit()", "isalpha()", "isupper()", "islower()", "isspace()", "isalnum()", "istitle()", "zfill(6)",
    "center(9, '*')", "ljust(7)", "rjust(7, '.')", "partition(' ')", "rpartition(',')", "removeprefix('a')",
    "removesuffix('d')", "join(['x', 'y'])", "join(strs)", "format(1, x=2)", "index('a')", "items()", "keys()",
    "values()", "get('a')", "get('zz', 'q')", "index(1)", "count(1)", "append(1)", "pop()", "update({})", "copy()",
    "isnumeric()", "isdecimal()", "isascii()", "isprintable()"
]

PERCENTS = ["%s", "%d", "%5.1f|%s", "%-6s|", "%x", "%r", "%(a)s", "%%", "%03d", "%+d", "%.3s", "%e", "%g"]
FORMATS = ["{}", "{} {}", "{0}-{0}", "{a}", "{:>5}", "{:05d}", "{!r}", "{0[0]}", "{:.2f}", "{:^7}", "{:,}", "{:x}"]
# kind -> names, filters and methods that fit: str, number, list, list of messages, dict
FITTING = {
    "s": ([
        "s", "u", "bos_token", "messages[0].content", "messages[1]['content']", "messages[4].content",
        "messages[0].role", "'a' ~ n", "s + u"
    ], [
        "trim", "length", "upper", "lower", "title", "capitalize", "default('dd')", "first", "last", "list",
        "reverse", "replace('a', 'X')", "replace('', '-', 2)", "string", "int", "int(-1)", "float", "indent",
        "indent(2, true)", "indent('> ', blank=true)", "tojson", "tojson(ensure_ascii=true)", "truncate(5)",
        "truncate(6, true, '..', 0)", "wordcount", "center(11)", "escape", "safe", "join('-')", "sort|join",
        "unique|join", "map('upper')|join", "batch(2)|list", "trim('S ')"
    ], METHODS[:60]),
    "n": (["n", "f", "neg", "t", "big", "l[0]", "n + 1", "f * 2", "messages|length", "n // 2", "neg % 3"], [
        "abs", "round", "round(1)", "round(2, 'floor')", "round(-1)", "round(1, 'ceil')", "int", "float", "string",
        "tojson", "default(3)", "e"
    ], ["x", "missing"]),
    "l": (["l", "strs", "empty", "nested", "range(4)", "l + [9]", "[1, 2.5, 2]", "strs[1:]", "mixed", "('a', 'b')"], [
        "length", "first", "last", "join", "join(', ')", "list", "map('string')|list", "map('int')|list",
        "select|list", "reject('none')|list", "select('string')|list", "select('odd')|list", "sort",
        "sort(reverse=true)", "sort(case_sensitive=true)", "unique|list", "reverse|list", "sum", "sum(start=10)",
        "min", "max", "tojson", "tojson(indent=2)", "batch(2)|list", "batch(2, 'f')|list", "slice(2)|list",
        "slice(3, 'f')|list", "string"
    ], ["index(1)", "count(1)", "copy()", "0", "missing"]),
    "m": (["messages", "messages[1:]", "messages[::-1]", "messages[:2]", "tools", "messages|list"], [
        "map(attribute='role')|join(', ')", "map(attribute='name', default='?')|list", "sort(attribute='role')|first",
        "selectattr('role', 'equalto', 'user')|list", "rejectattr('role', 'in', ['user', 'tool'])|list|length",
        "selectattr('name', 'defined')|list|tojson", "groupby('role')|list", "groupby('role')|map(attribute=0)|list",
        "tojson", "tojson(indent=4, sort_keys=true)", "tojson(separators=(',', ':'))", "last", "first",
        "map(attribute='content')|map('string')|map('length')|sum",
        "unique(attribute='role')|map(attribute='role')|join", "join('-', attribute='role')"
    ], ["0", "1.role", "2.tool_calls", "2.tool_calls[0].function.arguments|tojson"]),
    "d": ([
        "d", "messages[0]", "messages[2].tool_calls[0]", "tools[0].function.parameters", "dict(a=1, b='x')",
        "{'z': 1, 'a': [2]}"
    ], [
        "items|list", "dictsort", "dictsort(reverse=true)", "length", "list", "first", "tojson",
        "tojson(sort_keys=true)", "tojson(indent=2)", "string", "default('x')", "join(',')", "sort",
        "map('upper')|join"
    ], [
        "items()", "keys()", "values()", "get('a')", "get('zz', 'q')", "a", "b", "role", "content", "missing",
        "items()|list", "keys()|join('+')", "copy()"
    ]),
}


class Maker:

    def __init__(self, rng):
        self.rng = rng

    def fitting(self):
        """Something that probably renders."""
        r = self.rng
        names, filters, methods = FITTING[r.choice("sssnlllmmd")]
        out = r.choice(names)
        if r.random() < 0.15:
            return f"{out} is {r.choice(['', 'not '])}{r.choice(TESTS)}"
        if r.random() < 0.3:
            return f"({out}).{r.choice(methods)}"
        return f"{'(' + out + ')' if ' ' in out else out}|{r.choice(filters)}"

    def literal(self):
        r = self.rng
        kind = r.randrange(9)
        if kind == 0:
            return str(r.choice([0, 1, 2, 3, 7, 10, 100, -1, 2**31, 10**12]))
        if kind == 1:
            return r.choice(["0.5", "2.0", "1e20", "1.5e-7", "3.14159", "100000.0", "1e16", "123456.789"])
        if kind == 2:
            return r.choice(["true", "false", "none", "True", "None"])
        if kind in (3, 4, 5):
            return repr_jinja(r.choice(STRINGS))
        if kind == 6:
            return "[" + ", ".join(self.literal() for _ in range(r.randrange(4))) + "]"
        if kind == 7:
            return "(" + "".join(self.literal() + ", " for _ in range(r.randrange(3))) + ")"
        return "{" + ", ".join(f"{repr_jinja(r.choice(STRINGS))}: {self.literal()}"
                               for _ in range(r.randrange(3))) + "}"

    def expression(self, depth=3):
        r = self.rng
        if r.random() < 0.45:
            return self.fitting()
        if depth <= 0 or r.random() < 0.1:
            return r.choice(NAMES) if r.random() < 0.6 else self.literal()
        e = lambda: self.expression(depth - 1)  # noqa: E731
        kind = r.randrange(24)
        if kind == 0:
            if r.random() < 0.2:  # the right side stays small: Python's integers and strings have no bound
                return f"{self.atom()} {r.choice(['*', '**'])} {r.choice(['0', '2', '3', '-1', '0.5', 't', 'f'])}"
            return f"{e()} {r.choice(['+', '-', '/', '//', '%', '~', '~', '+'])} {e()}"
        if kind == 1:
            return f"({e()})"
        if kind == 2:
            return f"{e()} {r.choice(['==', '!=', '<', '<=', '>', '>=', 'in', 'not in'])} {e()}"
        if kind == 3:
            return f"{e()} {r.choice(['and', 'or'])} {e()}"
        if kind == 4:
            return r.choice(["not ", "-", "+"]) + e()
        if kind == 5:
            return f"{e()} if {e()}" + (f" else {e()}" if r.random() < 0.8 else "")
        if kind in (6, 7):
            return f"{self.atom()}.{r.choice(ATTRS)}"
        if kind == 8:
            return f"{self.atom()}[{e()}]"
        if kind == 9:
            part = lambda: r.choice(["", "0", "1", "-1", "2", "-2", "10"])  # noqa: E731
            return f"{r.choice(NAMES)}[{part()}:{part()}" + (f":{r.choice(['', '2', '-1', '-2'])}]"
                                                             if r.random() < 0.4 else "]")
        if kind in (10, 11, 12, 13, 14):
            return f"({e()})|{r.choice(FILTERS)}" if r.random() < 0.5 else f"{self.atom()}|{r.choice(FILTERS)}"
        if kind in (15, 16):
            return f"{self.atom()} is {r.choice(['', '', 'not '])}{r.choice(TESTS)}"
        if kind in (17, 18, 19):
            return f"{self.atom()}.{r.choice(METHODS)}"
        if kind == 20:
            return r.choice([
                f"range({e()})", "range(3)", "range(1, 6, 2)", "dict(a=1, b=2)", "range(5, 0, -2)|list",
                "cycler('a', 'b').next()", "joiner()()", "strftime_now('%Y-%m-%d %H')", "m(1)", "m(x, b=2)", "m()",
                "range(10)[2:5]"
            ])
        if kind == 21:
            return f"{e()} {r.choice(['<', '==', 'in'])} {e()} {r.choice(['<', '==', '!='])} {e()}"
        if kind == 22:
            return repr_jinja(r.choice(PERCENTS)) + " % " + e()
        return f"{repr_jinja(r.choice(FORMATS))}.format({e()})"

    def atom(self):
        r = self.rng
        return r.choice(NAMES) if r.random() < 0.7 else f"({self.expression(1)})"

    def target(self):
        return self.rng.choice(["x", "y", "z", "ns.a", "x, y", "(x, y)", "undef"])

    def text(self):
        return self.rng.choice(["a", " ", "\n", "  \n", "text\n", "x  ", "\n\n  ", "}} ", "{ {", "é", "%}", "# "])

    def tag(self, inside):
        r = self.rng
        return "{%" + r.choice(["", "", "", "-", "+"]) + f" {inside} " + r.choice(["", "", "", "-"]) + "%}"

    def body(self, depth):
        return "".join(self.statement(depth) for _ in range(self.rng.randrange(1, 4)))

    def statement(self, depth=3):
        r = self.rng
        kind = r.randrange(20) if depth > 0 else r.randrange(8)
        if kind < 3:
            return self.text()
        if kind < 7:
            return "{{" + r.choice(["", "", "-"]) + f" {self.expression()} " + r.choice(["", "", "-"]) + "}}"
        if kind == 7:
            return r.choice(["{# note #}", "{#- note -#}\n", "  {# note #}\n", "{% raw %}{{ x }}{% endraw %}"])
        if kind < 11:
            return self.tag(f"set {self.target()} = {self.expression()}")
        if kind < 13:
            out = self.tag(f"if {self.expression()}") + self.body(depth - 1)
            if r.random() < 0.4:
                out += self.tag(f"elif {self.expression()}") + self.body(depth - 1)
            if r.random() < 0.5:
                out += self.tag("else") + self.body(depth - 1)
            return out + self.tag("endif")
        if kind < 16:
            target = r.choice(["x", "y", "message", "x, y", "k, v"])
            what = r.choice(
                ["messages", "l", "strs", "d", "d.items()", "range(3)", "nested", "'abc'",
                 self.expression(2)])
            test = f" if {self.expression(2)}" if r.random() < 0.25 else ""
            extra = r.choice([
                "", "", "{{ loop.index }}", "{{ loop.last }}", "{{ loop.length }}", "{{ loop.revindex0 }}",
                "{{ loop.previtem }}", "{{ loop.nextitem }}", "{{ loop.cycle('p', 'q') }}", "{{ loop.changed(x) }}",
                "{% if loop.first %}{% continue %}{% endif %}", "{% if loop.index > 2 %}{% break %}{% endif %}"
            ])
            out = self.tag(f"for {target} in {what}{test}") + extra + self.body(depth - 1)
            if r.random() < 0.3:
                out += self.tag("else") + self.body(depth - 1)
            return out + self.tag("endfor")
        if kind == 16:
            return (self.tag("macro m(a, b='def', c=x)") + "{{ a }}{{ b }}" + self.body(depth - 1) +
                    self.tag("endmacro") + "{{ m(" +
                    r.choice(["", "1", "n, s", "a=2", "1, c=3", "*l", "**{'a': 1}"]) + ") }}")
        if kind == 17:
            filters = r.choice(["", " | upper", " | trim | length"])
            return self.tag(f"set x{filters}") + self.body(depth - 1) + self.tag("endset")
        if kind == 18:
            return r.choice([
                self.tag("filter " + r.choice(["upper", "trim", "replace('a', 'b')"])) + self.body(depth - 1) +
                self.tag("endfilter"),
                self.tag(f"with x = {self.expression(1)}, y = x") + self.body(depth - 1) + self.tag("endwith"),
                self.tag("generation") + self.body(depth - 1) + self.tag("endgeneration"),
                "{% macro w(a) %}[{{ caller(a) }}]{% endmacro %}{% call(q) w(s) %}{{ q }}" + self.body(depth - 1) +
                "{% endcall %}"
            ])
        return "{% set ns = namespace(a=0, b=s) %}" + self.body(depth - 1) + "{{ ns.a }}"

    def template(self):
        return "".join(self.statement() for _ in range(self.rng.randrange(1, 6)))


def repr_jinja(text):
    out = "".join({"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r"}.get(c, c) for c in text)
    return f"'{out}'"


ADDRESS = re.compile(r" at 0x[0-9a-f]+|<(bound|built-in|function|class|generator)|_iterator object")


class Ours:

    def __init__(self, build):
        self.process = subprocess.Popen([os.path.join(build, "tests", "jinja_render")],
                                        stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE,
                                        text=True,
                                        encoding="utf-8")

    def render(self, template, variables, now=0):
        self.process.stdin.write(json.dumps({"template": template, "variables": variables, "now": now}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"jinja_render died of {template!r}")
        return json.loads(line)


def give_up(*_):
    raise TimeoutError("it takes too long")


def theirs(env, template, variables):
    signal.alarm(5)
    try:
        return env.from_string(template).render(**variables), None
    except RecursionError as error:
        return None, error
    except Exception as error:  # any: a template that fails is a case, too
        return None, error


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", nargs="?", default="build/release")
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="print what we refuse, counted")
    args = parser.parse_args()
    env, ours = environment.make(now=1700000000), Ours(args.build)
    variables = {k: v for k, v in VARIABLES.items() if k != "none"}
    signal.signal(signal.SIGALRM, give_up)
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, resource.RLIM_INFINITY))
    same = failed = refused = errors = 0
    reasons = {}
    for case in range(args.cases):
        maker = Maker(random.Random(args.seed * 1000003 + case))
        template = maker.template() if case % 2 else "{{ " + maker.expression(4) + " }}"
        text, error = theirs(env, template, variables)
        got = ours.render(template, variables, 1700000000)
        if got.get("status") in ("unsupported", "limit"):
            refused += 1
            reason = re.sub(r"^line \d+ of the chat template: ", "", got["error"])
            reasons[reason] = reasons.get(reason, 0) + 1
        elif text is not None and ADDRESS.search(text):
            refused += 1
        elif error is not None and "error" in got:
            errors += 1
        elif error is None and got.get("text") == text:
            same += 1
        else:
            failed += 1
            if failed <= 20:
                print(f"case {case}: {template!r}\n  jinja2: {text!r} {error!r}\n  ours:   {got!r}")
    if args.show:
        for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
            print(f"{count:6} {reason}")
    print(f"{same} rendered alike, {errors} failed in both, {refused} refused by name")
    print(f"{same + errors} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
