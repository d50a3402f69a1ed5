/* jinja.h - the part of Jinja that chat templates use, run within bounds.
 *
 * A template is parsed once; a render walks its tree. What is rendered equals, byte by byte, what
 * Python's jinja2 gives in the environment of transformers' apply_chat_template (trim_blocks,
 * lstrip_blocks, immutable sandbox, loop controls, its own tojson, raise_exception and
 * strftime_now), or there is an error in one sentence that names the line: docs/CHAT.md lists what
 * is understood. Tags, filters and tests that are not are refused when the template is parsed.
 *
 * A template reaches nothing but the variables it is given. Steps, depth, memory and output have
 * maxima in common/base/limits.h, so that every render ends.
 *
 * Each string knows which of its bytes a user wrote, through every operation: see spans below.
 *
 * Threads: a parsed template never changes; any number of threads may render it at once. */
#ifndef MR_MODEL_JINJA_H
#define MR_MODEL_JINJA_H
#include "common/base/json.h"
#include "common/model/tokenizer.h"

typedef struct mr_jinja mr_jinja;

/* source is copied. On failure *out is NULL: MR_ERR_FORMAT is a syntax error, MR_ERR_UNSUPPORTED a
 * construct refused by name. */
mr_status mr_jinja_parse(mr_jinja **out, const char *source, size_t bytes, mr_err *err);
void mr_jinja_close(mr_jinja *jinja); /* NULL is fine */

/* The template has this string among its literals (exactly). */
bool mr_jinja_has_string(const mr_jinja *jinja, const char *text);
/* The template reads a variable of this name (or one of its own). */
bool mr_jinja_reads(const mr_jinja *jinja, const char *name);
/* Some for loop of the template runs over an attribute or item of this name, or over a variable
 * that was set from one. */
bool mr_jinja_loops_over(const mr_jinja *jinja, const char *name);

typedef enum {
    MR_JINJA_OURS, /* all of it comes from the model or from us */
    MR_JINJA_USER, /* all strings in it, keys included, were written by a user */
    /* as MR_JINJA_USER, but the strings under "role" in the items of this list are ours */
    MR_JINJA_MESSAGES,
} mr_jinja_origin;

typedef struct {
    const char *name;
    const json_t *value; /* borrowed for the call; NULL: the variable is left undefined */
    mr_jinja_origin origin;
} mr_jinja_variable;

typedef struct {
    mr_text text;
    mr_text_span *spans; /* [span_count]: what users wrote, ascending, apart from each other */
    uint32_t span_count;
} mr_jinja_output; /* owned; mr_jinja_output_free */

/* now: Unix time of strftime_now(), which tells UTC. steps: at most so many, MR_MAX_JINJA_STEPS
 * where there is no reason for fewer. MR_ERR_ARGUMENT: raise_exception() was called, err is what it
 * said; MR_ERR_LIMIT: a maximum; MR_ERR_UNSUPPORTED: refused by name; MR_ERR_FORMAT: what Python
 * would answer with another exception (undefined, wrong type, division by zero). */
mr_status mr_jinja_render(mr_jinja_output *out, const mr_jinja *jinja,
                          const mr_jinja_variable *variables, size_t count, int64_t now,
                          uint64_t steps, mr_err *err);
void mr_jinja_output_free(mr_jinja_output *output);

#endif
