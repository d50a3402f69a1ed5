/* jinja_lexer.h - a template's source as tokens, split where jinja2's lexer splits it. */
#ifndef MR_MODEL_JINJA_LEXER_H
#define MR_MODEL_JINJA_LEXER_H
#include "common/model/jinja_value.h"

typedef enum {
    JINJA_T_END, /* of the template */
    JINJA_T_DATA,
    JINJA_T_BLOCK_BEGIN,
    JINJA_T_BLOCK_END,
    JINJA_T_VARIABLE_BEGIN,
    JINJA_T_VARIABLE_END,
    JINJA_T_NAME,
    JINJA_T_STRING,
    JINJA_T_INTEGER,
    JINJA_T_FLOAT,
    JINJA_T_ADD,
    JINJA_T_SUB,
    JINJA_T_MUL,
    JINJA_T_DIV,
    JINJA_T_FLOORDIV,
    JINJA_T_MOD,
    JINJA_T_POW,
    JINJA_T_TILDE,
    JINJA_T_LBRACKET,
    JINJA_T_RBRACKET,
    JINJA_T_LPAREN,
    JINJA_T_RPAREN,
    JINJA_T_LBRACE,
    JINJA_T_RBRACE,
    JINJA_T_EQ,
    JINJA_T_NE,
    JINJA_T_GT,
    JINJA_T_GTEQ,
    JINJA_T_LT,
    JINJA_T_LTEQ,
    JINJA_T_ASSIGN,
    JINJA_T_DOT,
    JINJA_T_COLON,
    JINJA_T_PIPE,
    JINJA_T_COMMA,
    JINJA_T_SEMICOLON,
} jinja_token_kind;

typedef struct {
    jinja_token_kind kind;
    uint32_t line;
    jinja_value value; /* of data, names, strings and numbers */
} jinja_token;

typedef struct {
    jinja_token *items; /* ends with JINJA_T_END */
    size_t count, room;
} jinja_tokens;

/* source outlives the tokens. Errors leave through s. */
jinja_tokens jinja_tokenize(jinja_state *s, const char *source, size_t bytes);
/* As the source spells it, for sentences. */
const char *jinja_token_name(const jinja_token *token);

#endif
