/* Goal: what a template prints, what users wrote of it, what is refused, and that every render
 * ends. Method: expectations read off Python by hand; tests/chat_templates compares with jinja2
 * itself. */
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/model/jinja.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char variables_json[] =
    "{\"messages\":[{\"role\":\"user\",\"content\":\" a<|x|>b \"},{\"role\":\"assistant\","
    "\"content\":\"yo\",\"calls\":{\"k<|x|>\":[1,\"v\"]}}],\"n\":7,\"bos\":\"<s>\"}";

typedef struct {
    json_t *root;
    mr_jinja_variable list[3];
} given;

static void open_given(given *g) {
    mr_err err;
    assert_int_equal(mr_json_parse(&g->root, variables_json, strlen(variables_json), "v", &err),
                     MR_OK);
    g->list[0] =
        (mr_jinja_variable){"messages", json_object_get(g->root, "messages"), MR_JINJA_MESSAGES};
    g->list[1] = (mr_jinja_variable){"n", json_object_get(g->root, "n"), MR_JINJA_OURS};
    g->list[2] = (mr_jinja_variable){"bos", json_object_get(g->root, "bos"), MR_JINJA_OURS};
}

static mr_status render(mr_jinja_output *out, const char *template, mr_err *err) {
    given g;
    mr_jinja *jinja;
    *out = (mr_jinja_output){0};
    mr_status status = mr_jinja_parse(&jinja, template, strlen(template), err);
    if (status != MR_OK) return status;
    open_given(&g);
    status = mr_jinja_render(out, jinja, g.list, 3, 1700000000, MR_MAX_JINJA_STEPS, err);
    json_decref(g.root);
    mr_jinja_close(jinja);
    return status;
}

static void renders(const char *template, const char *wanted) {
    mr_jinja_output out;
    mr_err err = {{0}};
    if (render(&out, template, &err) != MR_OK) fail_msg("%s: %s", template, err.text);
    assert_string_equal(mr_text_string(&out.text), wanted);
    mr_jinja_output_free(&out);
}

static void fails(const char *template, mr_status status, const char *sentence) {
    mr_jinja_output out;
    mr_err err = {{0}};
    const mr_status got = render(&out, template, &err);
    if (got != status || !strstr(err.text, sentence))
        fail_msg("%s: %s: %s", template, mr_status_name(got), err.text);
    assert_null(out.text.data);
    assert_null(out.spans);
}

static void test_text_and_blanks(void **state) {
    (void)state;
    renders("a {{ n }} b\n", "a 7 b");
    renders("  {% if true %}\n x\n  {% endif %}\ny", " x\ny");
    renders("  {%+ if true %} x {%- endif -%}  \n y", "   xy");
    renders("{# c #}\nx{#- c -#}  y{{- ' z' -}}  .", "xy z.");
    renders("{% raw %}{{ n }}{% endraw %}\r\n{{ '\r\n' }}", "{{ n }}\n");
    renders("{{ 'a' 'b' \"\\n\\x41\\u00fc\\101\\q\" }}", "ab\nA\xc3\xbc"
                                                         "A\\q");
}

static void test_values_print_as_in_python(void **state) {
    (void)state;
    renders("{{ [1, 2.0, 1e16, 1e-5, true, none, 'a', \"it's\", ('x',), {'k': []}, ()] }}",
            "[1, 2.0, 1e+16, 1e-05, True, None, 'a', \"it's\", ('x',), {'k': []}, ()]");
    renders("{{ 7 // 2, -7 // 2, -7 % 3, 7 / 2, 2 ** 10, 2 ** -1, 0.1 + 0.2 }}",
            "(3, -4, 2, 3.5, 1024, 0.5, 0.30000000000000004)");
    renders("{{ undefined_thing }}|{{ n.missing }}|{{ none.x }}", "||");
    renders("{{ {'a': 1, 2: 'b'} | tojson }} {{ 'ü\"<' | tojson }}",
            "{\"a\": 1, \"2\": \"b\"} \"ü\\\"<\"");
    renders("{{ [{'a': [1]}, {}] | tojson(indent=2) }}",
            "[\n  {\n    \"a\": [\n      1\n    ]\n  },\n  {}\n]");
    renders("{{ 'abcdef'[::-2] }}{{ 'äöü'[-2:] }}{{ [1,2,3][5:] }}{{ 'abc'[7] }}", "fdböü[]");
    renders("{{ 'ß ΑΣ'.upper() }} {{ 'ΑΣ Σ' | lower }} {{ 'it is' | title }}", "SS ΑΣ ας σ It Is");
    renders("{{ strftime_now('%d %b %Y, %-H:%M') }}", "14 Nov 2023, 22:13");
}

static void test_statements(void **state) {
    (void)state;
    renders("{% for m in messages %}{{ loop.index }}{{ m.role[0] }}{% if not loop.last %},{% endif "
            "%}{% else %}none{% endfor %}",
            "1u,2a");
    renders("{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}",
            "231");
    renders("{% set ns = namespace(x=1) %}{% for i in [1, 2] %}{% set ns.x = ns.x + i %}{% endfor "
            "%}{{ ns.x }}",
            "4");
    renders("{% for i in range(9) if i is odd %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% "
            "endfor %}",
            "13");
    renders("{% macro m(a, b='B') %}[{{ a }}{{ b }}{{ caller() if caller }}]{% endmacro %}{{ m(1) "
            "}}{{ m(b=2, a=3) }}{% call m(4) %}!{% endcall %}",
            "[1B][32][4B!]");
    renders("{% set t %}a{{ n }}{% endset %}{{ t | upper }}{% set a, b = (1, 2) %}{{ b }}", "A72");
    renders("{% generation %}{{ n }}{% endgeneration %}{% filter upper %}x{% endfilter %}", "7X");
    renders("{{ 'y' if n > 3 else 'n' }}{{ 1 < n < 9 }}{{ 'a' not in 'bcd' }}", "yTrueTrue");
}

static void test_failures_have_a_sentence(void **state) {
    (void)state;
    fails("\n{{ nothing.x }}", MR_ERR_FORMAT,
          "line 2 of the chat template: 'nothing' is undefined");
    fails("{{ n.a.b }}", MR_ERR_FORMAT, "'int object' has no attribute 'a'");
    fails("{{ 'a' + 1 }}", MR_ERR_FORMAT, "unsupported operand types for +: 'str' and 'int'");
    fails("{{ 1 / 0 }}", MR_ERR_FORMAT, "division by zero");
    fails("{% if n %}\nx", MR_ERR_FORMAT, "line 2 of the chat template: the template ends");
    fails("{{ n", MR_ERR_FORMAT, "expected '}}'");
    fails("{{ 'a }}", MR_ERR_FORMAT, "a string has no end");
    fails("{% endif %}", MR_ERR_UNSUPPORTED, "the tag 'endif' is not supported here");
    fails("x{{ raise_exception('Roles must alternate!') }}", MR_ERR_ARGUMENT,
          "Roles must alternate!");
    fails("{% set n.x = 1 %}", MR_ERR_FORMAT, "only a namespace's attributes");
    fails("\xff", MR_ERR_FORMAT, "not UTF-8");
}

static void test_what_is_not_supported_is_named(void **state) {
    (void)state;
    fails("{% include 'x' %}", MR_ERR_UNSUPPORTED, "the tag 'include'");
    fails("\n\n{% if false %}{{ n | urlize }}{% endif %}", MR_ERR_UNSUPPORTED,
          "line 3 of the chat template: the filter 'urlize' is not supported");
    fails("{{ n is prime }}", MR_ERR_UNSUPPORTED, "the test 'prime'");
    fails("{% for x in [] recursive %}{% endfor %}", MR_ERR_UNSUPPORTED, "recursive");
    fails("{{ 9223372036854775807 + 1 }}", MR_ERR_UNSUPPORTED, "more than 64 bits");
    fails("{{ 99999999999999999999 }}", MR_ERR_UNSUPPORTED, "more than 63 bits");
    fails("{{ 'a'.encode() }}", MR_ERR_UNSUPPORTED, "the method 'encode' of str");
    fails("{{ lipsum() }}", MR_ERR_UNSUPPORTED, "lipsum");
    fails("{{ range }}", MR_ERR_UNSUPPORTED, "printing a function");
}

static void test_nothing_but_its_variables_is_reached(void **state) {
    (void)state;
    renders("{{ ''.__class__ }}{{ n.__class__ }}{{ [].append }}{{ {}.__init__ }}", "");
    fails("{{ ''.__class__.__mro__ }}", MR_ERR_FORMAT, "unsafe");
    fails("{{ messages.append(1) }}", MR_ERR_FORMAT, "unsafe");
    fails("{{ {}.update({}) }}", MR_ERR_FORMAT, "unsafe");
    fails("{% set ns = namespace() %}{% set ns._x = 1 %}", MR_ERR_FORMAT, "begins with _");
    fails("{{ '{0.__class__.x}'.format(1) }}", MR_ERR_FORMAT, "unsafe");
}

static void test_every_render_ends(void **state) {
    (void)state;
    fails("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
          MR_ERR_LIMIT, "steps");
    fails("{{ range(1000000) }}", MR_ERR_LIMIT, "100000 items");
    fails("{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s "
          "%}{% endfor %}",
          MR_ERR_LIMIT, "64 MiB");
    fails("{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = [ns.l, ns.l] %}{% "
          "endfor %}{{ ns.l }}",
          MR_ERR_LIMIT, "");
    fails("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", MR_ERR_LIMIT, "levels deep");
    fails("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", MR_ERR_LIMIT, "levels deep");
    fails("{{ 'a' * 999999999999 }}", MR_ERR_LIMIT, "64 MiB");
    fails("{{ '%99999d' % 1 }}", MR_ERR_LIMIT, "10000");
    fails("{{ [1] * 99999999999 }}", MR_ERR_LIMIT, "");
}

static void test_nesting_has_a_maximum(void **state) {
    (void)state;
    static const char *const pieces[] = {"(", "[", "-", "not ", "n if n else ", "{1:"};
    for (size_t i = 0; i < sizeof(pieces) / sizeof(pieces[0]); i++) {
        mr_text text = {0};
        mr_jinja *jinja;
        mr_err err;
        mr_text_add_string(&text, "{{ ");
        for (int k = 0; k < 20000; k++) mr_text_add_string(&text, pieces[i]);
        assert_int_equal(mr_jinja_parse(&jinja, text.data, text.bytes, &err), MR_ERR_LIMIT);
        assert_null(jinja);
        mr_text_free(&text);
    }
    static const char *const chains[] = {" + 1", ".x", "[0]", "|int", "()", " and n"};
    for (size_t i = 0; i < sizeof(chains) / sizeof(chains[0]); i++) {
        mr_text text = {0};
        mr_jinja *jinja;
        mr_err err;
        mr_text_add_string(&text, "{{ n");
        for (int k = 0; k < 20000; k++) mr_text_add_string(&text, chains[i]);
        mr_text_add_string(&text, " }}");
        assert_int_equal(mr_jinja_parse(&jinja, text.data, text.bytes, &err), MR_ERR_LIMIT);
        mr_text_free(&text);
    }
}

/* The output with what users wrote in brackets. */
static void marks(const char *template, const char *wanted) {
    mr_jinja_output out;
    mr_err err = {{0}};
    mr_text text = {0};
    size_t at = 0;
    if (render(&out, template, &err) != MR_OK) fail_msg("%s: %s", template, err.text);
    const char *data = mr_text_string(&out.text);
    for (uint32_t i = 0; i < out.span_count; i++) {
        mr_text_add(&text, data + at, out.spans[i].first - at);
        mr_text_add_string(&text, "[");
        mr_text_add(&text, data + out.spans[i].first, out.spans[i].bytes);
        mr_text_add_string(&text, "]");
        at = out.spans[i].first + out.spans[i].bytes;
    }
    mr_text_add(&text, data + at, out.text.bytes - at);
    assert_string_equal(mr_text_string(&text), wanted);
    mr_text_free(&text);
    mr_jinja_output_free(&out);
}

static void test_what_users_wrote_is_known(void **state) {
    (void)state;
    marks("{{ bos }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}",
          "<s><|user|>[ a<|x|>b ]<|end|><|assistant|>[yo]<|end|>");
    marks("{% set c = messages[0].content %}{{ c | trim }}{{ c[2:6] }}{{ '<' + c.strip() + '>' }}",
          "[a<|x|>b<|x|]<[a<|x|>b]>");
    marks("{{ messages[0].content | upper }}.{{ messages[0].content.replace('a', '<|y|>') }}",
          "[ A<|X|>B ].[ ]<|y|>[<|x|>b ]");
    marks("{{ messages[0].content.split('<|x|>') | join('<|x|>') }}", "[ a]<|x|>[b ]");
    marks("{{ messages[1].calls | tojson }}", "{\"[k<|x|>]\": [1, \"[v]\"]}");
    marks("{{ messages[1].calls }}", "{'[k<|x|>]': [1, '[v]']}");
    marks("{{ '%s|%s' % (bos, messages[1].content) }}{{ '{}-{}'.format(messages[1].content, 1) }}",
          "<s>|[yoyo]-1");
    marks("{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t + '<i>' + "
          "m.content %}{% endfor %}{{ ns.t }}",
          "<i>[ a<|x|>b ]<i>[yo]");
    marks("{% macro m(x) %}({{ x }}){% endmacro %}{% set b %}{{ m(messages[1].content) }}{% endset "
          "%}{{ b | indent(2, true) }}",
          "  ([yo])");
    marks("{{ messages[0].content * 2 }}{{ messages[1].content | list }}{{ 'z' ~ "
          "messages[1].content[::-1] }}",
          "[ a<|x|>b  a<|x|>b ]['[y]', '[o]']z[oy]");
}

static void *render_many(void *with) {
    given g;
    mr_err err;
    open_given(&g);
    for (int i = 0; i < 300; i++) {
        mr_jinja_output out;
        assert_int_equal(mr_jinja_render(&out, with, g.list, 3, 0, 1000, &err), MR_OK);
        assert_string_equal(mr_text_string(&out.text), "8userassistant[7, 'x']");
        mr_jinja_output_free(&out);
    }
    json_decref(g.root);
    return NULL;
}

static void test_threads_share_a_template(void **state) {
    (void)state;
    static const char text[] = "{% macro m(a) %}{{ a + 1 }}{% endmacro %}{{ m(n) }}{% for x in "
                               "messages %}{{ x.role }}{% endfor %}{{ [n, 'x'] + [] }}";
    pthread_t threads[4];
    mr_jinja *jinja;
    mr_err err;
    assert_int_equal(mr_jinja_parse(&jinja, text, strlen(text), &err), MR_OK);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, render_many, jinja), 0);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    mr_jinja_close(jinja);
}

static void test_looking_into_a_template(void **state) {
    (void)state;
    static const char text[] = "{% for m in messages %}{% set content = m['content'] %}{% if "
                               "m.role == 'developer' %}{% for part in content %}{% endfor %}{% "
                               "endif %}{% endfor %}";
    mr_jinja *jinja;
    mr_err err;
    assert_int_equal(mr_jinja_parse(&jinja, text, strlen(text), &err), MR_OK);
    assert_true(mr_jinja_has_string(jinja, "developer"));
    assert_false(mr_jinja_has_string(jinja, "tool"));
    assert_true(mr_jinja_loops_over(jinja, "content"));
    assert_false(mr_jinja_loops_over(jinja, "tool_calls"));
    mr_jinja_close(jinja);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_and_blanks),
        cmocka_unit_test(test_values_print_as_in_python),
        cmocka_unit_test(test_statements),
        cmocka_unit_test(test_failures_have_a_sentence),
        cmocka_unit_test(test_what_is_not_supported_is_named),
        cmocka_unit_test(test_nothing_but_its_variables_is_reached),
        cmocka_unit_test(test_every_render_ends),
        cmocka_unit_test(test_nesting_has_a_maximum),
        cmocka_unit_test(test_what_users_wrote_is_known),
        cmocka_unit_test(test_threads_share_a_template),
        cmocka_unit_test(test_looking_into_a_template),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
