#!/usr/bin/env python3
"""Writes expected/*.json: what transformers makes of templates/*.jinja with conversations.json.

    tests/chat_templates/make_expected.py

Needs transformers and jinja2 (tests/unit/test_chat_shapes.c, which compares, needs neither). Also checks that
environment.py renders the same, as random_templates.py relies on it."""
import datetime
import json
import pathlib
import sys

import jinja2
import jinja2.meta
import transformers
from transformers.utils import chat_template_utils

import environment

HERE = pathlib.Path(__file__).resolve().parent
NOW = 1753920000  # 31 July 2025
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None)


def render(template, c):
    """As apply_chat_template() does; the error's text where a template raises one, else None."""
    messages = [{k: v for k, v in m.items() if v is not None} for m in c["messages"]]
    try:
        out, _ = chat_template_utils.render_jinja_template(
            [messages], tools=c.get("tools"), documents=c.get("documents"), chat_template=template,
            add_generation_prompt=c.get("generation", True), continue_final_message=c.get("continues", False),
            **{**SPECIAL, **c.get("variables", {})})
        return {"text": out[0]}
    except jinja2.exceptions.UndefinedError:
        return {"fails": True}
    except jinja2.exceptions.TemplateError as error:
        return {"raises": str(error)}
    except (TypeError, ValueError, RecursionError):
        return {"fails": True}


def check_environment(template, c, expected):
    if "text" not in expected or c.get("continues"):
        return
    messages = chat_template_utils._alias_reasoning_fields(
        [{k: v for k, v in m.items() if v is not None} for m in c["messages"]])
    text = environment.make(NOW).from_string(template).render(
        messages=messages, tools=c.get("tools"), documents=c.get("documents"),
        add_generation_prompt=c.get("generation", True), **{**SPECIAL, **c.get("variables", {})})
    assert text == expected["text"], (text, expected["text"])


def main():
    chat_template_utils.datetime = Clock
    conversations = json.loads((HERE / "conversations.json").read_text())
    (HERE / "expected").mkdir(exist_ok=True)
    count = texts = 0
    for path in sorted((HERE / "templates").glob("*.jinja")):
        template = path.read_text()
        reads = jinja2.meta.find_undeclared_variables(environment.make().parse(template))
        out = {}
        for name, c in conversations.items():
            if any(c.get(part) and part not in reads for part in ("tools", "documents")):
                continue
            if c.get("only") and c["only"] not in template:
                continue
            out[name] = render(template, c)
            check_environment(template, c, out[name])
            texts += "text" in out[name]
        count += len(out)
        (HERE / "expected" / (path.stem + ".json")).write_text(
            json.dumps(out, ensure_ascii=False, indent=0) + "\n")
    print(f"{count} expectations, {texts} of them texts; transformers {transformers.__version__}, "
          f"jinja2 {jinja2.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
